"""The op `attention`: scaled dot-product attention, with grouped queries."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import reference
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention_primitives import DotProducts, Mix, SoftCap, Softmax
from conformance.ops.block.case import LLAMA, MULTI_HEAD, MULTI_QUERY, CompositeCase, Y, in_dtypes
from conformance.ops.block.golden import Values, composite_golden, exact_inputs
from conformance.ops.block.program import Program, Stage
from conformance.ops.op import Constant, Golden, Op, Tensor
from reference.attention import visible_keys


@dataclass(frozen=True)
class AttentionCase(CompositeCase):
    """q is [batch, s, n_heads, d_head], k and v are [batch, past + s, n_kv_heads, d_head]."""

    op: str = field(default="attention", init=False)
    known = ("window", "sink", "softcap", "attention_scale")

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """q, k and v, and the heads' sinks where they have them."""
        c = self.config
        keys = (self.batch, self.past + self.s, c.n_kv_heads, c.d_head)
        tensors = {"q": (self.batch, self.s, c.n_heads, c.d_head), "k": keys, "v": keys}
        return tensors | ({"sink": (c.n_heads,)} if c.sink else {})

    @property
    def settings(self) -> dict[str, Any]:
        """Whether a query sees the keys up to its own alone, and what else there is; a sink is a tensor besides."""
        return {"causal": self.config.causal} | self.features


# Asked in every dtype.
PLAIN = (
    AttentionCase("grouped", "random", "the scale, the mask, the axes; heads tiled instead of repeated", LLAMA),
    AttentionCase("grouped", "hot", "a softmax in low precision, or without its maximum", LLAMA, hot=12.0),
)
# Not in float64, which float32 speaks for.
MASKS = (
    AttentionCase("grouped", "cached", "a mask that does not know of the cached keys", LLAMA, s=3, past=6),
    AttentionCase("grouped", "padding", "a key mask left out, or inverted", LLAMA, key_mask="padding"),
    AttentionCase("grouped", "hides_a_row", "a query that sees no key", LLAMA, key_mask="hides_a_row"),
)
# Faults that a dtype hardly changes, or that it takes a compiler long to show.
HEADS = (
    AttentionCase("multi_head", "random", "the scale, the mask, the axes", MULTI_HEAD),
    AttentionCase("multi_query", "random", "one key head for all", MULTI_QUERY),
    AttentionCase("grouped", "one_query", "decoding: every key is visible to the only query", LLAMA, s=1, past=8),
    AttentionCase("grouped", "not_causal", "a causal mask where none belongs", replace(LLAMA, causal=False)),
)

# What today's models add, in few programs; those of one model share one.
SINK = replace(LLAMA, sink=True)
CAPPED = replace(LLAMA, softcap=1.5, attention_scale=0.5)
ADDED = (
    AttentionCase("sink", "random", "a sink left out, shared by all heads, or added after the softmax", SINK),
    AttentionCase("sink", "dominates", "a sink that the row's maximum does not know of", SINK, deep=128.0),
    AttentionCase("capped", "random", "a soft cap left out, or before the scale; the usual scale", CAPPED),
    AttentionCase(
        "capped", "far_beyond", "a slope of one minus a square that is one; a cap on hidden scores", CAPPED, hot=24.0
    ),
)
WINDOWS = (
    AttentionCase(
        "window", "cached", "a window off by one, or counted without the cached keys", replace(LLAMA, window=4), s=3, past=6
    ),
    AttentionCase("window", "as_wide", "a window off by one, at the last query alone", replace(LLAMA, window=9), s=3, past=6),
    AttentionCase("window", "wider", "a window narrower than it is said to be", replace(LLAMA, window=11), s=3, past=6),
)


def attention_stages(case: CompositeCase, given: Values, reads: tuple[str, str, str], *, merged: bool) -> tuple[Stage, ...]:
    """Scores, probabilities and the average of the values; `given` are the exact inputs, of which the mask is needed."""
    c, (q, k, v) = case.config, reads
    groups = tuple(head * c.n_kv_heads // c.n_heads for head in range(c.n_heads))
    mask = given["key_mask"] != 0 if "key_mask" in given else None
    visible = visible_keys(case.s, case.past + case.s, causal=c.causal, window=c.window, key_mask=mask)
    scale = 1 / math.sqrt(c.d_head) if c.attention_scale is None else c.attention_scale
    scores = "scores" if c.softcap is None else "capped"
    sink = (name for name in ("sink", "attention.sink") if c.sink and name in case.inputs)
    return (
        Stage("scores", DotProducts(scale, groups), (q, k)),
        *(() if c.softcap is None else (Stage("capped", SoftCap(c.softcap), ("scores",)),)),
        Stage("probs", Softmax(visible), (scores, *sink)),
        Stage("attn", Mix(groups, merged), ("probs", v)),
    )


def _anatomy(case: CompositeCase, seed: int) -> Composite:
    given, _ = exact_inputs(case, seed)
    return Composite(case, Program(attention_stages(case, given, ("q", "k", "v"), merged=False)), seed)


def _golden(case: CompositeCase, seed: int) -> Golden:
    tensors, dy = exact_inputs(case, seed)
    given = {name: tensors[name] for name in case.inputs}
    mask: np.ndarray | None = tensors["key_mask"] != 0 if "key_mask" in tensors else None
    attended = reference.attention(**given, **case.config.attention_constants, key_mask=mask)
    gradients = reference.attention_vjp(dy, **given, **case.config.attention_constants, key_mask=mask)._asdict()
    between = {"scores": attended.scores, "probs": attended.probs}
    between |= {} if case.config.softcap is None else {"capped": attended.capped}
    exact = {"y": attended.y} | {f"d{name}": gradients[f"d{name}"] for name in given}
    return composite_golden(_anatomy(case, seed), between, exact)


ATTENTION = Op(
    name="attention",
    formula="softmax(q · k / sqrt(d_head)) · v, head by head.",
    tensors=(Tensor("q"), Tensor("k"), Tensor("v"), Tensor("key_mask", differentiable=False), Tensor("sink", sometimes=True)),
    outputs=(Y,),
    constants=(
        Constant("causal"),
        *(Constant(name, sometimes=True) for name in ("window", "softcap", "attention_scale")),
    ),
    cases=tuple(in_dtypes(PLAIN, (*MASKS, *ADDED), (*HEADS, *WINDOWS))),
    golden=_golden,
    anatomy=_anatomy,
    costly=True,
)
