"""Mistakes with the key mask, and with what is put in the place of hidden scores."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from conformance.mistakes.block.stages import alters
from conformance.mistakes.block.visibility import FLOAT64, Array, seen, sees
from conformance.mistakes.mistake import ATTENTION, MASKED, Mistake, Of
from conformance.numbers.rounding import FORMATS, round_to
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention_primitives import Softmax
from conformance.ops.block.wrappers import After, Before, Map


def _has_mask(composite: Composite) -> bool:
    return composite.case.key_mask != "absent"


def _without_mask(composite: Composite) -> Array:
    return seen(composite, key_mask=None)


def _padding(composite: Composite) -> Array:
    """The keys that padding leaves, of all."""
    return seen(composite, causal=False, window=None)


def _inverted(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    return _without_mask(composite) & ~_padding(composite)


def _of_queries(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    rows = _padding(composite)[..., -1, composite.case.past :]  # batch 1 s
    return _without_mask(composite) & rows[..., None]


def _of_first_sequence(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    return np.broadcast_to(visible[:1], visible.shape)


def _of_next_key(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    padding = _padding(composite)
    return _without_mask(composite) & np.concatenate([padding[..., 1:], np.ones_like(padding[..., :1])], axis=-1)


def _of_key_before(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    padding = _padding(composite)
    return _without_mask(composite) & np.concatenate([np.ones_like(padding[..., :1]), padding[..., :-1]], axis=-1)


def _hides_one_more(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    padding = _padding(composite)
    return visible & np.concatenate([padding[..., 1:], padding[..., -1:]], axis=-1)


def _masked(value: Callable[[str], float]) -> Of:
    """So much is added to the scores of hidden keys, in the compute dtype."""

    def masked(op: Softmax, dtype: str) -> Before:
        lowered = Map(lambda scores: np.where(op.visible, scores, round_to(scores + value(dtype), dtype)))
        return Before(replace(op, visible=np.ones_like(op.visible)), lowered)

    return Of(lambda composite: alters(Softmax, lambda op: masked(op, FORMATS[composite.case.dtype].compute_dtype)))


def _mask_multiplies(op: Softmax) -> object:
    zeroed = Map(lambda scores: scores * op.visible, lambda dy, scores: dy * op.visible)
    return Before(replace(op, visible=np.ones_like(op.visible)), zeroed)


def _mask_after_softmax(op: Softmax) -> object:
    zeroed = Map(lambda probs: probs * op.visible, lambda dy, probs: dy * op.visible)
    return After(replace(op, visible=np.ones_like(op.visible)), zeroed)


def _zero_by_zero(op: Softmax) -> object:
    sees = np.any(op.visible, axis=-1, keepdims=True)
    return After(op, Map(lambda probs: np.where(sees, probs, np.nan), lambda dy, probs: np.where(sees, dy, np.nan)))


def _lowest(dtype: str) -> float:
    return -FORMATS[dtype].largest


MISTAKES = (
    Mistake(
        "key_mask_ignored",
        "padding is attended to",
        {"probs": sees(lambda composite, visible, query, key: _without_mask(composite))},
        "Rows that see padding.",
        "planted: an argument that is never passed on",
        MASKED,
        FLOAT64,
        where=_has_mask,
    ),
    Mistake(
        "key_mask_inverted",
        "only padding is attended to",
        {"probs": sees(_inverted)},
        "All rows.",
        "planted: a mask of what to hide taken for one of what to see",
        MASKED,
        FLOAT64,
        where=_has_mask,
    ),
    Mistake(
        "key_mask_of_next_key",
        "a key is hidden where the next one is padding",
        {"probs": sees(_of_next_key)},
        "The key at either end of the padding.",
        "planted: an index off by one",
        MASKED,
        FLOAT64,
        where=_has_mask,
    ),
    Mistake(
        "key_mask_of_key_before",
        "a key is hidden where the one before it is padding",
        {"probs": sees(_of_key_before)},
        "The key at either end of the padding.",
        "planted: an index off by one",
        MASKED,
        FLOAT64,
        where=_has_mask,
    ),
    Mistake(
        "key_mask_hides_one_more",
        "the key before the padding is hidden too",
        {"probs": sees(_hides_one_more)},
        "Rows that see the last key that is not padding; padding in front hides it.",
        "planted: a length off by one",
        MASKED,
        FLOAT64,
        where=_has_mask,
    ),
    Mistake(
        "key_mask_on_queries",
        "the key mask hides queries instead of keys",
        {"probs": sees(_of_queries)},
        "Rows of padding are zero, and padding is attended to.",
        "planted: a mask broadcast along the other axis",
        MASKED,
        FLOAT64,
        where=_has_mask,
    ),
    Mistake(
        "key_mask_of_first_sequence",
        "the first sequence's key mask holds for all",
        {"probs": sees(_of_first_sequence)},
        "Sequences of one length hide it.",
        "planted: a mask without its batch",
        MASKED,
        FLOAT64,
        where=_has_mask,
    ),
    Mistake(
        "mask_multiplies",
        "hidden scores are made zero, not minus infinity",
        {"probs": alters(Softmax, _mask_multiplies)},
        "A zero is a score like any other: hidden keys take their share.",
        "planted: a product for a sum",
        ATTENTION,
    ),
    Mistake(
        "mask_after_softmax",
        "hidden keys are taken out after the softmax",
        {"probs": alters(Softmax, _mask_after_softmax)},
        "Rows do not sum to one.",
        "planted: the order of two lines",
        ATTENTION,
    ),
    Mistake(
        "mask_of_minus_100",
        "-100 is added to hidden scores",
        {"probs": _masked(lambda dtype: -100.0)},
        "Hidden keys that score 100 more than visible ones come back; a query that sees no key sees all of them.",
        "transformers#17306",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "mask_of_minus_1e4",
        "-10000 is added to hidden scores",
        {"probs": _masked(lambda dtype: -1e4)},
        "A query that sees no key averages them all.",
        "transformers#17306",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "mask_of_minus_1e9",
        "-1e9 is added to hidden scores",
        {"probs": _masked(lambda dtype: -1e9)},
        "A query that sees no key averages them all.",
        "flashinfer#4401",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "mask_of_lowest_number",
        "the lowest number is added to hidden scores",
        {"probs": _masked(_lowest)},
        "A query that sees no key averages them all.",
        "transformers#17306",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "hidden_row_is_nan",
        "a query that sees no key is zero by zero",
        {"probs": alters(Softmax, _zero_by_zero)},
        "NaN in that row, and in every gradient.",
        "transformers#17306, flashinfer#4401",
        MASKED,
        FLOAT64,
    ),
)
