"""A function as a port: `conformance run my_norms.py:my_rms_norm --op rms_norm`.

What an author of a port declares is found out here by calling the function: whose tensors it takes, and which dialect it has.
It is run as it is written; a function that is compiled (`torch.compile(f)`, `jax.jit(f)`) is judged compiled.
"""

import importlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, signature
from math import prod
from typing import Any

import numpy as np

from conformance.numbers.rounding import DTYPES
from conformance.ops.golden import compute
from conformance.ops.op import Op
from conformance.ops.table import OPS
from conformance.port.base import Port, Skip
from conformance.question.dialects import Dialect
from reference import FEATURES

Array = np.ndarray
Function = Callable[..., Any]

BRIDGES = {"torch": ("impl_torch.port", "TorchPort"), "jax": ("impl_jax.port", "JaxPort")}
"""The ports that know a framework's tensors and gradients, by the framework."""
EPS = ("eps", "epsilon", "variance_epsilon", "layer_norm_eps", "rms_norm_eps")
POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
PROBE = "random"  # the name of the case by which a dialect is told,
CLEAR = 0.9  # if so large a share of its elements is right
SMALL = 512  # elements of a case that costs little


class FunctionError(ValueError):
    """A function that cannot be judged; the message says why, and what to do."""


def op_of(name: str, told: str = "") -> str:
    """The op that a function is: the one that is told, or the longest in its name, `my_rmsnorm` included; empty if none is."""
    said = name.lower().replace("_", "")
    among = [op for op in OPS if op.replace("_", "") in said]
    return told or max(among, key=len, default="")


def port_of(functions: Mapping[str, Function], name: str) -> type[Port]:
    """A port with these functions, by op. `name` is what they are called.

    Raises `FunctionError` where no framework at hand can call the first of them.
    """
    (op, function), *_ = functions.items()
    base = _framework_of(OPS[op], function, name)
    methods = {op: _Method(OPS[op], function) for op, function in functions.items()}
    none = dict.fromkeys(OPS)  # those of the base are not the author's
    made = type("FunctionPort", (_AsWritten, base), {**none, **methods, "name": name, "taps": False, "compiles": False})
    return _with_dialects(made, methods)


class _AsWritten(Port):
    """A port that compiles nothing, and lets the function do so."""

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=True)
        self.jit = False


class _Method:
    """A function, called as a port's method is: tensors by place, eps under the name that it has for it."""

    def __init__(self, op: Op, function: Function) -> None:
        self._op, self._function = op, function
        constants = {constant.name for constant in op.constants}
        parameters = list(signature(function).parameters.values())
        self._keywords = {each.name for each in parameters}
        self._eps = next((each.name for each in parameters if each.name in EPS), "")
        by_place = [each.name for each in parameters if each.kind in POSITIONAL and each.name not in {*constants, *EPS}]
        any_ = any(each.kind is Parameter.VAR_POSITIONAL for each in parameters)
        self._tensors = len(op.arguments) if any_ else min(len(op.arguments), len(by_place))
        taken = [Parameter(each, Parameter.KEYWORD_ONLY) for each in constants & self._keywords]
        self.__signature__ = signature(function).replace(parameters=taken, return_annotation=Any)

    def __call__(self, *tensors: Any, **constants: Any) -> Any:
        for name, tensor in list(zip(self._op.arguments, tensors, strict=False))[self._tensors :]:
            if tensor is not None:
                raise Skip(f"the function takes no {name}")
        if self._eps and "eps" in constants:
            constants[self._eps] = constants.pop("eps")
        given = {name: value for name, value in constants.items() if name in self._keywords}
        try:
            return self._function(*tensors[: self._tensors], **given)
        except Exception as error:
            absent = [name for name, tensor in zip(self._op.arguments, tensors, strict=False) if tensor is None]
            if not absent:
                raise
            raise Skip(f"the function cannot do without {absent[0]}: {type(error).__name__}: {error}") from None


