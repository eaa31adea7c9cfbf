"""A block's backward pass: the paths that a cotangent takes, and the gradients of the parameters.

The forward pass is right in all of these: no intermediate shows them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

import reference
from conformance.mistakes.mistake import BLOCK, BLOCKS, GELU, STACK, SWIGLU, Mistake
from conformance.ops.block.anatomy import Composite, Values
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Gelu, Linear, Normalise, SwiGLU
from conformance.ops.block.program import Kind, Kinds, Pull, Pulled, Stage
from reference.feed_forward import sigmoid, silu

Array = np.ndarray
Cotangents = tuple[Array, ...]
EXACT = Machine()
LINEAR = ("q", "k", "v", "attn_out", "gate", "up", "ffn_out")


def pulls(pull: Pull, *names: str) -> Callable[[Composite], Composite]:
    """These stages pass other cotangents back."""

    def alter(composite: Composite) -> Composite:
        for name in names:
            composite = composite.pull(name, pull)
        return composite

    return alter


def made_by(
    kind: Kinds[Kind], make: Callable[[Kind], Callable[..., Cotangents]], *names: str
) -> Callable[[Composite], Composite]:
    """The cotangents of these stages made anew, from the op of a kind, its own cotangent, and the values read."""

    def remade(op: Kind) -> Pulled:
        made = make(op)
        return Pulled(op, lambda cotangents, dy, *values: made(dy, *values))

    def alter(composite: Composite) -> Composite:
        for name in names:
            composite = composite.alter(name, kind, remade)
        return composite

    return alter


def scales(*factors: float) -> Pull:
    """Each cotangent times a factor; those beyond stay as they are."""

    def pull(cotangents: Cotangents, dy: Array, *values: Array) -> Cotangents:
        return (
            tuple(factor * cotangent for factor, cotangent in zip(factors, cotangents[: len(factors)], strict=True))
            + cotangents[len(factors) :]
        )

    return pull


def _nothing(cotangents: Cotangents, dy: Array, *values: Array) -> Cotangents:
    return tuple(0.0 * cotangent for cotangent in cotangents)


def _statistics_constant(op: Normalise) -> Callable[..., Cotangents]:
    def made(dy: Array, x: Array, weight: Array, *bias: Array) -> Cotangents:
        rstd = (reference.layer_norm if op.centred else reference.rms_norm)(x, eps=op.eps).rstd
        return dy * (weight + op.weight_offset) * rstd, *op.vjp(EXACT, dy, x, weight, *bias)[1:]

    return made


def _without_up(op: SwiGLU) -> Callable[..., Cotangents]:
    return lambda dy, gate, up: (dy * op.slope(gate), dy * op.activation(gate))


def _up_without_silu(op: SwiGLU) -> Callable[..., Cotangents]:
    return lambda dy, gate, up: (dy * up * op.slope(gate), dy * gate)


def _gated(make: Callable[[SwiGLU], Callable[..., Cotangents]]) -> Callable[[Composite], Composite]:
    return made_by(SwiGLU, make, "act")


def _gelu(make: Callable[[Gelu], Callable[..., Cotangents]]) -> Callable[[Composite], Composite]:
    return made_by(Gelu, make, "act")


def _share_alone(op: Gelu) -> Callable[..., Cotangents]:
    return lambda dy, x: (dy * reference.gelu(x, approximate=op.approximate) / np.where(x == 0, 1.0, x),)


def _weight(alter: Callable[[Array], Array]) -> Pull:
    """The gradient of a projection's weight altered."""
    return lambda cotangents, dy, *values: (cotangents[0], alter(cotangents[1]), *cotangents[2:])


def _bias(alter: Callable[[Array, int], Array]) -> Pull:
    """The gradient of a bias made of its own, and of the number of rows."""

    def pull(cotangents: Cotangents, dy: Array, *values: Array) -> Cotangents:
        rows = values[0].size // values[0].shape[-1]
        return (*cotangents[:2], *(alter(bias, rows) for bias in cotangents[2:]))

    return pull


def _transposed(dweight: Array) -> Array:
    return dweight.T if dweight.shape[0] == dweight.shape[1] else dweight


def _of_rows(keep: Callable[[Array], Array]) -> Callable[[Any], Callable[..., Cotangents]]:
    """The parameters' gradients made of some rows only: those where `keep`, of the shape of a value, is not zero."""

    def make(op: Any) -> Callable[..., Cotangents]:
        def made(dy: Array, x: Array, *parameters: Array) -> Cotangents:
            some = (dy.reshape(*x.shape[:-1], -1) * keep(x)).reshape(dy.shape)
            return op.vjp(EXACT, dy, x, *parameters)[0], *op.vjp(EXACT, some, x, *parameters)[1:]

        return made

    return make


