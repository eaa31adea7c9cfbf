"""The gate of a norm that has one: where it multiplies, its activation, what is rounded on the way, and where gradients go.

In a change `gated.…` is a part of what the norm has for its gate: its activation `act`, with the derivative; the `product`,
with its derivatives; and the functions of the product's gradient that say what x, the gate and the weight are passed.
"""

from collections.abc import Callable, Mapping

import numpy as np

from conformance.mistakes.mistake import GATED, Change, Mistake, Of, everywhere
from conformance.mistakes.norms.residual import NO_NARROWER
from conformance.numbers.rounding import FORMATS, round_to
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.stages import Gated
from conformance.ops.norms.steps import NOTHING
from reference.gated_norm import sigmoid, silu

Array = np.ndarray

TWO_ORDERS = "mamba_ssm: RMSNormGated has norm_before_gate=True by default, Mamba2 False; Qwen3-Next and fla norm first"
QUICK = 1.702  # of GELU's approximation by a sigmoid


def norm_first(norm: Norm) -> bool:
    """Whether the norm comes before the gate."""
    return norm.gated is not None and norm.gated.norm_first


def gate_first(norm: Norm) -> bool:
    """Whether the gate comes before the norm."""
    return not norm_first(norm)


def _is_silu(norm: Norm) -> bool:
    return norm.gated is not None and norm.gated.is_silu


def _is_sigmoid(norm: Norm) -> bool:
    return not _is_silu(norm)


def acts(make: Callable[[Norm, Array, Array, Array], tuple[Array, Array]]) -> Change:
    """Another activation and derivative, made of the gate and of the true two."""

    def act(norm: Norm) -> object:
        gated = norm.gated
        assert gated
        return lambda gate: make(norm, gate, *gated.act(gate))

    return {"gated.act": Of(act)}


def _activation_of_x(gated: Gated, x: Array) -> tuple[Array, Array, Array, Array]:
    a, slope = gated.act(x)
    return a * gated.gate, slope * gated.gate, a, np.ones_like(a)


def _overflowing(norm: Norm, gate: Array, a: Array, slope: Array) -> tuple[Array, Array]:
    """e^g / (1 + e^g), infinity over infinity where e^g is too large."""
    overflows = gate > np.log(FORMATS[norm.case.dtype].compute.largest)
    return np.where(overflows, np.nan, a), np.where(overflows, np.nan, slope)


def _by_tanh(norm: Norm, gate: Array, a: Array, slope: Array) -> tuple[Array, Array]:
    """(1 + tanh(g/2)) / 2, which cancels where tanh is near −1."""
    tanh = round_to(np.tanh(gate.astype(np.float64) / 2), FORMATS[norm.case.dtype].compute_dtype).astype(gate.dtype)
    share = (1 + tanh) / 2
    if _is_silu(norm):
        return gate * share, share * (1 + gate * (1 - share))
    return share, share * (1 - share)


def _quick(norm: Norm, gate: Array, a: Array, slope: Array) -> tuple[Array, Array]:
    value, its_slope = silu(QUICK * gate)
    return value / QUICK, its_slope


def of_gate(
    id_: str,
    sentence: str,
    change: Change,
    effect: str,
    evidence: str = "planted: a formula taken from another model",
    *,
    half: bool = False,
    hidden: Mapping[str, str] = NOTHING,
    where: Callable[[Norm], bool] = everywhere,
) -> Mistake:
    """A mistake of a gate; `half`: only where the storage dtype is narrower than the compute dtype."""
    return Mistake(id_, sentence, change, effect, evidence, GATED, hidden=NO_NARROWER if half else hidden, where=where)


def _of_gradient(
    id_: str,
    sentence: str,
    change: Change,
    effect: str = "That gradient alone is wrong.",
    evidence: str = "a hand-written backward",
    *,
    where: Callable[[Norm], bool] = everywhere,
) -> Mistake:
    return Mistake(id_, sentence, change, effect, evidence, GATED, where=where)


