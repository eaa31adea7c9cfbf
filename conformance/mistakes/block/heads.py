"""Heads: which belong together, how they are split and merged, and which projection is which."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from conformance.mistakes.mistake import ATTENTION, BLOCKS, MASKED, Mistake
from conformance.numbers.rounding import HALF
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention_primitives import DotProducts, Mix
from conformance.ops.block.primitives import Linear
from conformance.ops.block.program import Stage
from conformance.ops.block.wrappers import After, Fused, Map

Array = np.ndarray


def _grouped(group: Callable[[int, int, int], int], *names: str) -> Callable[[Composite], Composite]:
    """Query head i of n reads the key or value head group(i, n, n_kv)."""

    def alter(composite: Composite) -> Composite:
        n, n_kv = composite.config.n_heads, composite.config.n_kv_heads
        groups = tuple(group(head, n, n_kv) for head in range(n))
        for name in names or ("scores", "attn"):
            composite = composite.alter(name, (DotProducts, Mix), lambda op: replace(op, groups=groups))
        return composite

    return alter


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


def _split_features_first(composite: Composite) -> Composite:
    for name in ("q", "k", "v"):
        composite = composite.with_op(name, _features_before_heads)
    return composite


def fused(composite: Composite, part: str, takes: dict[str, Array], d_head: int = 0) -> Composite:
    """Projections of the attention or the feed-forward layer read as one, each as the rows that it `takes` of it."""
    of_part = [name for name in composite.config.parameters() if name.startswith(tuple(f"{part}.{name}." for name in takes))]
    parameters = sorted(of_part, key=lambda name: name.endswith("bias"))
    program = composite.program
    for name, take in takes.items():
        op = Fused(tuple(take.reshape(-1).tolist()), len(takes), d_head)

        def joined(stage: Stage, op: Fused = op) -> Stage:
            return replace(stage, op=op, reads=(stage.reads[0], *(stage.layer + parameter for parameter in parameters)))

        program = program.each(name, joined)
    return replace(composite, program=program)


def _fused_by_group(composite: Composite) -> Composite:
    """The fused rows stand as all queries, all keys, all values; they are read group by group."""
    c = composite.config
    queries = c.n_heads // c.n_kv_heads
    rows = np.arange((c.n_heads + 2 * c.n_kv_heads) * c.d_head).reshape(c.n_kv_heads, queries + 2, c.d_head)
    takes = {"q": rows[:, :queries], "k": rows[:, queries], "v": rows[:, queries + 1]}
    return fused(composite, "attention", takes, c.d_head)


def _queries_and_keys_swapped(composite: Composite) -> Composite:
    if composite.case.op == "attention":
        same = composite.config.n_heads == composite.config.n_kv_heads and not composite.case.past
        return composite.reread("scores", {"q": "k", "k": "q"}) if same else composite
    return _weights_swapped(composite, "q", "k") if composite.config.n_heads == composite.config.n_kv_heads else composite


def _keys_and_values_swapped(composite: Composite) -> Composite:
    if composite.case.op == "attention":
        return composite.reread("scores", {"k": "v"}).reread("attn", {"v": "k"})
    return _weights_swapped(composite, "k", "v")


def _weights_swapped(composite: Composite, first: str, second: str) -> Composite:
    for one, other in ((first, second), (second, first)):
        swap = {f"attention.{one}.{kind}": f"attention.{other}.{kind}" for kind in ("weight", "bias")}
        composite = composite.reread(one, swap)
    return composite


MULTI_HEAD = {
    f"attention/{dtype}": "attention alone is asked for with as many key heads as query heads in float32"
    for dtype in ("float64", *HALF)
}
MISTAKES = (
    Mistake(
        "key_heads_tiled",
        "key and value heads are tiled, not repeated: query head i reads head i mod n_kv",
        _grouped(lambda head, n, n_kv: head % n_kv),
        "As many key heads as query heads, or one, hide it.",
        "onnx#7274, axlearn#842",
        ATTENTION,
    ),
    Mistake(
        "value_heads_tiled",
        "value heads are tiled, not repeated",
        _grouped(lambda head, n, n_kv: head % n_kv, "attn"),
        "As many value heads as query heads, or one, hide it.",
        "onnx#7274",
        ATTENTION,
    ),
    Mistake(
        "first_key_head_for_all",
        "every query head reads the first key and value head",
        _grouped(lambda head, n, n_kv: 0),
        "A single key head hides it.",
        "planted: a head read as a broadcast axis",
        ATTENTION,
    ),
    Mistake(
        "key_heads_reversed",
        "key and value heads are read from the last to the first",
        _grouped(lambda head, n, n_kv: n_kv - 1 - head * n_kv // n),
        "A single key head hides it.",
        ops=ATTENTION,
    ),
    Mistake(
        "heads_merged_untransposed",
        "heads are merged without being brought next to each other",
        lambda composite: composite.alter("attn", Mix, _merged_as_they_lie),
        "Rows and heads are mixed up; a single query hides it.",
        "planted: a reshape without its transpose",
        ATTENTION,
    ),
    Mistake(
        "heads_split_features_first",
        "projections are split into d_head parts of n_heads features",
        _split_features_first,
        "Every head has features of all.",
        "planted: two sizes in the wrong order",
        BLOCKS,
    ),
    Mistake(
        "fused_projection_split_by_group",
        "one projection for q, k and v is read group by group, though it is stored one after the other",
        _fused_by_group,
        "Heads get each other's weights.",
        "planted: a checkpoint of another layout",
        BLOCKS,
    ),
    Mistake(
        "queries_and_keys_swapped",
        "queries and keys are exchanged",
        _queries_and_keys_swapped,
        "Scores are transposed before the mask; grouped queries do not allow it.",
        "planted: the order of two arguments",
        MASKED,
        MULTI_HEAD,
    ),
    Mistake(
        "keys_and_values_swapped",
        "keys and values are exchanged",
        _keys_and_values_swapped,
        "Everything.",
        "planted: the order of two arguments",
        ATTENTION,
    ),
)