def _last_position(x: Array) -> Array:
    kept = np.zeros((*x.shape[:-1], 1))
    kept[:, -1] = 1.0
    return kept


def _first_sequence(x: Array) -> Array:
    kept = np.zeros((*x.shape[:-1], 1))
    kept[0] = 1.0
    return kept


def _first_head(x: Array) -> Array:
    kept = np.zeros((*x.shape[:-1], 1))
    kept[..., 0, :] = 1.0
    return kept


def _finish(finish: Callable[[Composite, Values], Values]) -> Callable[[Composite], Composite]:
    return lambda composite: replace(composite, finish=lambda outputs: finish(composite, outputs))


def _layers_swapped(composite: Composite, outputs: Values) -> Values:
    last, swapped = composite.case.n_layers - 1, dict(outputs)
    for name in composite.config.parameters():
        swapped[f"d0.{name}"], swapped[f"d{last}.{name}"] = outputs[f"d{last}.{name}"], outputs[f"d0.{name}"]
    return swapped


def _last_layer_alone(composite: Composite) -> Composite:
    """Nothing goes back through the last layer's x, but dx itself is nothing then."""
    prefix = f"{composite.case.n_layers - 1}."

    def cut(stage: Stage) -> Stage:
        reads_x = stage.layer == prefix and stage.local_name in ("attention_norm", "h")
        return replace(stage, op=Pulled(stage.op, scales(0.0))) if reads_x else stage

    return replace(composite, program=replace(composite.program, stages=tuple(map(cut, composite.program.stages))))


