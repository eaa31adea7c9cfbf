"""The feed-forward layer: its gate and its activations."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import reference
from conformance.mistakes.block.heads import fused
from conformance.mistakes.block.stages import Become, alters, reads
from conformance.mistakes.mistake import BLOCK, BLOCKS, GELU, SWIGLU, Mistake, all_but
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Gelu, SwiGLU
from conformance.ops.block.wrappers import After, Before, Map, Measured
from reference.feed_forward import sigmoid, silu

Array = np.ndarray
Function = Callable[[Array], Array]


@dataclass(frozen=True)
class _Sum(Measured):
    """The gate's SiLU plus up."""

    def forward(self, m: Machine, gate: Array, up: Array) -> Array:
        return m.store(silu(gate)) + up

    def vjp(self, m: Machine, dy: Array, gate: Array, up: Array) -> tuple[Array, ...]:
        return reference.swiglu_vjp(dy, gate, np.ones_like(up))[0], dy


def _gelu(x: Array) -> Array:
    return reference.gelu(x)


def _gelu_slope(x: Array) -> Array:
    return reference.gelu_vjp(np.ones_like(x), x)


def _silu_slope(x: Array) -> Array:
    return sigmoid(x) * (1 + x * sigmoid(-x))


def _scaled_slope(x: Array) -> Array:
    return sigmoid(1.702 * x) * (1 + 1.702 * x * sigmoid(-1.702 * x))


def _other_constant(x: Array) -> Array:
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044_175 * x**3))


def _other_constant_slope(x: Array) -> Array:
    share = sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044_175 * x**3))
    return share + x * 2 * share * (1 - share) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044_175 * np.square(x))


def _of_narrower(x: Array) -> Array:
    return _gelu(math.sqrt(2) * x) / math.sqrt(2)


def _slope_of_narrower(x: Array) -> Array:
    return _gelu_slope(math.sqrt(2) * x)


def _gate(activation: Function, slope: Function) -> Become:
    """Another function of the gate."""
    return alters(SwiGLU, lambda op: replace(op, activation=activation, slope=slope))


def _of_up(function: Function, slope: Function) -> Become:
    """Another function where GELU should be."""
    made = Map(function, lambda dy, x: dy * slope(x))
    return alters(Gelu, lambda op: made)


def _clamp(low: float, high: float) -> Map:
    return Map(lambda a: np.clip(a, low, high), lambda dy, a: dy * ((low <= a) & (a <= high)))


def _clamped(op: Any) -> Before:
    return Before(op, _clamp(-np.inf, LIMIT), 0)


def _both_clamped(op: SwiGLU) -> Before:
    return _clamped(Before(op, _clamp(-LIMIT, LIMIT), 1))


def has_silu(composite: Composite) -> bool:
    """Whether a gate goes through SiLU."""
    return composite.config.feed_forward == "swiglu"


def _has_geglu(composite: Composite) -> bool:
    return composite.config.feed_forward == "geglu_tanh"


