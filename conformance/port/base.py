"""What the author of a Python port writes.

A port is a class with a method for every op it has, conversions to and from its framework's tensors, and one hook for
gradients. `conformance serve NAME` turns it into a process that speaks the protocol.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from conformance.numbers.rounding import DTYPES
from conformance.ops.table import OPS
from conformance.port.calling import arranged, differentiated, named, placed, takes
from conformance.port.clock import Clock, Step
from conformance.port.layouts import strided
from conformance.port.protocol import Answer, Call, Hello, first_match
from conformance.question.case import is_split, layouts
from reference import BlockConfig

NOT_WRITTEN = "not written yet"
"""Why an op of a port that has just been begun skips a case; a report says what to write next."""


ALIASED = "aliased"  # the layout of a tensor that shares its memory with x


class Skip(Exception):
    """Raised by a port for a case it does not claim to support; the reason is reported."""


class Port(Clock):
    """The base of a port.

    An op is supported if the subclass has a method of its name:

        rms_norm(x, weight, *, eps) -> y
        layer_norm(x, weight, bias, *, eps) -> y
        add_rms_norm(x, residual, weight, *, eps, sum) -> (y, residual_out)
        add_layer_norm(x, residual, weight, bias, *, eps, sum) -> (y, residual_out)
        gated_rms_norm(x, gate, weight, *, eps, norm_before_gate, activation, group_size) -> y; group_size if there are groups
        quantised_rms_norm(x, weight, scale, *, eps, y, quantised_dtype, scaling, scale_ub) -> (q, scale)
        quantised_add_rms_norm(x, residual, weight, scale, *, eps, y, quantised_dtype, scaling, scale_ub, sum) -> (q, scale,
            residual_out); where a scale is given there is none to return; scale_ub is passed where there is one
        batch_norm(x, weight, bias, *, running_mean, running_var, eps, training, momentum, unbiased) -> y, or in training
            (y, running_mean, running_var); momentum and unbiased are passed in training alone
        rope(x, *, position, base, interleaved, rotary_features) -> y; rotary_features if not all are turned
        attention(q, k, v, key_mask, sink, *, causal, window, softcap, attention_scale) -> y; what follows the mask, or causal,
            if it is there
        swiglu(gate, up) -> y
        gelu(x, *, approximate) -> y
        pre_ln_block(x, parameters, k_cache, v_cache, key_mask, *, config, position) -> out
        pre_ln_stack(x, parameters, key_mask, *, config, position, n_layers) -> out

    Tensors are what `to_tensor` made; an absent one is None. A norm that can do both takes `weight_offset`, a float to add to
    the weight, and `order`, which is passed in half precision only: give it a default. One that does not take `order` casts
    on one side of the weight, and is asked in half precision once `orders` says on which: for all, or by globs of an op and a
    dtype, as in `{"rms_norm/float16": ("cast_then_scale",), "*": ("scale_then_cast",)}`, where the first that fits counts and
    what none fits has no order. Likewise `sum`, what a norm of a sum reads, is passed in half precision only; one that does not
    take it is asked once `sums` says which it has; so are `y`, what is quantised, and `ys`. A norm that takes `group_size` by
    that name, None by default, is asked for groups, and no other. `features` says what attention, rope and the
    blocks have that plain ones have not, of `reference.FEATURES`. `parameters` are a dict by name, and `config` a
    `reference.BlockConfig`, which can be hashed; a key mask has ones and zeros. With `taps` a block's method is also called
    with `taps=True`, and then returns out and a dict of its intermediates.
    `splits` says of what it can be given a part, on several ranks: "rows", "features". `self.call` is what is being asked, with
    `rank`, `ranks`, what is `split`, and the `shape` of the whole x.
    `self.device` and `self.jit` say where and how to run; `compiles` says whether the port compiles where `self.jit` is true.
    `overwrites` names the inputs that its kernels overwrite on purpose, such as `("dy",)`: its values are judged all the same,
    and the report says so. Three mappings of globs of case ids to the reason say what is known: `expected`, which fail (one
    that passes is a failure); `may_fail`, which pass or fail, as chance has it (neither is a failure); `skips`, which are not
    to be answered at all.
    """

    name = "port"
    dtypes: tuple[str, ...] = DTYPES
    orders: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ("cast_then_scale", "scale_then_cast")
    weight_offsets: tuple[int, ...] = (0, 1)
    sums: tuple[str, ...] = ("rounded", "unrounded", "float32")
    ys: tuple[str, ...] = ("rounded", "unrounded")
    features: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    taps: bool = False
    compiles: bool = False
    overwrites: tuple[str, ...] = ()
    expected: Mapping[str, str] = MappingProxyType({})
    may_fail: Mapping[str, str] = MappingProxyType({})
    skips: Mapping[str, str] = MappingProxyType({})
    config: int | None = None
    """Which of `configs` its kernels are to take; None where they choose themselves."""
    call: Call

    @classmethod
    def configs(cls) -> tuple[str, ...]:
        """What its autotuned kernels choose from, in words: a sweep takes one after the other."""
        return ()

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        self.device = device
        self.jit = jit

    def versions(self) -> dict[str, str]:
        """The versions a report should name, such as `{"torch": torch.__version__}`."""
        return {}

    def to_tensor(self, array: np.ndarray) -> Any:
        """A NumPy array (bfloat16 as ml_dtypes) to a tensor of the same dtype on `self.device`: here, the array itself."""
        return array

    def to_numpy(self, tensor: Any) -> np.ndarray:
        """A tensor to a NumPy array of the same dtype and shape."""
        return np.asarray(tensor)

    def lay_out(self, tensor: Any, layout: str) -> Any:
        """The same values, otherwise laid out: permuted, sliced, strided, expanded, at_offset, one_number,
        aliased: another tensor in the memory of this one, or sharded_rows, sharded_features, sharded_both: one tensor in parts.

        Raise `Skip`, or leave it to this method, for what the framework does not have; the case is skipped.
        """
        if is_split(layout):
            raise Skip("no tensors that are split over devices")
        if not isinstance(tensor, np.ndarray):
            raise Skip("no strides to lay tensors out with")
        if (laid_out := strided(tensor, layout)) is None:
            raise Skip(f"no layout {layout}")
        return laid_out

    def evaluate(self, function: Any, inputs: tuple, constants: dict[str, Any]) -> Any:
        """y alone, where no gradients are asked for; compiled, where `self.jit` says so."""
        return function(*inputs, **constants)

    def gradients(self, function: Callable[..., Any], tensors: list[Any], dy: Any) -> tuple[Any, Sequence[Any]]:
        """y = function(*tensors), and the gradients of ⟨y, dy⟩ for each of the tensors.

        Of an op that is given several cotangents y and dy are tuples: what the function returns, and a cotangent for each.
        Leave it out, and only y is judged.
        """
        raise Skip(f"no gradients: {type(self).__name__} does not define them")

    def vjp(self, function: Any, inputs: tuple, dy: Any, constants: dict[str, Any]) -> tuple[Any, tuple]:
        """y = function(*inputs, **constants), and its gradients for every input (None for a None), by `gradients`.

        Of an op with several outputs that may be given a cotangent, `dy` is a tuple, in their order; None for an absent one.
        To be overridden where functions are compiled, and kept; where a function returns a tuple, of which only the first is
        differentiated, it may then return the whole of it.
        """
        cotangents = dy if isinstance(dy, tuple) else (dy,)
        names = [(place, name) for place, each in enumerate(inputs) for name in (each if isinstance(each, dict) else [None])]
        present = [(place, name) for place, name in names if inputs[place] is not None]

        def of_tensors(*tensors: Any) -> Any:
            return differentiated(function(*placed(inputs, present, tensors), **constants), cotangents)

        tensors = [inputs[place] if name is None else inputs[place][name] for place, name in present]
        y, gradients = self.gradients(of_tensors, tensors, differentiated(cotangents, cotangents))
        if any(cotangent is None for cotangent in cotangents):  # then y is a part of what the function returns
            y = self.evaluate(function, inputs, constants)
        return y, placed(inputs, present, gradients)

    def pullback(self, function: Any, inputs: tuple, dy: Any, constants: dict[str, Any]) -> tuple[Any, Step]:
        """y, and the step that returns `vjp`'s gradients from it, to be timed alone; where the two passes are one, a `Skip`."""
        raise Skip("no backward pass apart from the forward pass")

    def tap(self, function: Any, inputs: tuple, constants: dict[str, Any]) -> dict[str, Any]:
        """A block's intermediates by name, each as it is fed to what reads it."""
        return self.evaluate(function, inputs, constants | {"taps": True})[1]

    def vjp_and_taps(
        self, function: Any, inputs: tuple, dy: Any, constants: dict[str, Any]
    ) -> tuple[Any, tuple, dict[str, Any]]:
        """What `vjp` and `tap` return; a framework may have them at once."""
        return *self.vjp(function, inputs, dy, constants), self.tap(function, inputs, constants)

    def hello(self) -> Hello:
        """What this port says of itself."""
        orders = self.orders if self._tells("order", self.orders is not Port.orders) else ()
        by_op_and_dtype = isinstance(orders, Mapping)
        return Hello(
            name=self.name,
            ops=tuple(op for op in OPS if callable(getattr(self, op, None))),
            dtypes=self.dtypes,
            orders=() if by_op_and_dtype else orders,
            weight_offsets=self.weight_offsets if self._tells("weight_offset", 0 not in self.weight_offsets) else (0,),
            gradients=(type(self).vjp, type(self).gradients) != (Port.vjp, Port.gradients),
            device=self.device,
            versions=self.versions(),
            expected=dict(self.expected),
            taps=self.taps,
            compiles=self.compiles,
            overwrites=self.overwrites,
            orders_by=dict(orders) if by_op_and_dtype else {},
            may_fail=dict(self.may_fail),
            sums=self.sums if self._tells("sum", self.sums is not Port.sums) else (),
            ys=self.ys if self._tells("y", self.ys is not Port.ys) else (),
            groups=self._tells("group_size", declared=False),
            features=self.features,
            splits=self.splits,
        )

    def answer(self, call: Call, tensors: dict[str, np.ndarray]) -> Answer:
        """Answer one case: convert, lay out, run, and see whether the inputs are what they were."""
        self.call = call
        given = {name: self.to_tensor(array) for name, array in tensors.items()}
        laid_out = dict.fromkeys(given, call.layout) if is_split(call.layout) else layouts(call.layout)
        for name, layout in laid_out.items():
            if name in given:
                given[name] = self._laid_out(given["x" if layout == ALIASED else name], layout)
        before = {name: bits(self.to_numpy(tensor)) for name, tensor in given.items()}
        self.collectives = None
        outputs = self.run(call, given)
        order = (*OPS[call.op].arguments, *given)
        overwrote = tuple(n for n in sorted(given, key=order.index) if bits(self.held(given[n])) != before[n])
        return Answer(outputs, overwrote, collectives=self.collectives)

    def run(self, call: Call, given: dict[str, Any]) -> dict[str, np.ndarray]:
        """Call the op, or its `vjp`, on tensors laid out as asked, and convert what it returns, with the taps if asked."""
        if (reason := first_match(call.case, self.skips)) is not None:
            raise Skip(reason)
        function, inputs, dy, constants = self.arguments(call, given)
        taps: dict[str, Any] = {}
        if not call.gradients:
            y, gradients = self.evaluate(function, inputs, constants), tuple[Any, ...]()
            taps = self.tap(function, inputs, constants) if call.taps else {}
        elif call.taps:
            y, gradients, taps = self.vjp_and_taps(function, inputs, dy, constants)
        else:
            y, gradients = self.vjp(function, inputs, dy, constants)
        if len(call.asked) - len(call.gradients) > 1 and not isinstance(y, tuple):
            y = (y, *self.evaluate(function, inputs, constants)[1:])
        outputs = named(call, given, y, gradients) | {f"tap.{name}": tap for name, tap in taps.items()}
        return {name: self.to_numpy(tensor) for name, tensor in outputs.items()}

    def arguments(self, call: Call, given: dict[str, Any]) -> tuple[Any, tuple, Any, dict[str, Any]]:
        """The op's method, its tensors by place, the cotangent or a tuple of them, and the keywords."""
        inputs, dy, others = arranged(call, given)
        return getattr(self, call.op), inputs, dy, self.constants_of(call) | others

    def constants_of(self, call: Call) -> dict[str, Any]:
        """What an op is called with besides tensors."""
        function, constants = getattr(self, call.op), dict[str, Any]()
        for constant in OPS[call.op].constants:
            match name := constant.name:
                case "eps":
                    constants["eps"] = call.eps
                case "order":
                    if call.order != "either_order" and takes(function, constant):
                        constants["order"] = call.order
                case "sum" | "y":
                    if name in call.settings and takes(function, constant):
                        constants[name] = call.settings[name]
                case "group_size" if name in call.settings and not takes(function, constant):
                    raise Skip("no groups")
                case "weight_offset":
                    if self.weight_offsets != (0,) and takes(function, constant):
                        constants["weight_offset"] = float(call.weight_offset)
                    elif call.weight_offset and 0 in self.weight_offsets:
                        raise Skip(f"no weight offset {call.weight_offset}")
                case "config":
                    constants["config"] = BlockConfig(**call.settings["config"])
                case _:
                    constants |= {name: call.settings[name]} if name in call.settings else {}
        return constants

    def _tells(self, keyword: str, declared: bool) -> bool:
        """Whether a port says what it does, or an op that may be given the keyword takes it, and so does either."""
        offers = [(getattr(self, op.name, None), each) for op in OPS.values() for each in op.constants if each.name == keyword]
        return declared or any(takes(function, constant) for function, constant in offers if callable(function))

    def _laid_out(self, tensor: Any, layout: str) -> Any:
        """What `lay_out` returns; one that knows nothing of a layout may return nothing."""
        laid_out = self.lay_out(tensor, layout)
        if laid_out is None:
            raise Skip(f"no layout {layout}")
        return laid_out

    def held(self, tensor: Any) -> np.ndarray | None:
        """What a tensor holds; None where it holds nothing any more, as an array that JAX was told to donate."""
        try:
            return self.to_numpy(tensor)
        except Exception:
            return None


def bits(array: np.ndarray | None) -> bytes | None:
    """The bytes of an array, if there is one."""
    return None if array is None else array.tobytes()
