"""A block's backward pass: the paths that a cotangent takes, and the gradients of the parameters.

The forward pass is right in all of these: no intermediate shows them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import reference
from conformance.mistakes.mistake import BLOCK, BLOCKS, Mistake
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Normalise
from conformance.ops.block.program import Kind, Kinds, Pull, Pulled

Array = np.ndarray
Cotangents = tuple[Array, ...]
EXACT = Machine()


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


def of_rows(keep: Callable[[Array], Array]) -> Callable[[Any], Callable[..., Cotangents]]:
    """The parameters' gradients made of some rows only: those where `keep`, of the shape of a value, is not zero."""

    def make(op: Any) -> Callable[..., Cotangents]:
        def made(dy: Array, x: Array, *parameters: Array) -> Cotangents:
            some = (dy.reshape(*x.shape[:-1], -1) * keep(x)).reshape(dy.shape)
            return op.vjp(EXACT, dy, x, *parameters)[0], *op.vjp(EXACT, some, x, *parameters)[1:]

        return made

    return make


def last_position(x: Array) -> Array:
    """One where x stands at the last position, zero elsewhere."""
    kept = np.zeros((*x.shape[:-1], 1))
    kept[:, -1] = 1.0
    return kept


def _first_head(x: Array) -> Array:
    kept = np.zeros((*x.shape[:-1], 1))
    kept[..., 0, :] = 1.0
    return kept


ZERO_MEAN = "planted: the statistics taken for constants"
MISTAKES = (
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
        made_by(Normalise, of_rows(last_position), "attention_norm", "ffn_norm"),
        "A single position hides it.",
        "planted: assigned where it should be added",
        BLOCKS,
    ),
    Mistake(
        "qk_norm_weight_gradient_of_first_head",
        "the gradients of the weights of q_norm and k_norm are those of the first head",
        made_by(Normalise, of_rows(_first_head), "q_norm", "k_norm"),
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