LIMIT = 7.0  # gpt-oss's
EXACT_GELU = {
    f"pre_ln_block/{dtype}": "a block with an exact GELU is asked for in float32 and bfloat16"
    for dtype in all_but("float32", "bfloat16")
}
GATED_BY_GELU = dict.fromkeys(
    all_but("float32", "bfloat16"), "a block whose gate goes through GELU is asked for in float32 and bfloat16"
)
LARGE_GATES = {"pre_ln_block/float64": "a block with large gates is asked for in float32 and in half precision"}
SILU = Map(silu, lambda dy, x: dy * _silu_slope(x))
TANH = "the two formulas differ by 4.7e-4 at most, a quarter of bfloat16's roundoff for the values of order one around them"
DIGITS = "at most 2e-4 of values of order one, less than the roundoff of half precision"
MISTAKES = (
    Mistake(
        "gate_and_up_swapped",
        "the activation is that of up, not of the gate",
        {"act": reads({"gate": "up", "up": "gate"})},
        "act is gate·SiLU(up).",
        "mlx-lm#767",
        SWIGLU,
        where=lambda composite: composite.op("act", SwiGLU) is not None,
    ),
    Mistake(
        "gate_added",
        "the gate's SiLU is added to up",
        {"act": alters(SwiGLU, lambda op: _Sum())},
        "act is a sum instead of a product.",
        ops=SWIGLU,
        where=has_silu,
    ),
    Mistake(
        "up_activated_too",
        "SiLU is taken of the gate and of up",
        {"act": alters(SwiGLU, lambda op: Before(op, SILU, 1))},
        "act is SiLU(gate)·SiLU(up).",
        ops=SWIGLU,
        where=has_silu,
    ),
    Mistake(
        "product_activated",
        "SiLU is taken of the product of gate and up",
        {"act": alters(SwiGLU, lambda op: After(replace(op, activation=lambda gate: gate, slope=np.ones_like), SILU))},
        "act is SiLU(gate·up).",
        ops=SWIGLU,
    ),
    Mistake(
        "gate_and_up_interleaved",
        "one projection for gate and up is read by turns, though it is stored one after the other",
        fused("feed_forward", {"gate": lambda c: np.arange(0, 2 * c.d_ff, 2), "up": lambda c: np.arange(1, 2 * c.d_ff, 2)}),
        "gate and up have half of each other's features.",
        "planted: a checkpoint of another layout",
        BLOCKS,
        where=lambda composite: composite.has("gate"),
    ),
    Mistake(
        "gate_clamped",
        f"the gate is at most {LIMIT:g}",
        {"act": alters(SwiGLU, _clamped)},
        "act is too small where the gate is larger; ordinary gates hide it.",
        "planted: the clamp of another model",
        ("swiglu", *BLOCK),
        LARGE_GATES,
    ),
    Mistake(
        "gate_and_up_clamped",
        f"the gate is at most {LIMIT:g}, and up lies between -{LIMIT:g} and {LIMIT:g}",
        {"act": alters(SwiGLU, _both_clamped)},
        "act is too small where the gate is larger, or up; ordinary ones hide it.",
        "planted: the clamp of another model",
        ("swiglu", *BLOCK),
        LARGE_GATES,
    ),
    Mistake(
        "gelu_for_silu",
        "the gate goes through GELU",
        {"act": _gate(_gelu, _gelu_slope)},
        "act is too small where the gate is negative, too large where it is positive.",
        "planted: GeGLU, as other models have it",
        SWIGLU,
        where=has_silu,
    ),
    Mistake(
        "silu_for_gelu_of_the_gate",
        "the gate goes through SiLU where GELU is asked for",
        {"act": _gate(silu, _silu_slope)},
        "act is off by up to 0.2 times up.",
        "planted: SwiGLU, as other models have it",
        BLOCK,
        GATED_BY_GELU,
        where=_has_geglu,
    ),
    Mistake(
        "gelu_of_the_gate_by_erf",
        "the gate's GELU is by the error function where the hyperbolic tangent is asked for",
        {"act": _gate(_gelu, _gelu_slope)},
        "act is off by at most 4.7e-4 times up, where the gate is near 2.3 and -2.3.",
        "unsloth's report on Gemma",
        BLOCK,
        GATED_BY_GELU,
        needs_taps={"pre_ln_block/bfloat16": TANH},
        where=_has_geglu,
    ),
    Mistake(
        "relu_for_silu",
        "the gate goes through ReLU",
        {"act": _gate(lambda x: np.maximum(x, 0.0), lambda x: (x > 0).astype(np.float64))},
        "act is zero where the gate is negative.",
        "planted: ReGLU, as other models have it",
        SWIGLU,
    ),
    Mistake(
        "sigmoid_for_silu",
        "the gate goes through a sigmoid",
        {"act": _gate(sigmoid, lambda x: sigmoid(x) * sigmoid(-x))},
        "act lacks a factor of the gate.",
        "planted: GLU as it was first",
        SWIGLU,
    ),
    Mistake(
        "silu_of_1.702",
        "the gate goes through x·sigmoid(1.702 x)",
        {"act": _gate(lambda x: x * sigmoid(1.702 * x), _scaled_slope)},
        "act is off where the gate is neither small nor large.",
        "planted: the sigmoid that stands for GELU",
        SWIGLU,
    ),
    Mistake(
        "silu_missing",
        "the gate is not activated",
        {"act": _gate(lambda x: x, np.ones_like)},
        "act is gate·up.",
        ops=SWIGLU,
    ),
    Mistake(
        "gelu_of_the_other_formula",
        "GELU by a hyperbolic tangent where the error function is asked for, or the reverse",
        {"act": alters(Gelu, lambda op: replace(op, approximate=not op.approximate))},
        "act is off by at most 4.7e-4, near 2.3 and -2.3.",
        "unsloth's report on Gemma",
        GELU,
        needs_taps={"pre_ln_block/bfloat16": TANH},
    ),
    Mistake(
        "gelu_constant_mistyped",
        "GELU's tanh has 0.044175 for 0.044715",
        {"act": _of_up(_other_constant, _other_constant_slope)},
        "act is off by a hundredth of the cubic term.",
        "planted: two digits exchanged",
        GELU,
        needs_taps={"pre_ln_block/bfloat16": DIGITS, "pre_ln_block/float16": DIGITS},
        where=lambda composite: composite.config.feed_forward == "gelu_tanh",
    ),
    Mistake(
        "gelu_without_root_of_2",
        "GELU's error function is taken of x, not of x over the root of two",
        {"act": _of_up(_of_narrower, _slope_of_narrower)},
        "act is too large where x is positive, too small where it is negative.",
        "planted: erf for the normal distribution's share",
        GELU,
        EXACT_GELU,
        where=lambda composite: (op := composite.op("act", Gelu)) is not None and not op.approximate,
    ),
    Mistake(
        "gelu_by_sigmoid",
        "GELU is x·sigmoid(1.702 x)",
        {"act": _of_up(lambda x: x * sigmoid(1.702 * x), _scaled_slope)},
        "act is off by up to 0.02.",
        "planted: quick GELU, as other models have it",
        GELU,
    ),
    Mistake(
        "relu_for_gelu",
        "ReLU stands for GELU",
        {"act": _of_up(lambda x: np.maximum(x, 0.0), lambda x: (x > 0).astype(np.float64))},
        "act is zero where x is negative.",
        ops=GELU,
    ),
    Mistake("silu_for_gelu", "SiLU stands for GELU", {"act": _of_up(silu, _silu_slope)}, "act is off by up to 0.2.", ops=GELU),
)
