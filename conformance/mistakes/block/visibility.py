"""Who sees whom: causal masks, key masks, caches, and what is done to hidden scores."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from conformance.mistakes.mistake import ATTENTION, BLOCK, MASKED, Mistake
from conformance.numbers.rounding import HALF, compute_dtype, largest, round_to
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention_primitives import Softmax
from conformance.ops.block.primitives import Concatenate
from conformance.ops.block.wrappers import After, Before, Map
from reference.attention import visible_keys

Array = np.ndarray
WINDOW = 4


def _sees(
    visible: Callable[[Composite, Array, Array, Array], Array], only: Callable[[Composite], bool] = lambda composite: True
) -> Callable[[Composite], Composite]:
    """Other keys are visible: a function of the visible ones, of the queries' positions [s, 1] and of the keys' [t]."""

    def alter(composite: Composite) -> Composite:
        case = composite.case
        t = case.past + case.s
        query, key = np.arange(case.past, t)[:, None], np.arange(t)
        change: Callable[[Softmax], Softmax] = lambda op: replace(op, visible=visible(composite, op.visible, query, key))  # noqa: E731
        return composite.alter("probs", Softmax, change) if only(composite) else composite

    return alter


def _is_causal(composite: Composite) -> bool:
    return composite.config.causal


def _has_mask(composite: Composite) -> bool:
    return composite.case.key_mask != "absent"


def _all(visible: Array) -> Array:
    """The keys that padding leaves, which the last query sees all of."""
    return np.broadcast_to(visible[..., -1:, :], visible.shape)


def _without_mask(composite: Composite) -> Array:
    case = composite.case
    return visible_keys(case.s, case.past + case.s, causal=composite.config.causal)


def _inverted(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    return _without_mask(composite) & ~_all(visible)


def _of_queries(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    rows = _all(visible)[..., -1, composite.case.past :]  # batch 1 s
    return _without_mask(composite) & rows[..., None]


def _of_first_sequence(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    return np.broadcast_to(visible[:1], visible.shape)


def _of_next_key(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    padding = _all(visible)
    return _without_mask(composite) & np.concatenate([padding[..., 1:], np.ones_like(padding[..., :1])], axis=-1)


def _of_key_before(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    padding = _all(visible)
    return _without_mask(composite) & np.concatenate([np.ones_like(padding[..., :1]), padding[..., :-1]], axis=-1)


def _hides_one_more(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    padding = _all(visible)
    return visible & np.concatenate([padding[..., 1:], padding[..., -1:]], axis=-1)


def _window(keys: int) -> Callable[[Composite], Composite]:
    return _sees(lambda composite, visible, query, key: visible & (key > query - keys))


def _cached_values(make: Callable[[Array], Array]) -> Callable[[Composite], Composite]:
    """Other values for those that were cached."""
    return lambda composite: composite.with_op("values", lambda op: Before(op, Map(make)))


def _cached_keys_for_values(composite: Composite) -> Composite:
    return composite.reread("values", {"v_cache": "k_cache"})


def _masked(value: Callable[[str], float]) -> Callable[[Composite], Composite]:
    """So much is added to the scores of hidden keys, in the compute dtype."""

    def alter(composite: Composite) -> Composite:
        dtype = compute_dtype(composite.case.dtype)

        def masked(op: Softmax) -> Before:
            lowered = Map(lambda scores: np.where(op.visible, scores, round_to(scores + value(dtype), dtype)))
            return Before(replace(op, visible=np.ones_like(op.visible)), lowered)

        return composite.alter("probs", Softmax, masked)

    return alter


def in_softmax(make: Callable[[Softmax], object]) -> Callable[[Composite], Composite]:
    """Another op where the softmax is."""
    return lambda composite: composite.alter("probs", Softmax, make)


def _mask_multiplies(op: Softmax) -> object:
    zeroed = Map(lambda scores: scores * op.visible, lambda dy, scores: dy * op.visible)
    return Before(replace(op, visible=np.ones_like(op.visible)), zeroed)


def _mask_after_softmax(op: Softmax) -> object:
    zeroed = Map(lambda probs: probs * op.visible, lambda dy, probs: dy * op.visible)
    return After(replace(op, visible=np.ones_like(op.visible)), zeroed)


def _zero_by_zero(op: Softmax) -> object:
    sees = np.any(op.visible, axis=-1, keepdims=True)
    return After(op, Map(lambda probs: np.where(sees, probs, np.nan), lambda dy, probs: np.where(sees, dy, np.nan)))


def _prepended(composite: Composite) -> Composite:
    for name in ("keys", "values"):
        composite = composite.alter(name, Concatenate, lambda op: replace(op, cached_first=False))
    return composite


def _lowest(dtype: str) -> float:
    return -largest(dtype)


FLOAT64 = {"float64": "nothing in float64 is asked for with a cache, or with padding"}
CAUSAL: dict[str, str] = dict.fromkeys(("float64", *HALF), "attention that is not causal is asked for in float32")
MISTAKES = (
    Mistake(
        "causal_mask_missing",
        "queries see the keys that come after them",
        _sees(lambda composite, visible, query, key: _all(visible), _is_causal),
        "All rows but the last; a single query hides it.",
        ops=ATTENTION,
    ),
    Mistake(
        "causal_mask_one_too_few",
        "a query does not see its own key",
        _sees(lambda composite, visible, query, key: visible & (key < query), _is_causal),
        "Every row; the first sees nothing at all.",
        "minimind#631",
        ATTENTION,
    ),
    Mistake(
        "causal_mask_one_too_many",
        "a query sees the key after its own",
        _sees(lambda composite, visible, query, key: _all(visible) & (key <= query + 1), _is_causal),
        "All rows but the last.",
        "flashinfer#348",
        ATTENTION,
    ),
    Mistake(
        "causal_mask_without_cache",
        "query i sees the first i + 1 keys, however many are cached",
        _sees(lambda composite, visible, query, key: visible & (key <= query - composite.case.past), _is_causal),
        "Without cached keys nothing.",
        "flashinfer#348, llama#900",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "causal_mask_unasked",
        "queries do not see what comes after them, though they should",
        _sees(lambda composite, visible, query, key: visible & (key <= query), lambda composite: not _is_causal(composite)),
        "All rows but the last.",
        "planted: a default of the wrong kind of model",
        MASKED,
        CAUSAL,
    ),
    Mistake(
        "window_unasked",
        f"a query sees the last {WINDOW} keys only",
        _window(WINDOW),
        "Sequences that fit into the window hide it.",
        "planted: the sliding window of another model",
        ATTENTION,
    ),
    *(
        Mistake(
            f"window_of_{keys}",
            f"a query sees the last {keys} keys only",
            _window(keys),
            "Sequences that fit into the window hide it.",
            "planted: the sliding window of another model; transformers#39408, Megatron-Bridge#2656: off by one",
            ATTENTION,
        )
        for keys in (2, 3, 5, 6)
    ),
    Mistake(
        "cache_not_seen",
        "cached keys are not attended to",
        _sees(lambda composite, visible, query, key: visible & (key >= composite.case.past)),
        "Without cached keys nothing.",
        "planted: a mask of the new keys' size",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "cached_values_are_keys",
        "the values that were cached are read from the keys' cache",
        _cached_keys_for_values,
        "Without cached keys nothing.",
        "planted: one of two names",
        BLOCK,
        FLOAT64,
    ),
    Mistake(
        "cached_values_are_zero",
        "the values that were cached are zero",
        _cached_values(np.zeros_like),
        "Without cached keys nothing.",
        "planted: a cache that was allocated and never written",
        BLOCK,
        FLOAT64,
    ),
    Mistake(
        "cache_behind",
        "new keys and values stand before the cached ones",
        _prepended,
        "The mask then hides the wrong keys; where all of them are visible nothing is wrong.",
        "planted: the order of two arguments",
        BLOCK,
        FLOAT64,
    ),
    Mistake(
        "key_mask_ignored",
        "padding is attended to",
        _sees(lambda composite, visible, query, key: _without_mask(composite), _has_mask),
        "Rows that see padding.",
        "planted: an argument that is never passed on",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "key_mask_inverted",
        "only padding is attended to",
        _sees(_inverted, _has_mask),
        "All rows.",
        "planted: a mask of what to hide taken for one of what to see",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "key_mask_of_next_key",
        "a key is hidden where the next one is padding",
        _sees(_of_next_key, _has_mask),
        "The key at either end of the padding.",
        "planted: an index off by one",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "key_mask_of_key_before",
        "a key is hidden where the one before it is padding",
        _sees(_of_key_before, _has_mask),
        "The key at either end of the padding.",
        "planted: an index off by one",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "key_mask_hides_one_more",
        "the key before the padding is hidden too",
        _sees(_hides_one_more, _has_mask),
        "Rows that see the last key that is not padding; padding in front hides it.",
        "planted: a length off by one",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "key_mask_on_queries",
        "the key mask hides queries instead of keys",
        _sees(_of_queries, _has_mask),
        "Rows of padding are zero, and padding is attended to.",
        "planted: a mask broadcast along the other axis",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "key_mask_of_first_sequence",
        "the first sequence's key mask holds for all",
        _sees(_of_first_sequence, _has_mask),
        "Sequences of one length hide it.",
        "planted: a mask without its batch",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "mask_multiplies",
        "hidden scores are made zero, not minus infinity",
        in_softmax(_mask_multiplies),
        "A zero is a score like any other: hidden keys take their share.",
        "planted: a product for a sum",
        ATTENTION,
    ),
    Mistake(
        "mask_after_softmax",
        "hidden keys are taken out after the softmax",
        in_softmax(_mask_after_softmax),
        "Rows do not sum to one.",
        "planted: the order of two lines",
        ATTENTION,
    ),
    Mistake(
        "mask_of_minus_100",
        "-100 is added to hidden scores",
        _masked(lambda dtype: -100.0),
        "Hidden keys that score 100 more than visible ones come back; a query that sees no key sees all of them.",
        "transformers#17306",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "mask_of_minus_1e4",
        "-10000 is added to hidden scores",
        _masked(lambda dtype: -1e4),
        "A query that sees no key averages them all.",
        "transformers#17306",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "mask_of_minus_1e9",
        "-1e9 is added to hidden scores",
        _masked(lambda dtype: -1e9),
        "A query that sees no key averages them all.",
        "flashinfer#4401",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "mask_of_lowest_number",
        "the lowest number is added to hidden scores",
        _masked(_lowest),
        "A query that sees no key averages them all.",
        "transformers#17306",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "hidden_row_is_nan",
        "a query that sees no key is zero by zero",
        in_softmax(_zero_by_zero),
        "NaN in that row, and in every gradient.",
        "transformers#17306, flashinfer#4401",
        MASKED,
        FLOAT64,
    ),
)
