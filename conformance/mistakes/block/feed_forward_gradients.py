"""Mistakes in the backward pass of the feed-forward layer."""

from collections.abc import Callable

import numpy as np

import reference
from conformance.mistakes.block.feed_forward import has_silu
from conformance.mistakes.block.gradients import EXACT, Cotangents, made_by, scales
from conformance.mistakes.block.stages import Become, pulls
from conformance.mistakes.mistake import BLOCKS, GELU, SWIGLU, Mistake
from conformance.ops.block.primitives import Gelu, SwiGLU
from reference.feed_forward import sigmoid, silu


def _without_up(op: SwiGLU) -> Callable[..., Cotangents]:
    return lambda dy, gate, up: (dy * op.slope(gate), dy * op.activation(gate))


def _up_without_silu(op: SwiGLU) -> Callable[..., Cotangents]:
    return lambda dy, gate, up: (dy * up * op.slope(gate), dy * gate)


def _gated(make: Callable[[SwiGLU], Callable[..., Cotangents]]) -> Become:
    return made_by(SwiGLU, make)


def _gelu(make: Callable[[Gelu], Callable[..., Cotangents]]) -> Become:
    return made_by(Gelu, make)


def _share_alone(op: Gelu) -> Callable[..., Cotangents]:
    return lambda dy, x: (dy * reference.gelu(x, approximate=op.approximate) / np.where(x == 0, 1.0, x),)


FORMULA = "planted: a hand-written backward"
SLOPES = (
    "the slopes differ by 1e-3 at most, and a gradient of the block is a sum of many of them: within half precision's noise"
)
MISTAKES = (
    Mistake(
        "dgate_without_up",
        "the gate's gradient lacks the factor up",
        {"act": _gated(_without_up)},
        "dgate is dy·SiLU'(gate).",
        FORMULA,
        SWIGLU,
    ),
    Mistake(
        "dup_without_silu",
        "up's gradient has the gate for its SiLU",
        {"act": _gated(_up_without_silu)},
        "dup is dy·gate.",
        FORMULA,
        SWIGLU,
    ),
    Mistake(
        "dgate_and_dup_swapped",
        "the gradients of gate and up are exchanged",
        {"act": _gated(lambda op: lambda dy, gate, up: op.vjp(EXACT, dy, gate, up)[::-1])},
        "Both, and the weights' gradients.",
        "planted: the order of two results",
        SWIGLU,
    ),
    Mistake(
        "silu_slope_of_sigmoid",
        "the slope of SiLU is the sigmoid",
        {"act": _gated(lambda op: lambda dy, gate, up: (dy * up * sigmoid(gate), dy * silu(gate)))},
        "dgate lacks a term.",
        "planted: half of the product rule",
        SWIGLU,
        where=has_silu,
    ),
    Mistake(
        "silu_slope_of_its_sigmoid",
        "the slope of SiLU is that of the sigmoid in it",
        {"act": _gated(lambda op: lambda dy, gate, up: (dy * up * sigmoid(gate) * sigmoid(-gate), dy * silu(gate)))},
        "dgate lacks a term, and the gate in the other.",
        "planted: half of the product rule",
        SWIGLU,
        where=has_silu,
    ),
    Mistake(
        "activated_gate_without_gradient",
        "the activated gate is taken for a constant",
        {"act": _gated(lambda op: lambda dy, gate, up: (0 * gate, op.vjp(EXACT, dy, gate, up)[1]))},
        "The gate has no gradient.",
        "planted: a gate taken for a mask",
        SWIGLU,
    ),
    Mistake(
        "gelu_slope_of_share",
        "the slope of GELU is the normal distribution's share",
        {"act": _gelu(_share_alone)},
        "dx lacks a term.",
        "planted: half of the product rule",
        GELU,
    ),
    Mistake(
        "gelu_slope_of_the_other_formula",
        "the slope of GELU is that of its other formula",
        {"act": _gelu(lambda op: lambda dy, x: (reference.gelu_vjp(dy, x, approximate=not op.approximate),))},
        "dx is off by at most 1e-3.",
        "planted: a forward pass that was changed alone",
        GELU,
        {"pre_ln_block/bfloat16": SLOPES, "pre_ln_block/float16": SLOPES},
    ),
    Mistake(
        "gate_passes_nothing_back",
        "the normalised h gets no gradient by way of the gate",
        {"gate": pulls(scales(0.0))},
        "Everything before; the gate's own weight is right.",
        "planted: one of two terms",
        BLOCKS,
    ),
)
