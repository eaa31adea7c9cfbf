"""A block's backward pass: the paths that a cotangent takes, and the gradients of the parameters.

The forward pass is right in all of these: no intermediate shows them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

import reference
from conformance.mistakes.block.places import ASKED, IN_PARALLEL, NORMS, READERS, SUMS
from conformance.mistakes.block.stages import Become, alters, in_placements, pulls
from conformance.mistakes.mistake import BLOCK, BLOCKS, Change, Mistake
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Add, AddBoth, Normalise
from conformance.ops.block.program import Kind, Kinds, Pull, Pulled
from reference.rows import sum_rows

Array = np.ndarray
Cotangents = tuple[Array, ...]
EXACT = Machine()


def made_by(kind: Kinds[Kind], make: Callable[[Kind], Callable[..., Cotangents]]) -> Become:
    """Its cotangents are made anew, from the op of a kind, its own cotangent, and the values read."""

    def remade(op: Kind) -> Pulled:
        made = make(op)
        return Pulled(op, lambda cotangents, dy, *values: made(dy, *values))

    return alters(kind, remade)


def scales(*factors: float) -> Pull:
    """Each cotangent times a factor; those beyond stay as they are."""

    def pull(cotangents: Cotangents, dy: Array, *values: Array) -> Cotangents:
        return (
            tuple(factor * cotangent for factor, cotangent in zip(factors, cotangents[: len(factors)], strict=True))
            + cotangents[len(factors) :]
        )

    return pull


def nothing(cotangents: Cotangents, dy: Array, *values: Array) -> Cotangents:
    """All of them zero."""
    return tuple(0.0 * cotangent for cotangent in cotangents)


def _normed(op: Normalise, x: Array) -> reference.RMSNorm | reference.LayerNorm:
    return (reference.layer_norm if op.centred else reference.rms_norm)(x, eps=op.eps)


def _statistics_constant(op: Normalise) -> Callable[..., Cotangents]:
    def made(dy: Array, x: Array, weight: Array, *bias: Array) -> Cotangents:
        return dy * (weight + op.weight_offset) * _normed(op, x).rstd, *op.vjp(EXACT, dy, x, weight, *bias)[1:]

    return made


def _without_weight(op: Normalise) -> Callable[..., Cotangents]:
    def made(dy: Array, x: Array, weight: Array, *bias: Array) -> Cotangents:
        unweighted = replace(op, weight_offset=0.0).vjp(EXACT, dy, x, np.ones_like(weight), *bias)
        return unweighted[0], *op.vjp(EXACT, dy, x, weight, *bias)[1:]

    return made


def _projection_on_x(op: Normalise) -> Callable[..., Cotangents]:
    def made(dy: Array, x: Array, weight: Array, *bias: Array) -> Cotangents:
        normed = _normed(op, x)
        g = dy * (weight + op.weight_offset)
        shift = np.mean(g, axis=-1, keepdims=True) if op.centred else 0.0
        projection = normed.x_hat / normed.rstd * np.mean(g * normed.x_hat, axis=-1, keepdims=True)
        return normed.rstd * (g - shift - projection), *op.vjp(EXACT, dy, x, weight, *bias)[1:]

    return made


def _dweight_of_x(op: Normalise) -> Callable[..., Cotangents]:
    def made(dy: Array, x: Array, weight: Array, *bias: Array) -> Cotangents:
        dx, _, *dbias = op.vjp(EXACT, dy, x, weight, *bias)
        return dx, sum_rows(dy * x), *dbias

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


def _passed(op: Normalise) -> Callable[..., Cotangents]:
    return lambda dy, x, *parameters: (dy, *op.vjp(EXACT, dy, x, *parameters)[1:])


def _pulled(kind: Kinds[Kind], pull: Pull) -> Become:
    """Its op, if it is of a kind, passes other cotangents back."""
    return alters(kind, lambda op: Pulled(op, pull))


def _stream(sums: tuple[str, ...], factor: float) -> Change:
    return dict.fromkeys(sums, _pulled(Add, scales(factor)))


ALL = (*NORMS, "q_norm", "k_norm")
ZERO_MEAN = "planted: the statistics taken for constants"
MISTAKES = (
    Mistake(
        "attention_residual_without_gradient",
        "dx lacks what comes straight through the first sum",
        _stream(SUMS[0], 0.0),
        "dx is what attention passes back alone.",
        "quack#52, #53",
        BLOCKS,
    ),
    Mistake(
        "feed_forward_residual_without_gradient",
        "dh lacks what comes straight through the second sum",
        _stream(SUMS[1], 0.0),
        "Attention's gradients and dx are what the feed-forward layer passes back alone.",
        "quack#52, #53",
        BLOCKS,
    ),
    Mistake(
        "residual_gradient_twice",
        "what comes straight through the first sum is counted twice",
        _stream(SUMS[0], 2.0),
        "dx is too large by dh.",
        "planted: added in place, and returned",
        BLOCKS,
    ),
    Mistake(
        "dx_without_attention",
        "dx lacks what attention passes back",
        {"attention_norm": pulls(scales(0.0))},
        "dx is dh; every parameter's gradient is right.",
        "quack#52, #53",
        BLOCKS,
        where=in_placements("pre", "sandwich"),
    ),
    Mistake(
        "dh_without_feed_forward",
        "dh lacks what the feed-forward layer passes back",
        {"ffn_norm": pulls(scales(0.0))},
        "dx and attention's gradients are those of a block without its second half.",
        "quack#52, #53",
        BLOCKS,
    ),
    Mistake(
        "norm_statistics_without_gradient",
        "the norms' statistics are taken for constants",
        dict.fromkeys(NORMS, made_by(Normalise, _statistics_constant)),
        "dx keeps its component along x.",
        "tt-metal#53215, xla#8225",
        BLOCKS,
    ),
    Mistake(
        "norm_dx_without_weight",
        "dx of the norms leaves the weight out",
        dict.fromkeys(ALL, made_by(Normalise, _without_weight)),
        "A weight of one hides it.",
        "planted: a hand-written backward",
        BLOCKS,
    ),
    Mistake(
        "norm_projection_on_x",
        "dx of the norms subtracts the projection along x, not along x_hat",
        dict.fromkeys(ALL, made_by(Normalise, _projection_on_x)),
        "Rows of deviation one hide it.",
        "planted: one rstd left out",
        BLOCKS,
    ),
    Mistake(
        "norm_dweight_of_x",
        "dweight of the norms sums dy·x, not dy·x_hat",
        dict.fromkeys(ALL, made_by(Normalise, _dweight_of_x)),
        "Rows of deviation one hide it.",
        "planted: rstd left out",
        BLOCKS,
    ),
    Mistake(
        "norms_without_gradient",
        "the norms pass nothing back, and their parameters have no gradient",
        dict.fromkeys(ALL, _pulled(Normalise, nothing)),
        "dx is dy; attention's gradients are those of a block without its second half.",
        "torch 2.11: docs/findings.md",
        BLOCKS,
    ),
    Mistake(
        "norms_passed_over",
        "what comes back to a norm is passed on as it is",
        dict.fromkeys(NORMS, made_by(Normalise, _passed)),
        "dx, and the gradients of what stands before the norms; those of the norms' own parameters are right.",
        "planted: a norm taken for the identity",
        BLOCKS,
    ),
    Mistake(
        "stream_without_gradient",
        "dx lacks what comes straight through the sum of x and both branches",
        {"out": _pulled(AddBoth, scales(0.0))},
        "dx is what the norm passes back alone.",
        "planted: a hand-written backward",
        BLOCK,
        ASKED,
        where=IN_PARALLEL,
    ),
    Mistake(
        "norm_without_attention",
        "what attention passes back to the norm that both branches read is lost",
        dict.fromkeys(READERS[0], pulls(scales(0.0))),
        "dx, and the gradients of the norm's parameters.",
        "planted: assigned where it should be added",
        BLOCK,
        ASKED,
        where=IN_PARALLEL,
    ),
    Mistake(
        "norm_without_feed_forward",
        "what the feed-forward layer passes back to the norm that both branches read is lost",
        dict.fromkeys(READERS[1], pulls(scales(0.0))),
        "dx, and the gradients of the norm's parameters.",
        "planted: assigned where it should be added",
        BLOCK,
        ASKED,
        where=IN_PARALLEL,
    ),
    Mistake(
        "norm_weight_gradient_missing",
        "the norms' weights have no gradient",
        dict.fromkeys(NORMS, _pulled(Normalise, scales(1.0, 0.0))),
        "These gradients are zero.",
        "unsloth#4533",
        BLOCKS,
    ),
    Mistake(
        "norm_weight_gradient_of_last_position",
        "the gradients of the norms' parameters are those of the last position",
        dict.fromkeys(NORMS, made_by(Normalise, of_rows(last_position))),
        "A single position hides it.",
        "planted: assigned where it should be added",
        BLOCKS,
    ),
    Mistake(
        "qk_norm_weight_gradient_of_first_head",
        "the gradients of the weights of q_norm and k_norm are those of the first head",
        dict.fromkeys(("q_norm", "k_norm"), made_by(Normalise, of_rows(_first_head))),
        "A single head hides it.",
        "planted: one weight for all heads, read as one each",
        BLOCK,
        where=lambda composite: composite.config.qk_norm_over == "head",
    ),
    Mistake(
        "qk_norm_statistics_without_gradient",
        "the statistics of q_norm and k_norm are taken for constants",
        dict.fromkeys(("q_norm", "k_norm"), made_by(Normalise, _statistics_constant)),
        "dx, and the gradients of q and k.",
        ZERO_MEAN,
        BLOCK,
    ),
)
