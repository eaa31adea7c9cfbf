"""Attention: how scores become probabilities."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from conformance.mistakes.block.stages import alters, wraps
from conformance.mistakes.mistake import ATTENTION, BLOCK, MASKED, Mistake, Of, all_but, in_dtypes
from conformance.numbers.rounding import FORMATS
from conformance.ops.block.attention_primitives import DotProducts, Softmax
from conformance.ops.block.machine import Machine
from conformance.ops.block.wrappers import After, Before, Map, Measured, Swapped
from reference import BlockConfig

Array = np.ndarray


@dataclass(frozen=True)
class _OffByOne(Measured):
    """A softmax with one key more, whose score is zero and whose value nobody reads."""

    softmax: Softmax

    def forward(self, m: Machine, scores: Array, *sink: Array) -> Array:
        return self._wider().forward(m, self._with_zero(scores), *sink)[..., :-1]

    def vjp(self, m: Machine, dy: Array, scores: Array, *sink: Array) -> tuple[Array, ...]:
        dscores, *dsink = self._wider().vjp(m, self._with_zero(dy), self._with_zero(scores), *sink)
        return dscores[..., :-1], *dsink

    def _wider(self) -> Softmax:
        visible = self.softmax.visible
        return replace(self.softmax, visible=np.concatenate([visible, np.ones_like(visible[..., :1])], axis=-1))

    def _with_zero(self, a: Array) -> Array:
        return np.concatenate([a, np.zeros_like(a[..., :1])], axis=-1)


@dataclass(frozen=True)
class _Unshifted(Softmax):
    """Without the row's maximum subtracted: exponentials overflow in float32, whose largest logarithm is 88.7."""

    def forward(self, m: Machine, scores: Array, *sink: Array) -> Array:
        exponentials = in_float32(np.exp(np.where(self.visible, scores, -np.inf)))
        total = np.sum(exponentials, axis=-1, keepdims=True)
        total = total + sum(in_float32(np.exp(each[:, None, None])) for each in sink)
        return exponentials / np.where(total == 0, 1.0, total)


def in_float32(exponentials: Array) -> Array:
    """Infinite where they are beyond float32."""
    return np.where(exponentials > FORMATS["float32"].largest, np.inf, exponentials)


