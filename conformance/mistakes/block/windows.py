"""The sliding window of attention: its width, from where it is counted, and whether there is one."""

from conformance.mistakes.block.visibility import seen, sees
from conformance.mistakes.mistake import MASKED, Mistake, all_but
from conformance.numbers.rounding import HALF
from conformance.ops.block.anatomy import Composite

IN_FLOAT64 = {"float64": "nothing in float64 is asked for with a window"}
ALONE = {f"attention/{dtype}": "attention alone is asked for with a window in float32" for dtype in all_but("float32")}
CACHED = dict.fromkeys(HALF, "a window is asked for with cached keys in float32")


def _width(composite: Composite) -> int:
    return composite.config.window or 0


def _has_window(composite: Composite) -> bool:
    return composite.config.window is not None


MISTAKES = (
    Mistake(
        "window_one_narrower",
        "the window is one key narrower than it is said to be",
        {"probs": sees(lambda c, visible, query, key: visible & (key > query - _width(c) + 1))},
        "Sequences that fit into the narrower window hide it.",
        "transformers#39408, Megatron-Bridge#2656",
        MASKED,
        ALONE | IN_FLOAT64,
        where=_has_window,
    ),
    Mistake(
        "window_one_wider",
        "the window is one key wider than it is said to be, as if a query's own key did not count",
        {"probs": sees(lambda c, visible, query, key: seen(c, window=_width(c) + 1))},
        "Sequences that fit into the window hide it.",
        "transformers#39408, Megatron-Bridge#2656",
        MASKED,
        ALONE | IN_FLOAT64,
        where=_has_window,
    ),
    Mistake(
        "window_ignored",
        "a query sees all keys up to its own, whatever the window",
        {"probs": sees(lambda c, visible, query, key: seen(c, window=None))},
        "Sequences that fit into the window hide it.",
        "transformers#29623",
        MASKED,
        ALONE | IN_FLOAT64,
        where=_has_window,
    ),
    Mistake(
        "window_without_cache",
        "the window is counted from a query's number among the new ones, however many keys are cached",
        {"probs": sees(lambda c, visible, query, key: seen(c, window=None) & (key > query - c.case.past - _width(c)))},
        "Without cached keys nothing.",
        "transformers#29623",
        MASKED,
        ALONE | IN_FLOAT64 | CACHED,
        where=_has_window,
    ),
)