FORMULA = "planted: a hand-written backward"
SLOPES = (
    "the slopes differ by 1e-3 at most, and a gradient of the block is a sum of many of them: within half precision's noise"
)
ZERO_MEAN = "planted: the statistics taken for constants"
RESIDUAL = (
    Mistake(
        "attention_residual_without_gradient",
        "dx lacks what comes straight through the first sum",
        pulls(scales(0.0), "h"),
        "dx is what attention passes back alone.",
        "quack#52, #53",
        BLOCKS,
    ),
    Mistake(
        "feed_forward_residual_without_gradient",
        "dh lacks what comes straight through the second sum",
        pulls(scales(0.0), "out"),
        "Attention's gradients and dx are what the feed-forward layer passes back alone.",
        "quack#52, #53",
        BLOCKS,
    ),
    Mistake(
        "residual_gradient_twice",
        "what comes straight through the first sum is counted twice",
        pulls(scales(2.0), "h"),
        "dx is too large by dh.",
        "planted: added in place, and returned",
        BLOCKS,
    ),
    Mistake(
        "dx_without_attention",
        "dx lacks what attention passes back",
        pulls(scales(0.0), "attention_norm"),
        "dx is dh; every parameter's gradient is right.",
        "quack#52, #53",
        BLOCKS,
    ),
    Mistake(
        "dh_without_feed_forward",
        "dh lacks what the feed-forward layer passes back",
        pulls(scales(0.0), "ffn_norm"),
        "dx and attention's gradients are those of a block without its second half.",
        "quack#52, #53",
        BLOCKS,
    ),
    Mistake(
        "norm_statistics_without_gradient",
        "the norms' statistics are taken for constants",
        made_by(Normalise, _statistics_constant, "attention_norm", "ffn_norm"),
        "dx keeps its component along x.",
        "tt-metal#53215, xla#8225",
        BLOCKS,
    ),
    Mistake(
        "norms_without_gradient",
        "the norms pass nothing back, and their parameters have no gradient",
        pulls(_nothing, "attention_norm", "ffn_norm", "q_norm", "k_norm"),
        "dx is dy; attention's gradients are those of a block without its second half.",
        "torch 2.11: docs/findings.md",
        BLOCKS,
    ),
    Mistake(
        "norm_weight_gradient_missing",
        "the norms' weights have no gradient",
        pulls(scales(1.0, 0.0), "attention_norm", "ffn_norm"),
        "These gradients are zero.",
        "unsloth#4533",
        BLOCKS,
    ),
    Mistake(
        "norm_weight_gradient_of_last_position",
        "the gradients of the norms' parameters are those of the last position",
        made_by(Normalise, _of_rows(_last_position), "attention_norm", "ffn_norm"),
        "A single position hides it.",
        "planted: assigned where it should be added",
        BLOCKS,
    ),
    Mistake(
        "qk_norm_weight_gradient_of_first_head",
        "the gradients of the weights of q_norm and k_norm are those of the first head",
        made_by(Normalise, _of_rows(_first_head), "q_norm", "k_norm"),
        "A single head hides it.",
        "planted: one weight for all heads, read as one each",
        BLOCK,
    ),
    Mistake(
        "qk_norm_statistics_without_gradient",
        "the statistics of q_norm and k_norm are taken for constants",
        made_by(Normalise, _statistics_constant, "q_norm", "k_norm"),
        "dx, and the gradients of q and k.",
        ZERO_MEAN,
        BLOCK,
    ),
)
FEED_FORWARD = (
    Mistake(
        "dgate_without_up",
        "the gate's gradient lacks the factor up",
        _gated(_without_up),
        "dgate is dy·SiLU'(gate).",
        FORMULA,
        SWIGLU,
    ),
    Mistake(
        "dup_without_silu",
        "up's gradient has the gate for its SiLU",
        _gated(_up_without_silu),
        "dup is dy·gate.",
        FORMULA,
        SWIGLU,
    ),
    Mistake(
        "dgate_and_dup_swapped",
        "the gradients of gate and up are exchanged",
        _gated(lambda op: lambda dy, gate, up: op.vjp(EXACT, dy, gate, up)[::-1]),
        "Both, and the weights' gradients.",
        "planted: the order of two results",
        SWIGLU,
    ),
    Mistake(
        "silu_slope_of_sigmoid",
        "the slope of SiLU is the sigmoid",
        _gated(lambda op: lambda dy, gate, up: (dy * up * sigmoid(gate), dy * silu(gate))),
        "dgate lacks a term.",
        "planted: half of the product rule",
        SWIGLU,
    ),
    Mistake(
        "gelu_slope_of_share",
        "the slope of GELU is the normal distribution's share",
        _gelu(_share_alone),
        "dx lacks a term.",
        "planted: half of the product rule",
        GELU,
    ),
    Mistake(
        "gelu_slope_of_the_other_formula",
        "the slope of GELU is that of its other formula",
        _gelu(lambda op: lambda dy, x: (reference.gelu_vjp(dy, x, approximate=not op.approximate),)),
        "dx is off by at most 1e-3.",
        "planted: a forward pass that was changed alone",
        GELU,
        {"pre_ln_block/bfloat16": SLOPES, "pre_ln_block/float16": SLOPES},
    ),
    Mistake(
        "gate_passes_nothing_back",
        "the normalised h gets no gradient by way of the gate",
        pulls(scales(0.0), "gate"),
        "Everything before; the gate's own weight is right.",
        "planted: one of two terms",
        BLOCKS,
    ),
)
PARAMETERS = (
    Mistake(
        "dweight_transposed",
        "the gradient of the weight after attention is transposed",
        pulls(_weight(_transposed), "attn_out"),
        "Only a square weight allows it.",
        "planted: x·dy for dy·x",
        BLOCKS,
    ),
    Mistake(
        "dweight_missing",
        "the weight after attention has no gradient",
        pulls(scales(1.0, 0.0), "attn_out"),
        "It is zero.",
        "unsloth#4533",
        BLOCKS,
    ),
    Mistake(
        "dweight_halved",
        "the gradients of all projections' weights are halved",
        pulls(scales(1.0, 0.5), *LINEAR),
        "They are too small.",
        "planted: a mean over two sequences",
        BLOCKS,
    ),
    Mistake(
        "dweight_of_last_position",
        "the gradients of the projections' parameters are those of the last position",
        made_by(Linear, _of_rows(_last_position), *LINEAR),
        "A single position hides it.",
        "planted: assigned where it should be added",
        BLOCKS,
    ),
    Mistake(
        "dweight_of_first_sequence",
        "the gradients of the projections' parameters are those of the first sequence",
        made_by(Linear, _of_rows(_first_sequence), *LINEAR),
        "A single sequence hides it.",
        "planted: a batch that is not summed over",
        BLOCKS,
    ),
    Mistake(
        "dbias_missing",
        "the projections' biases have no gradient",
        pulls(_bias(lambda bias, rows: 0 * bias), *LINEAR),
        "They are zero; models without biases hide it.",
        "unsloth#4533",
        BLOCK,
    ),
    Mistake(
        "dbias_averaged",
        "the gradients of the projections' biases are means over the rows",
        pulls(_bias(lambda bias, rows: bias / rows), *LINEAR),
        "They are too small; models without biases hide it.",
        "planted: a mean for a sum",
        BLOCK,
    ),
    Mistake(
        "layers_gradients_swapped",
        "the first and the last layer have each other's gradients",
        _finish(_layers_swapped),
        "All of these layers' gradients; dx is right.",
        "planted: a list that is not reversed",
        STACK,
    ),
    Mistake(
        "gradient_stops_before_last_layer",
        "the last layer passes nothing back",
        _last_layer_alone,
        "No other layer has a gradient, and dx is zero.",
        "planted: a detach too many",
        STACK,
    ),
)
MISTAKES = (*RESIDUAL, *FEED_FORWARD, *PARAMETERS)
