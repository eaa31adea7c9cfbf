"""Attention's backward pass: softmax, scale, heads and rotation.

The forward pass is right in all of these: no intermediate shows them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from conformance.mistakes.block.caps import CAPPED, is_capped
from conformance.mistakes.block.feed_forward_gradients import FORMULA
from conformance.mistakes.block.gradients import EXACT, Cotangents, made_by, nothing, scales
from conformance.mistakes.block.heads import MULTI_HEAD
from conformance.mistakes.block.stages import Become, pulls
from conformance.mistakes.mistake import ATTENTION, BLOCKS, MASKED, ROPE, Mistake, Of
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention_primitives import DotProducts, Mix, SoftCap, Softmax
from conformance.ops.block.primitives import Rotate

Array = np.ndarray


def of_scores(make: Callable[[Array, Array], Array]) -> Become:
    """The scores' cotangent, made of the probabilities and of their own; the sink's is as it should be."""

    def other(op: Softmax) -> Callable[..., Cotangents]:
        def made(dy: Array, scores: Array, *sink: Array) -> Cotangents:
            return make(op.forward(EXACT, scores, *sink), dy), *op.vjp(EXACT, dy, scores, *sink)[1:]

        return made

    return made_by(Softmax, other)


def _without_mask(op: Softmax) -> Callable[..., Cotangents]:
    return lambda dy, *values: replace(op, visible=np.ones_like(op.visible)).vjp(EXACT, dy, *values)


def _first_of_group(op: DotProducts | Mix) -> tuple[bool, ...]:
    return tuple(group not in op.groups[:head] for head, group in enumerate(op.groups))


def _last_of_group(op: DotProducts | Mix) -> tuple[bool, ...]:
    return tuple(group not in op.groups[head + 1 :] for head, group in enumerate(op.groups))


Heads = Callable[[Any], tuple[bool, ...]]


def _keys_of(heads: Heads) -> Callable[[DotProducts], Callable[..., Cotangents]]:
    """dk from some of the query heads alone."""

    def make(op: DotProducts) -> Callable[..., Cotangents]:
        kept = np.array(heads(op))[:, None, None]
        return lambda dy, q, k: (op.vjp(EXACT, dy, q, k)[0], op.vjp(EXACT, dy * kept, q, k)[1])

    return make


def _values_of(heads: Heads) -> Callable[[Mix], Callable[..., Cotangents]]:
    """dv from some of the query heads alone."""

    def make(op: Mix) -> Callable[..., Cotangents]:
        kept = np.array(heads(op))[:, None]

        def made(dy: Array, probs: Array, values: Array) -> Cotangents:
            split = dy.reshape(*dy.shape[:2], len(op.groups), -1)
            return op.vjp(EXACT, dy, probs, values)[0], op.vjp(EXACT, (split * kept).reshape(dy.shape), probs, values)[1]

        return made

    return make


def _times_scale(power: int, *, q: bool = True, k: bool = True) -> Of:
    def scaled(composite: Composite) -> Become:
        op = composite.op("scores", DotProducts)
        factor = 1.0 if op is None else op.scale**-power
        return pulls(scales(factor if q else 1.0, factor if k else 1.0))

    return Of(scaled)


def _straight_through(op: SoftCap) -> Callable[..., Cotangents]:
    return lambda dy, scores: (dy,)


def _slope(make: Callable[[SoftCap], float]) -> Callable[[SoftCap], Callable[..., Cotangents]]:
    """The slope times a number."""
    return lambda op: lambda dy, scores: (make(op) * op.vjp(EXACT, dy, scores)[0],)


def _exchanged(cotangents: Cotangents, dy: Array, *values: Array) -> Cotangents:
    first, second = cotangents
    return (second, first) if first.shape == second.shape else cotangents


MISTAKES = (
    Mistake(
        "softmax_backward_without_sum",
        "the softmax passes p·dp back, without the row's sum",
        {"probs": of_scores(lambda probs, dy: probs * dy)},
        "Scores get a gradient that moves them all.",
        FORMULA,
        ATTENTION,
    ),
    Mistake(
        "softmax_backward_without_mask",
        "the probabilities made again for the backward pass are not masked",
        {"probs": made_by(Softmax, _without_mask)},
        "Hidden keys get a gradient.",
        FORMULA,
        ATTENTION,
    ),
    Mistake(
        "softmax_without_gradient",
        "the probabilities are taken for constants",
        {"probs": pulls(nothing)},
        "Queries and keys have no gradient.",
        "planted: a detach too many",
        ATTENTION,
    ),
    *(
        Mistake(
            f"{name}_without_gradient",
            f"the {name} are taken for constants",
            {stage: pulls(scales(*factors))},
            f"The {name} have no gradient.",
            "planted: read from a cache that keeps no gradient",
            ATTENTION,
        )
        for name, stage, factors in (
            ("queries", "scores", (0.0, 1.0)),
            ("keys", "scores", (1.0, 0.0)),
            ("values", "attn", (1.0, 0.0)),
        )
    ),
    Mistake(
        "softmax_backward_of_sigmoid",
        "the softmax passes p·(1 - p)·dp back, as a sigmoid does",
        {"probs": of_scores(lambda probs, dy: probs * (1 - probs) * dy)},
        "Scores of one row do not know of each other.",
        FORMULA,
        ATTENTION,
    ),
    Mistake(
        "softmax_backward_sums_over_queries",
        "the sum of p·dp that the softmax's backward pass subtracts is over the queries",
        {"probs": of_scores(lambda probs, dy: probs * (dy - np.sum(probs * dy, axis=-2, keepdims=True)))},
        "Scores get a gradient that moves them all.",
        "planted: the wrong axis",
        ATTENTION,
    ),
    Mistake(
        "scale_missing_in_backward",
        "the scores' cotangent is not scaled",
        {"scores": _times_scale(1)},
        "dq and dk are too large by the root of d_head.",
        FORMULA,
        ATTENTION,
    ),
    Mistake(
        "scale_twice_in_backward",
        "the scores' cotangent is scaled twice",
        {"scores": _times_scale(-1)},
        "dq and dk are too small by the root of d_head.",
        FORMULA,
        ATTENTION,
    ),
    Mistake(
        "scale_missing_in_dk",
        "dk lacks the scale",
        {"scores": _times_scale(1, q=False)},
        "dk is too large by the root of d_head.",
        "planted: a scale folded into the queries",
        ATTENTION,
    ),
    Mistake(
        "dq_and_dk_swapped",
        "dq and dk are exchanged",
        {"scores": pulls(_exchanged)},
        "Only where there are as many keys as queries, and as many heads.",
        "planted: the order of two results",
        MASKED,
        MULTI_HEAD,
    ),
    Mistake(
        "dk_of_first_head_in_group",
        "dk is that of the first query head of its group",
        {"scores": made_by(DotProducts, _keys_of(_first_of_group))},
        "As many key heads as query heads hide it.",
        "planted: assigned where it should be added",
        ATTENTION,
    ),
    Mistake(
        "dv_of_first_head_in_group",
        "dv is that of the first query head of its group",
        {"attn": made_by(Mix, _values_of(_first_of_group))},
        "As many value heads as query heads hide it.",
        "planted: assigned where it should be added",
        ATTENTION,
    ),
    Mistake(
        "dk_and_dv_of_last_head_in_group",
        "dk and dv are those of the last query head of its group",
        {"scores": made_by(DotProducts, _keys_of(_last_of_group)), "attn": made_by(Mix, _values_of(_last_of_group))},
        "As many key heads as query heads hide it.",
        "planted: assigned where it should be added",
        ATTENTION,
    ),
    Mistake(
        "dk_and_dv_averaged_over_group",
        "dk and dv are averaged over the query heads of a group",
        dict.fromkeys(("scores", "attn"), Of(lambda c: pulls(scales(1.0, c.config.n_kv_heads / c.config.n_heads)))),
        "As many key heads as query heads hide it.",
        "planted: a mean for a sum",
        ATTENTION,
    ),
    Mistake(
        "rope_backward_forward",
        "cotangents are turned forward, not back",
        dict.fromkeys(("q_rope", "k_rope"), made_by(Rotate, lambda op: lambda dy, x: (op.forward(EXACT, dy),))),
        "dq and dk before the rotation; the first position hides it.",
        "planted: the forward pass used for both",
        ROPE,
    ),
    Mistake(
        "rope_backward_missing",
        "cotangents are not turned back",
        dict.fromkeys(("q_rope", "k_rope"), made_by(Rotate, lambda op: lambda dy, x: (dy,))),
        "dq and dk before the rotation; the first position hides it.",
        FORMULA,
        ROPE,
    ),
    Mistake(
        "rope_backward_of_keys_missing",
        "the keys' cotangent is not turned back",
        {"k_rope": made_by(Rotate, lambda op: lambda dy, x: (dy,))},
        "dk before the rotation.",
        "planted: one of two lines",
        BLOCKS,
    ),
    Mistake(
        "values_pass_nothing_back",
        "the normalised x gets no gradient by way of the values",
        {"v": pulls(scales(0.0))},
        "dx and the first norm's gradients; those of the projections are right.",
        "planted: one of three terms",
        BLOCKS,
    ),
    Mistake(
        "softcap_backward_missing",
        "the cap passes back what it is given",
        {"capped": made_by(SoftCap, _straight_through)},
        "dq and dk of scores beyond the cap, which should be small.",
        "planted: a function whose slope nobody wrote",
        MASKED,
        CAPPED,
        where=is_capped,
    ),
    Mistake(
        "softcap_backward_over_cap",
        "the cap's slope is divided by the cap",
        {"capped": made_by(SoftCap, _slope(lambda op: 1 / op.cap))},
        "dq and dk are too small by the cap.",
        "planted: the inner derivative without the outer factor",
        MASKED,
        CAPPED,
        where=is_capped,
    ),
)
