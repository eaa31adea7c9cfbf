"""The op `attention`: scaled dot-product attention, with grouped queries."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import reference
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention_primitives import DotProducts, Mix, Softmax
from conformance.ops.block.case import LLAMA, MULTI_HEAD, MULTI_QUERY, CompositeCase, Y, in_dtypes
from conformance.ops.block.golden import Values, composite_golden, exact_inputs
from conformance.ops.block.program import Program, Stage
from conformance.ops.op import Constant, Golden, Op, Tensor
from reference.attention import visible_keys


@dataclass(frozen=True)
class AttentionCase(CompositeCase):
    """q is [batch, s, n_heads, d_head], k and v are [batch, past + s, n_kv_heads, d_head]."""

    op: str = field(default="attention", init=False)

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """q, k and v."""
        c = self.config
        keys = (self.batch, self.past + self.s, c.n_kv_heads, c.d_head)
        return {"q": (self.batch, self.s, c.n_heads, c.d_head), "k": keys, "v": keys}

    @property
    def settings(self) -> dict[str, Any]:
        """Whether a query sees the keys up to its own alone."""
        return {"causal": self.config.causal}


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


def attention_stages(case: CompositeCase, given: Values, reads: tuple[str, str, str], *, merged: bool) -> tuple[Stage, ...]:
    """Scores, probabilities and the average of the values; `given` are the exact inputs, of which the mask is needed."""
    c, (q, k, v) = case.config, reads
    groups = tuple(head * c.n_kv_heads // c.n_heads for head in range(c.n_heads))
    mask = given["key_mask"] != 0 if "key_mask" in given else None
    visible = visible_keys(case.s, case.past + case.s, causal=c.causal, key_mask=mask)
    return (
        Stage("scores", DotProducts(1 / math.sqrt(c.d_head), groups), (q, k)),
        Stage("probs", Softmax(visible), ("scores",)),
        Stage("attn", Mix(groups, merged), ("probs", v)),
    )


def _anatomy(case: CompositeCase, seed: int) -> Composite:
    given, _ = exact_inputs(case, seed)
    return Composite(case, Program(attention_stages(case, given, ("q", "k", "v"), merged=False)), seed)


def _golden(case: CompositeCase, seed: int) -> Golden:
    tensors, dy = exact_inputs(case, seed)
    q, k, v = (tensors[name] for name in "qkv")
    mask: np.ndarray | None = tensors["key_mask"] != 0 if "key_mask" in tensors else None
    y, scores, probs = reference.attention(q, k, v, causal=case.config.causal, key_mask=mask)
    gradients = reference.attention_vjp(dy, q, k, v, causal=case.config.causal, key_mask=mask)
    return composite_golden(_anatomy(case, seed), {"scores": scores, "probs": probs}, {"y": y} | gradients._asdict())


ATTENTION = Op(
    name="attention",
    formula="softmax(q · k / sqrt(d_head)) · v, head by head.",
    tensors=(Tensor("q"), Tensor("k"), Tensor("v"), Tensor("key_mask", differentiable=False)),
    outputs=(Y,),
    constants=(Constant("causal"),),
    cases=tuple(in_dtypes(PLAIN, MASKS, HEADS)),
    golden=_golden,
    anatomy=_anatomy,
    costly=True,
)
