"""Who sees whom: causal masks, key masks, caches, and what is done to hidden scores."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from conformance.mistakes.block.stages import alters, reads, wraps
from conformance.mistakes.mistake import ATTENTION, BLOCK, MASKED, Mistake, Of
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention_primitives import Softmax
from conformance.ops.block.inputs import exact_inputs
from conformance.ops.block.primitives import Concatenate
from conformance.ops.block.wrappers import Before, Map
from reference.attention import visible_keys

Array = np.ndarray
WINDOW = 4


def sees(visible: Callable[[Composite, Array, Array, Array], Array]) -> Of:
    """Other keys are visible: a function of the visible ones, of the queries' positions [s, 1] and of the keys' [t]."""

    def other(op: Softmax, composite: Composite) -> Softmax:
        case = composite.case
        t = case.past + case.s
        query, key = np.arange(case.past, t)[:, None], np.arange(t)
        return replace(op, visible=visible(composite, op.visible, query, key))

    return Of(lambda composite: alters(Softmax, lambda op: other(op, composite)))


def seen(composite: Composite, **instead: Any) -> Array:
    """The keys that are visible, with something `instead` of the config's `causal` or `window`, or of the `key_mask`."""
    case, config = composite.case, composite.config
    key_mask = exact_inputs(case, composite.seed)[0].get("key_mask")
    how: dict[str, Any] = {"causal": config.causal, "window": config.window}
    how |= {"key_mask": None if key_mask is None else key_mask != 0} | instead
    return visible_keys(case.s, case.past + case.s, **how)


def _is_causal(composite: Composite) -> bool:
    return composite.config.causal


def _window(keys: int) -> Of:
    return sees(lambda composite, visible, query, key: visible & (key > query - keys))


FLOAT64 = {"float64": "nothing in float64 is asked for with a cache, or with padding"}
CAUSAL: dict[str, str] = dict.fromkeys(
    ("float64", "float16", "attention/bfloat16"),
    "attention that is not causal is asked for in float32, and a block of it in bfloat16 too",
)
MISTAKES = (
    Mistake(
        "causal_mask_missing",
        "queries see the keys that come after them",
        {"probs": sees(lambda composite, visible, query, key: seen(composite, causal=False))},
        "All rows but the last; a single query hides it.",
        ops=ATTENTION,
        where=_is_causal,
    ),
    Mistake(
        "causal_mask_one_too_few",
        "a query does not see its own key",
        {"probs": sees(lambda composite, visible, query, key: visible & (key < query))},
        "Every row; the first sees nothing at all.",
        "minimind#631",
        ATTENTION,
        where=_is_causal,
    ),
    Mistake(
        "causal_mask_one_too_many",
        "a query sees the key after its own",
        {"probs": sees(lambda composite, visible, query, key: seen(composite, causal=False) & (key <= query + 1))},
        "All rows but the last.",
        "flashinfer#348",
        ATTENTION,
        where=_is_causal,
    ),
    Mistake(
        "causal_mask_without_cache",
        "query i sees the first i + 1 keys, however many are cached",
        {"probs": sees(lambda composite, visible, query, key: visible & (key <= query - composite.case.past))},
        "Without cached keys nothing.",
        "flashinfer#348, llama#900",
        MASKED,
        FLOAT64,
        where=_is_causal,
    ),
    Mistake(
        "causal_mask_unasked",
        "queries do not see what comes after them, though they should",
        {"probs": sees(lambda composite, visible, query, key: visible & (key <= query))},
        "All rows but the last.",
        "planted: a default of the wrong kind of model",
        MASKED,
        CAUSAL,
        where=lambda composite: not _is_causal(composite),
    ),
    Mistake(
        "window_unasked",
        f"a query sees the last {WINDOW} keys only",
        {"probs": _window(WINDOW)},
        "Sequences that fit into the window hide it.",
        "planted: the sliding window of another model",
        ATTENTION,
    ),
    *(
        Mistake(
            f"window_of_{keys}",
            f"a query sees the last {keys} keys only",
            {"probs": _window(keys)},
            "Sequences that fit into the window hide it.",
            "planted: the sliding window of another model; transformers#39408, Megatron-Bridge#2656: off by one",
            ATTENTION,
        )
        for keys in (2, 3, 5, 6)
    ),
    Mistake(
        "cache_not_seen",
        "cached keys are not attended to",
        {"probs": sees(lambda composite, visible, query, key: visible & (key >= composite.case.past))},
        "Without cached keys nothing.",
        "planted: a mask of the new keys' size",
        MASKED,
        FLOAT64,
    ),
    Mistake(
        "cached_values_are_keys",
        "the values that were cached are read from the keys' cache",
        {"values": reads({"v_cache": "k_cache"})},
        "Without cached keys nothing.",
        "planted: one of two names",
        BLOCK,
        FLOAT64,
    ),
    Mistake(
        "cached_values_are_zero",
        "the values that were cached are zero",
        {"values": wraps(lambda op: Before(op, Map(np.zeros_like)))},
        "Without cached keys nothing.",
        "planted: a cache that was allocated and never written",
        BLOCK,
        FLOAT64,
    ),
    Mistake(
        "cache_behind",
        "new keys and values stand before the cached ones",
        dict.fromkeys(("keys", "values"), alters(Concatenate, lambda op: replace(op, cached_first=False))),
        "The mask then hides the wrong keys; where all of them are visible nothing is wrong.",
        "planted: the order of two arguments",
        BLOCK,
        FLOAT64,
    ),
)
