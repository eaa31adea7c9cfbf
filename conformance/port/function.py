"""A function as a port: `conformance run my_norms.py:my_rms_norm --op rms_norm`.

What an author of a port declares is found out here by calling the function: whose tensors it takes, and which dialect it has.
It is run as it is written; a function that is compiled (`torch.compile(f)`, `jax.jit(f)`) is judged compiled.
"""

import importlib
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, getsourcefile, signature, unwrap
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from conformance.numbers.rounding import DTYPES, round_to
from conformance.ops.golden import compute
from conformance.ops.op import Golden, Op
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
ANY_ORDER = ("cast_then_scale", "scale_then_cast")
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

    Raises `FunctionError` where a parameter stays without a value, or no framework at hand can call the first of them.
    """
    methods = {op: _Method(OPS[op], function, name) for op, function in functions.items()}
    (op, function), *_ = functions.items()
    base = _framework_of(OPS[op], function, methods[op], name)
    own: dict[str, Any] = {**dict.fromkeys(OPS), **methods}  # None: an op of the base is not the author's
    if not all(_is_differentiated(base(), method, OPS[op]) for op, method in methods.items()):
        own |= {"vjp": Port.vjp, "gradients": Port.gradients}  # a kernel without a backward pass: y alone is judged
    made = type("FunctionPort", (_AsWritten, base), {**own, "name": name, "taps": False, "compiles": False})
    return _with_dialects(made, methods)


class _AsWritten(Port):
    """A port that compiles nothing, and lets the function do so."""

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=True)
        self.jit = False


class _Method:
    """A function, called as a port's method is: tensors by place, eps under the name that it has for it.

    Where all its tensors have the op's names, they go by these. Raises `FunctionError` for a parameter that has no value.
    """

    def __init__(self, op: Op, function: Function, name: str) -> None:
        self._op, self._function = op, function
        constants = {constant.name for constant in op.constants} | {tensor.name for tensor in op.tensors} - {*op.arguments}
        parameters = list(signature(function).parameters.values())
        self._keywords = {each.name for each in parameters}
        self._eps = next((each.name for each in parameters if each.name in EPS), "")
        by_place = [each.name for each in parameters if each.kind in POSITIONAL and each.name not in {*constants, *EPS}]
        any_ = any(each.kind is Parameter.VAR_POSITIONAL for each in parameters)
        taken = by_place[: len(op.arguments)]
        if set(taken) <= set(op.arguments) and not any_:
            self._places = tuple(op.arguments.index(each) for each in taken)
        else:
            self._places = tuple(range(len(op.arguments) if any_ else len(taken)))
        given, explicit = {*constants, *EPS, *taken}, (*POSITIONAL, Parameter.KEYWORD_ONLY)
        needed = [each.name for each in parameters if each.default is Parameter.empty and each.kind in explicit]
        if without := [each for each in needed if each not in given]:
            raise FunctionError(
                f"{name} has a parameter {without[0]}, and {_called_as(op)} gives it no value: "
                f"{'' if self._eps else 'name it eps, or '}give it a default"
            )
        keywords = [Parameter(each, Parameter.KEYWORD_ONLY) for each in constants & self._keywords]
        self.__signature__ = signature(function).replace(parameters=keywords, return_annotation=Any)

    def __call__(self, *tensors: Any, **constants: Any) -> Any:
        for place, (name, tensor) in enumerate(zip(self._op.arguments, tensors, strict=False)):
            if tensor is not None and place not in self._places:
                raise Skip(f"the function takes no {name}")
        if self._eps and "eps" in constants:
            constants[self._eps] = constants.pop("eps")
        given = {name: value for name, value in constants.items() if name in self._keywords}
        try:
            return self._function(*(tensors[place] for place in self._places if place < len(tensors)), **given)
        except Exception as error:
            absent = [name for name, tensor in zip(self._op.arguments, tensors, strict=False) if tensor is None]
            if not absent:
                raise
            raise Skip(f"the function cannot do without {absent[0]}: {type(error).__name__}: {error}") from None


def _framework_of(op: Op, function: Function, method: _Method, name: str) -> type[Port]:
    """The port of the framework whose tensors a function takes: the first that it answers in.

    Raises `FunctionError` where it answers in none, or not in as many outputs as the op has, and in their shapes.
    """
    known = [framework for framework in BRIDGES if framework in sys.modules]
    bases = [getattr(importlib.import_module(module), port) for module, port in (BRIDGES[each] for each in known)]
    raised: dict[str, str] = {}
    returned: dict[str, str] = {}
    # NumPy first: its functions answer in another framework's arrays, too; those of another framework do not answer in NumPy's.
    for framework, base in zip(["NumPy", *known], [Port, *bases], strict=True):
        port = base()
        try:
            made, golden = _first_answer(port, method, op)
        except Exception as error:
            raised[framework] = _said(error, function)
            continue
        y = made[0] if isinstance(made, tuple) else made
        if isinstance(y, type(port.to_tensor(np.zeros(1, np.float32)))):
            if wrong := _wrong_answer(op, made, golden):
                raise FunctionError(f"{name}, called as {_called_as(op)}, {wrong}")
            return base
        returned[framework] = "it returns None" if y is None else f"it returns {type(y).__name__}, which is no array"
    globals_ = getattr(unwrap(function), "__globals__", {}).values()
    imported = {value.__name__.partition(".")[0] for value in globals_ if isinstance(value, ModuleType)}
    own = {framework: words for framework, words in raised.items() if framework in imported}
    told: dict[str, list[str]] = defaultdict(list)
    for framework, words in (returned or own or raised).items():
        told[words].append(framework)
    tried = "; ".join(f"given arrays of {' or '.join(frameworks)}, {words}" for words, frameworks in told.items())
    raise FunctionError(f"{name} cannot be called as {_called_as(op)}: {tried}")


def _called_as(op: Op) -> str:
    return op.signature.replace("self, ", "")


def _said(error: Exception, function: Function) -> str:
    """What a function raised, in one line, with the last line of its own file that was running."""
    words = (str(error).splitlines() or [""])[0]
    if isinstance(error, Skip):
        return words
    try:
        source = getsourcefile(unwrap(function))
    except TypeError:
        source = None
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if source and frame.filename == source]
    where = f" ({Path(source).name}, line {lines[-1]})" if source and lines else ""
    return f"{type(error).__name__}: {words}{where}"


def _first_answer(port: Port, method: _Method, op: Op) -> tuple[Any, Golden]:
    """What a function returns in the first case that it does not skip, and what is expected of it."""
    skipped = Skip("it skips every case")
    for case in op.cases:
        if case.dtype == "float32":
            golden = compute(case, 0)
            try:
                return _called(port, method, op, golden), golden
            except Skip as skip:
                skipped = skip
    raise skipped


def _wrong_answer(op: Op, made: Any, golden: Golden) -> str:
    """What is wrong with the number of a function's outputs, or their shapes; empty where nothing is."""
    outputs = made if isinstance(made, tuple) else (made,)
    names = [output.name for output in op.outputs if output.name in golden.outputs]
    if len(outputs) != len(names):
        return f"returns {len(outputs)} outputs, and not {len(names)}: {', '.join(names)}"
    for name, output in zip(names, outputs, strict=True):
        shape, right = tuple(getattr(output, "shape", ())), golden.outputs[name].value.shape
        if shape != right:
            return f"returns {name} of shape {list(shape)}, and not {list(right)}, where x is {list(golden.inputs['x'].shape)}"
    return ""