def _framework_of(op: Op, function: Function, name: str) -> type[Port]:
    """The port of the framework whose tensors a function takes: the first that it answers in."""
    known = [framework for framework in BRIDGES if framework in sys.modules]
    bases = [getattr(importlib.import_module(module), port) for module, port in (BRIDGES[each] for each in known)]
    raised: list[str] = []
    # NumPy first: its functions answer in another framework's arrays, too; those of another framework do not answer in NumPy's.
    for framework, base in zip(["NumPy", *known], [Port, *bases], strict=True):
        try:
            y, like = _first_answer(base(), _Method(op, function), op)
        except Exception as error:
            raised.append(f"given arrays of {framework}, {type(error).__name__}: {error}")
            continue
        if isinstance(y, type(like)):
            return base
        raised.append(f"given arrays of {framework}, it returns {type(y).__name__}")
    raise FunctionError(f"{name} cannot be called as {op.signature.replace('self, ', '')}: {'; '.join(raised)}")


def _first_answer(port: Port, method: _Method, op: Op) -> tuple[Any, Any]:
    """What a function returns in the first case that it does not skip, and a tensor of the framework."""
    skipped = Skip("it skips every case")
    for case in op.cases:
        if case.dtype == "float32":
            try:
                return _called(port, method, op, compute(case, 0).inputs, case), port.to_tensor(np.zeros(1, np.float32))
            except Skip as skip:
                skipped = skip
    raise skipped


def _called(port: Port, method: _Method, op: Op, inputs: Mapping[str, Array], case: Any) -> Any:
    """The first output of a function on a case's inputs."""
    tensors = [port.to_tensor(inputs[name]) if name in inputs else None for name in op.arguments]
    settings = {"eps": case.eps} if hasattr(case, "eps") else {}
    made = method(*tensors, **settings, **case.settings)
    return made[0] if isinstance(made, tuple) else made


def _with_dialects(port: type[Port], methods: Mapping[str, _Method]) -> type[Port]:
    """The same, that says the dialect that each function has in each dtype, where it takes no keyword for it."""
    orders: dict[str, tuple[str, ...]] = {}
    sums: dict[str, None] = {}
    offsets: dict[int, None] = {}
    asked = port()
    for op, method in methods.items():
        for dtype in DTYPES if any(constant.offered for constant in OPS[op].constants) else ():
            dialect = _dialect(asked, method, OPS[op], dtype)
            if dialect is None:
                continue
            offsets[dialect.weight_offset] = None
            orders[f"{op}/{dtype}"] = (dialect.order,)
            sums |= {dialect.sum: None} if dialect.sum else {}
    takes = {name for method in methods.values() for name in signature(method).parameters}
    port.orders = Port.orders if "order" in takes else orders
    port.features = tuple(name for name in FEATURES if name in takes)
    port.sums = Port.sums if "sum" in takes else tuple(sums)
    port.weight_offsets = Port.weight_offsets if "weight_offset" in takes else tuple(offsets) or (0,)
    return port


def _dialect(port: Port, method: _Method, op: Op, dtype: str) -> Dialect | None:
    """The dialect that has most of y in its intervals; None where the function cannot be asked.

    With a mistake it may be in none of them in one case, and give itself away in another: then all small ones are asked.
    """
    asked = [case for case in op.cases if case.dtype == dtype and case.dialect.weight_dtype == "storage"]
    shares = _shares(port, method, op, [case for case in asked if case.name == PROBE])
    if shares and not any(min(each) >= CLEAR for each in shares.values()):
        small = [case for case in asked if prod(case.shape) <= SMALL]
        names = set.intersection(*({case.name for case in small if case.dialect == dialect} for dialect in shares))
        shares = _shares(port, method, op, [case for case in small if case.name in names])
    return max(shares, key=lambda dialect: (shares[dialect].count(1.0), sum(shares[dialect])), default=None)


def _shares(port: Port, method: _Method, op: Op, cases: Iterable[Any]) -> dict[Dialect, list[float]]:
    """Of each dialect, the share of y's elements that lie in its intervals, in every case that the function can be asked."""
    shares: dict[Dialect, list[float]] = defaultdict(list)
    for case in cases:
        expected = compute(case, 0)
        try:
            y = port.to_numpy(_called(port, method, op, expected.inputs, case))
        except Exception:
            continue
        golden = expected.outputs[op.outputs[0].name]
        if y.shape == golden.value.shape:
            shares[case.dialect].append(float(np.mean(golden.admits(y.astype(np.float64)))))
    return shares