def _not_rescaled(keys: int) -> Callable[[Softmax], Before]:
    """Online, so many keys at a time: every exponential keeps the largest score that was known when it was made."""

    def known(scores: Array, visible: Array) -> tuple[Array, Array]:
        """Which key has the largest score of those in its own block and before, by key; and whether one is seen there."""
        seen = np.where(visible, scores, -np.inf)
        at = np.arange(scores.shape[-1])
        last = np.minimum((at // keys + 1) * keys, len(at)) - 1
        largest = np.maximum.accumulate(seen, axis=-1)
        is_new = np.concatenate([np.ones_like(seen[..., :1], bool), largest[..., 1:] > largest[..., :-1]], axis=-1)
        first = np.maximum.accumulate(np.where(is_new, at, 0), axis=-1)
        return first[..., last], np.isfinite(largest[..., last])

    def made(op: Softmax) -> Before:
        def shifted(scores: Array) -> Array:
            top, seen = known(scores, op.visible)
            largest = np.take_along_axis(scores, top, axis=-1)
            return np.where(seen, scores - largest + largest[..., -1:], scores)  # a sink knows the row's own

        def pullback(dy: Array, scores: Array) -> Array:
            top, seen = known(scores, op.visible)
            is_top = top[..., None] == np.arange(scores.shape[-1])  # by key, and by the key whose score was subtracted
            moved = np.where(seen, dy, 0.0)
            return dy - np.sum(moved[..., None] * is_top, axis=-2) + np.sum(moved, axis=-1, keepdims=True) * is_top[..., -1, :]

        return Before(op, Map(shifted, pullback))

    return made


def _over_queries(op: Softmax) -> object:
    return Swapped(replace(op, visible=np.swapaxes(op.visible, -1, -2)), -1, -2)


def _capped(scores: Array) -> Array:
    return CAP * np.tanh(scores / CAP)


CAP = 50.0
CAPS = Map(_capped, lambda dy, scores: dy / np.cosh(scores / CAP) ** 2)
BASE_2 = Map(lambda scores: scores * math.log(2), lambda dy, scores: dy * math.log(2))


def scaled(scale: Callable[[BlockConfig, float], float]) -> Of:
    """The scores scaled otherwise: by a function of the config, and of the scale that they have."""
    return Of(lambda composite: alters(DotProducts, lambda op: replace(op, scale=scale(composite.config, op.scale))))


MISTAKES = (
    Mistake(
        "scale_missing",
        "scores are not scaled",
        {"scores": scaled(lambda config, scale: 1.0)},
        "Probabilities are too sharp.",
        "mlc-llm#3426",
        ATTENTION,
    ),
    Mistake(
        "scale_twice",
        "scores are scaled twice, by 1/d_head in all",
        {"scores": scaled(lambda config, scale: scale**2)},
        "Probabilities are too even.",
        "mlc-llm#3426: in the queries and in the kernel",
        ATTENTION,
    ),
    Mistake(
        "scale_of_d_model",
        "scores are scaled by the root of d_model instead of d_head",
        {"scores": scaled(lambda config, scale: 1 / math.sqrt(config.d_model))},
        "Probabilities are too even; a single head hides it.",
        "mlc-llm#3426",
        ATTENTION,
    ),
    Mistake(
        "scale_of_n_heads",
        "scores are scaled by the root of the number of heads instead of d_head",
        {"scores": scaled(lambda config, scale: 1 / math.sqrt(config.n_heads))},
        "Probabilities are too sharp, or too even; as many heads as features of one hide it.",
        "planted: the wrong one of two axes",
        ATTENTION,
    ),
    Mistake(
        "scores_capped",
        f"scores are capped softly at {CAP:g}",
        {"scores": wraps(lambda op: After(op, CAPS))},
        "Large scores are too small; small ones nearly hide it.",
        "planted: the capping of another model",
        MASKED,
    ),
    Mistake(
        "softmax_over_queries",
        "the softmax runs over the queries",
        {"probs": alters(Softmax, _over_queries)},
        "Columns sum to one instead of rows.",
        "planted: the wrong axis",
        ATTENTION,
    ),
    *(
        Mistake(
            f"softmax_blocks_of_{keys}_not_rescaled",
            f"an online softmax over blocks of {keys} keys does not rescale what it has added up when a larger score comes",
            {"probs": alters(Softmax, _not_rescaled(keys))},
            "Keys that come before the row's largest score weigh too much; a row whose largest score comes first hides it.",
            "planted: flash attention without its correction",
            ATTENTION,
        )
        for keys in (1, 2, 4)
    ),
    Mistake(
        "softmax_base_2",
        "powers of two for powers of e",
        {"probs": alters(Softmax, lambda op: Before(op, BASE_2))},
        "Probabilities are too even.",
        "planted: exp2 without its factor",
        ATTENTION,
    ),
    Mistake(
        "softmax_plus_one",
        "the denominator has an extra one",
        {"probs": alters(Softmax, _OffByOne)},
        "Rows sum to less than one.",
        "planted: the softmax of another model",
        ATTENTION,
    ),
    Mistake(
        "softmax_without_maximum",
        "the row's maximum is not subtracted before the exponential",
        {"probs": alters(Softmax, lambda op: _Unshifted(op.visible, op.inner))},
        "Scores beyond 88 overflow; without them nothing.",
        "planted: the formula as it stands in a book",
        BLOCK,
        {"float64": "an exponential of float64 overflows at 709, far beyond any score that is asked for"},
        where=in_dtypes(*all_but("float64")),
    ),
)