def _is_differentiated(port: Port, method: _Method, op: Op) -> bool:
    """Whether a function's y has a gradient. PyTorch says so; elsewhere it is asked, and what it raises is reported."""
    to_tensor, port.to_tensor = port.to_tensor, lambda array: _leaf(to_tensor(array))
    try:
        made, _ = _first_answer(port, method, op)
    except Exception:
        return True
    return any(getattr(y, "requires_grad", True) for y in (made if isinstance(made, tuple) else (made,)))


def _leaf(tensor: Any) -> Any:
    return tensor.requires_grad_() if hasattr(tensor, "requires_grad_") and tensor.is_floating_point() else tensor


def _called(port: Port, method: _Method, op: Op, golden: Golden) -> Any:
    """What a function returns on a case's inputs."""
    inputs, case = golden.inputs, golden.case
    tensors = [port.to_tensor(inputs[name]) if name in inputs else None for name in op.arguments]
    settings = {"eps": case.eps} if hasattr(case, "eps") else {}
    return method(*tensors, **settings, **case.settings)


def _with_dialects(port: type[Port], methods: Mapping[str, _Method]) -> type[Port]:
    """The same, that says the dialect that each function has in each dtype, where it takes no keyword for it."""
    orders: dict[str, tuple[str, ...]] = {}
    sums: dict[str, None] = {}
    offsets: dict[int, None] = {}
    asked = port()
    for op, method in methods.items():
        for dtype in DTYPES if any(constant.offered for constant in OPS[op].constants) else ():
            dialect = _dialect(asked, method, OPS[op], dtype)
            if dialect is None:  # it skips or fails: let it be asked, so that the report says why
                orders[f"{op}/{dtype}"] = ANY_ORDER
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
            made = _called(port, method, op, expected)
            y = port.to_numpy(made[0] if isinstance(made, tuple) else made)
        except Exception:
            continue
        golden = expected.outputs[op.outputs[0].name]
        if y.shape == golden.value.shape:
            rounded = round_to(y.astype(np.float64), golden.dtype)  # y in a wider dtype is a mistake, and no dialect
            shares[case.dialect].append(float(np.mean(golden.admits(rounded))))
    return shares