FORWARD = (
    of_gate(
        "gate_and_norm_swapped",
        "the gate multiplies before the norm where it should after it, or the other way round",
        {"gated.norm_first": Of(lambda norm: not norm.gated.norm_first)},
        "y is another function: a checkpoint of the one is useless in the other.",
        TWO_ORDERS,
    ),
    of_gate(
        "gate_left_out",
        "there is no gate",
        acts(lambda norm, gate, a, slope: (np.ones_like(a), 0 * slope)),
        "y is the plain norm, and dgate is zero.",
        "planted: an optional argument that is not passed on",
    ),
    of_gate(
        "activation_left_out",
        "the gate multiplies as it is, without its activation",
        acts(lambda norm, gate, a, slope: (gate, np.ones_like(slope))),
        "y is another function; large gates hide it where the activation is SiLU.",
    ),
    of_gate(
        "activation_of_x",
        "the activation is that of what the gate multiplies, not of the gate",
        {"gated.product": _activation_of_x},
        "y is another function.",
        "planted: two pointers in the other order, as SwiGLU has them",
    ),
    of_gate(
        "gate_sigmoid_for_silu",
        "the activation of the gate is the sigmoid, where SiLU is asked for",
        {"gated.act": sigmoid},
        "y lacks a factor of the gate.",
        where=_is_silu,
    ),
    of_gate(
        "gate_silu_for_sigmoid",
        "the activation of the gate is SiLU, where the sigmoid is asked for",
        {"gated.act": silu},
        "y has a factor of the gate too many.",
        where=_is_sigmoid,
    ),
    of_gate(
        "silu_of_1.702_gate",
        "SiLU's sigmoid is of 1.702 times the gate",
        acts(_quick),
        "y is off by up to a sixth of the gate; large gates hide it.",
        "planted: quick GELU, as CLIP has it, for SiLU",
        where=_is_silu,
    ),
    of_gate(
        "sigmoid_overflows",
        "the sigmoid is e^g / (1 + e^g), infinity over infinity where the gate is large",
        acts(_overflowing),
        "A gate beyond 88, or beyond 709 in float64, makes a NaN.",
        "planted: a sigmoid by the textbook",
    ),
    of_gate(
        "sigmoid_by_tanh",
        "the sigmoid is (1 + tanh(g/2)) / 2, which cancels where the gate is negative",
        acts(_by_tanh),
        "Where the gate is below minus ten or so no digit of y is right.",
        "a sigmoid by tanh, as XLA once had it and units with a tanh have",
    ),
)

GRADIENTS = (
    _of_gradient("dgate_zero", "dgate is not computed", acts(lambda norm, gate, a, slope: (a, 0 * slope)), "dgate is zero."),
    _of_gradient(
        "dgate_without_derivative",
        "dgate lacks the derivative of the activation",
        acts(lambda norm, gate, a, slope: (a, np.ones_like(slope))),
        "dgate alone is wrong; large gates hide it where the activation is SiLU.",
    ),
    _of_gradient(
        "dgate_of_activation",
        "dgate has the activation for its derivative",
        acts(lambda norm, gate, a, slope: (a, a)),
    ),
    _of_gradient(
        "dgate_of_sigmoid",
        "dgate has the derivative of the sigmoid for that of SiLU",
        acts(lambda norm, gate, a, slope: (a, sigmoid(gate)[1])),
        where=_is_silu,
    ),
    _of_gradient(
        "dgate_of_share",
        "dgate has the sigmoid for the derivative of SiLU: the gate is taken for a constant where it is its factor",
        acts(lambda norm, gate, a, slope: (a, sigmoid(gate)[0])),
        "dgate alone is wrong; large gates hide it.",
        where=_is_silu,
    ),
    _of_gradient(
        "dgate_recovered_from_y",
        "dgate is made of y, divided by the activation of the gate",
        acts(lambda norm, gate, a, slope: (a, np.where(a == 0, np.nan, slope))),
        "dgate is NaN where the gate is zero, or the sigmoid is.",
        "planted: a backward that saves y alone",
    ),
    _of_gradient(
        "dgate_without_weight",
        "dgate lacks the weight of the norm",
        {"gated.to_gate": Of(lambda norm: lambda d, z: d * (z / norm.weight.astype(d.dtype)))},
        "dgate alone is wrong; a weight of one hides it.",
        where=norm_first,
    ),
    _of_gradient(
        "dgate_not_through_the_norm",
        "dgate takes dy for the gradient of what the norm reads",
        {"gated.to_gate": Of(lambda norm: lambda ds, x: norm.dy * x)},
        where=gate_first,
    ),
    _of_gradient(
        "dx_without_gate",
        "dx lacks the gate",
        {"gated.to_x": lambda d, a: d},
    ),
    _of_gradient(
        "dx_without_activation",
        "dx has the gate as it is, without its activation",
        {"gated.to_x": Of(lambda norm: lambda d, a: d * norm.gated.gate)},
        "dx alone is wrong; large gates hide it where the activation is SiLU.",
    ),
    _of_gradient(
        "dweight_without_gate",
        "dweight lacks the gate",
        {"gated.to_weight": lambda d, a: d},
        where=norm_first,
    ),
)

MISTAKES = (*FORWARD, *GRADIENTS)
