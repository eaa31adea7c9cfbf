"""Heads: which belong together, how they are split and merged, and which projection is which."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from conformance.mistakes.block.stages import Become, alters, parameters_of, wraps
from conformance.mistakes.mistake import ATTENTION, BLOCKS, MASKED, Change, Mistake, Of, all_but
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention_primitives import DotProducts, Mix
from conformance.ops.block.primitives import Linear
from conformance.ops.block.wrappers import After, Fused, Map
from reference import BlockConfig

Array = np.ndarray
Rows = Callable[[BlockConfig], Array]
GROUPED = ("scores", "attn")


def _grouped(group: Callable[[int, int, int], int]) -> Of:
    """Query head i of n reads the key or value head group(i, n, n_kv)."""

    def other(composite: Composite) -> Become:
        n, n_kv = composite.config.n_heads, composite.config.n_kv_heads
        groups = tuple(group(head, n, n_kv) for head in range(n))
        return alters((DotProducts, Mix), lambda op: replace(op, groups=groups))

    return Of(other)


def _merged_as_they_lie(op: Mix) -> object:
    """[batch, h, s, d] read as [batch, s, h·d]."""
    heads = len(op.groups)

    def split(a: Array) -> Array:
        return a.reshape(*a.shape[:2], heads, -1)

    return After(
        op,
        Map(
            lambda y: np.swapaxes(split(y), 1, 2).reshape(y.shape),
            lambda dy, y: np.swapaxes(dy.reshape(len(y), heads, y.shape[1], -1), 1, 2).reshape(y.shape),
        ),
    )


def _features_before_heads(op: Linear) -> object:
    """A projection's rows read as [d_head, h] instead of [h, d_head]."""

    def split(y: Array) -> Array:
        return np.swapaxes(y.reshape(*y.shape[:-2], y.shape[-1], y.shape[-2]), -1, -2)

    return After(op, Map(split, lambda dy, y: np.swapaxes(dy, -1, -2).reshape(y.shape)))


def fused(part: str, takes: Mapping[str, Rows]) -> Change:
    """Projections of the attention or the feed-forward layer read as one, each as the rows that it `takes` of it."""

    def joined(composite: Composite, take: Rows) -> Become:
        c = composite.config
        of_part = [name for name in c.parameters() if name.startswith(tuple(f"{part}.{name}." for name in takes))]
        parameters = sorted(of_part, key=lambda name: name.endswith("bias"))
        d_head = c.d_head if part == "attention" else 0
        op = Fused(tuple(take(c).reshape(-1).tolist()), len(takes), d_head)
        return lambda stage: replace(stage, op=op, reads=(stage.reads[0], *(stage.layer + each for each in parameters)))

    return {name: Of(partial(joined, take=take)) for name, take in takes.items()}


def _by_group(c: BlockConfig) -> Array:
    """The fused rows stand as all queries, all keys, all values; they are read group by group, its key and its value last."""
    rows = np.arange((c.n_heads + 2 * c.n_kv_heads) * c.d_head)
    return rows.reshape(c.n_kv_heads, c.n_heads // c.n_kv_heads + 2, c.d_head)


def _swapped(first: str, second: str) -> Change:
    """Two projections have each other's parameters."""
    return {
        one: parameters_of(f"attention.{other}", instead_of=f"attention.{one}")
        for one, other in ((first, second), (second, first))
    }


def _reads_inputs(instead: Mapping[str, str]) -> Of:
    """It reads other inputs, where queries, keys and values are inputs; where they are projected, nothing becomes of it."""
    return Of(lambda composite: lambda stage: composite.program.reread(stage, {} if composite.has("k") else instead))


def _can_be_swapped(composite: Composite) -> bool:
    """Whether queries and keys have one shape."""
    one_shape = composite.config.n_heads == composite.config.n_kv_heads
    return one_shape and (composite.has("k") or not composite.case.past)


MULTI_HEAD = {
    f"attention/{dtype}": "attention alone is asked for with as many key heads as query heads in float32"
    for dtype in all_but("float32")
}
MISTAKES = (
    Mistake(
        "key_heads_tiled",
        "key and value heads are tiled, not repeated: query head i reads head i mod n_kv",
        dict.fromkeys(GROUPED, _grouped(lambda head, n, n_kv: head % n_kv)),
        "As many key heads as query heads, or one, hide it.",
        "onnx#7274, axlearn#842",
        ATTENTION,
    ),
    Mistake(
        "value_heads_tiled",
        "value heads are tiled, not repeated",
        {"attn": _grouped(lambda head, n, n_kv: head % n_kv)},
        "As many value heads as query heads, or one, hide it.",
        "onnx#7274",
        ATTENTION,
    ),
    Mistake(
        "first_key_head_for_all",
        "every query head reads the first key and value head",
        dict.fromkeys(GROUPED, _grouped(lambda head, n, n_kv: 0)),
        "A single key head hides it.",
        "planted: a head read as a broadcast axis",
        ATTENTION,
    ),
    Mistake(
        "key_heads_reversed",
        "key and value heads are read from the last to the first",
        dict.fromkeys(GROUPED, _grouped(lambda head, n, n_kv: n_kv - 1 - head * n_kv // n)),
        "A single key head hides it.",
        ops=ATTENTION,
    ),
    Mistake(
        "heads_merged_untransposed",
        "heads are merged without being brought next to each other",
        {"attn": alters(Mix, _merged_as_they_lie)},
        "Rows and heads are mixed up; a single query hides it.",
        "planted: a reshape without its transpose",
        ATTENTION,
    ),
    Mistake(
        "heads_split_features_first",
        "projections are split into d_head parts of n_heads features",
        dict.fromkeys(("q", "k", "v"), wraps(_features_before_heads)),
        "Every head has features of all.",
        "planted: two sizes in the wrong order",
        BLOCKS,
    ),
    Mistake(
        "fused_projection_split_by_group",
        "one projection for q, k and v is read group by group, though it is stored one after the other",
        fused(
            "attention",
            {"q": lambda c: _by_group(c)[:, :-2], "k": lambda c: _by_group(c)[:, -2], "v": lambda c: _by_group(c)[:, -1]},
        ),
        "Heads get each other's weights.",
        "planted: a checkpoint of another layout",
        BLOCKS,
    ),
    Mistake(
        "queries_and_keys_swapped",
        "queries and keys are exchanged",
        {"scores": _reads_inputs({"q": "k", "k": "q"}), **_swapped("q", "k")},
        "Scores are transposed before the mask; grouped queries do not allow it.",
        "planted: the order of two arguments",
        MASKED,
        MULTI_HEAD,
        where=_can_be_swapped,
    ),
    Mistake(
        "keys_and_values_swapped",
        "keys and values are exchanged",
        {"scores": _reads_inputs({"k": "v"}), "attn": _reads_inputs({"v": "k"}), **_swapped("k", "v")},
        "Everything.",
        "planted: the order of two arguments",
        ATTENTION,
    ),
)
