"""The cases of a block, and of several of them one after another."""

from dataclasses import dataclass, field, replace
from typing import Any

from conformance.numbers.rounding import HALF
from conformance.ops.block.case import (
    COHERE,
    GELU,
    GEMMA2,
    GEMMA3,
    GLM4,
    GPT_OSS,
    INTERLEAVED,
    LLAMA,
    MULTI_QUERY,
    NO_NORM,
    OLMO2,
    PHI,
    POST_LN,
    CompositeCase,
    described,
    in_dtypes,
    sized,
)
from conformance.ops.draw import Draw
from conformance.ops.op import Output
from conformance.question.dialects import Dialect
from reference import FEATURES, PRESETS

OUT = Output("out")


@dataclass(frozen=True)
class BlockCase(CompositeCase):
    """x is [batch, s, d_model], after `past` cached positions."""

    op: str = field(default="pre_ln_block", init=False)
    known = FEATURES

    @property
    def returned(self) -> tuple[Output, ...]:
        """The block's own output."""
        return (OUT,)

    @property
    def layers(self) -> tuple[str, ...]:
        """What the names of a layer's parameters and intermediates begin with."""
        return ("",)

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """x, then the parameters."""
        c = self.config
        parameters = {layer + name: shape for layer in self.layers for name, shape in c.parameters().items()}
        return {"x": (self.batch, self.s, c.d_model)} | parameters

    @property
    def constants(self) -> dict[str, tuple[int, ...]]:
        """The cache of keys and values, and the key mask, where there are any."""
        cache = (self.batch, self.past, self.config.n_kv_heads, self.config.d_head)
        return (dict.fromkeys(("k_cache", "v_cache"), cache) if self.past else {}) | super().constants

    @property
    def has_fixture(self) -> bool:
        """Whether golden values are stored: of the plain presets in float32 and bfloat16, and of all of Llama in float32."""
        plain = self.name == "random" and self.kind in PLAIN and self.dtype in ("float32", "bfloat16")
        return plain or (self.kind == "llama" and self.dtype == "float32")

    @property
    def dialect(self) -> Dialect:
        """The norms' order of casting, where half precision has one."""
        normed = self.config.placement != "none" or self.config.qk_norm
        return Dialect(self.config.order if self.dtype in HALF and normed else "either_order")

    @property
    def weight_offset(self) -> int | None:
        """The norms'."""
        return int(self.config.weight_offset)

    @property
    def settings(self) -> dict[str, Any]:
        """The config, and the position of the first query."""
        return {"config": described(self.config), "position": self.position + self.past}


@dataclass(frozen=True)
class StackCase(BlockCase):
    """Blocks, of which layer 3 has parameters whose names begin with `3.`."""

    op: str = field(default="pre_ln_stack", init=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """What the names of a layer's parameters and intermediates begin with."""
        return tuple(f"{layer}." for layer in range(self.n_layers))

    @property
    def has_fixture(self) -> bool:
        """No: its blocks have."""
        return False

    @property
    def settings(self) -> dict[str, Any]:
        """Those of a block, and how many there are."""
        return super().settings | {"n_layers": self.n_layers}


BIASED = replace(INTERLEAVED, qkv_bias=True, o_bias=True, feed_forward_bias=True)
ENCODER = replace(GELU, causal=False)  # a vision transformer's block, and torch.nn.TransformerEncoderLayer's with norm_first
ALL_HEADS = replace(LLAMA, qk_norm=True, qk_norm_over="all_heads", weight_offset=1.0, qk_norm_offset=False)
GEMMA = replace(MULTI_QUERY, weight_offset=1.0)  # but for its tanh GELU in the gate

PLAIN = tuple(kind for kind, config in PRESETS.items() if not config.features)

# Asked in every dtype.
OF_PRESETS = tuple(
    BlockCase(kind, "random", "the block's formula itself, as people know it", sized(PRESETS[kind])) for kind in PLAIN
)
# In float32 and bfloat16, which speak for the other two: norms and sums stand elsewhere, and are what they are in Pre-LN.
PLACED = (
    BlockCase("gemma2", "random", "norms behind the branches left out, or of the sums; a soft cap left out", GEMMA2),
    BlockCase("olmo2", "random", "norms before the branches that belong behind them", OLMO2),
    BlockCase("cohere", "random", "branches in sequence that belong side by side; a bias where the norm has none", COHERE),
    BlockCase("post_ln", "random", "norms before the sums that belong after them", POST_LN),
    BlockCase("no_norm", "random", "norms where none belong", NO_NORM),
)
# In float32 and in half precision; all share one program, that of the preset itself.
VALUES = (
    BlockCase("llama", "position_5000", "positions or angles in half precision", LLAMA, position=5000),
    BlockCase("llama", "hot", "a mask that is merely low; a softmax in low precision", LLAMA, hot=24.0),
    BlockCase("llama", "large_gates", "a gate, or up, that is clamped", LLAMA, wide=8.0),
    BlockCase("llama", "large", "squares of x in half precision", LLAMA, x=Draw(scale=300.0)),
    BlockCase("llama", "small", "eps left out, or outside the root", LLAMA, x=Draw(scale=2**-8)),
)
MASKED = (
    BlockCase("llama", "cached", "a mask or positions that do not know of the cache", LLAMA, s=3, past=6),
    BlockCase("llama", "padding", "a key mask left out", LLAMA, key_mask="padding"),
    BlockCase("llama", "hides_a_row", "a query that sees no key: NaN, or the mean", LLAMA, key_mask="hides_a_row"),
)
# The same in half precision, and over many rows, in one program instead of three.
CACHED_PADDING = BlockCase(
    "llama",
    "cached_padding",
    "a mask that does not know of the cache, or of the key mask; a weight's gradient summed in half precision",
    LLAMA,
    batch=96,
    s=6,
    past=6,
    key_mask="padding",
)
MASKED_MANY_ROWS = (
    CACHED_PADDING,
    replace(
        CACHED_PADDING,
        name="cached_hides_a_row",
        exposes="a query that sees no key: NaN, or the mean",
        key_mask="hides_a_row",
    ),
)
CONFIGS = (
    BlockCase("encoder", "random", "a causal mask where none belongs; the tanh for the error function", ENCODER),
    BlockCase("gemma", "random", "the norms' offset missing or doubled; one key head for all", GEMMA),
    BlockCase("biased", "random", "biases left out; pairs of halves instead of neighbours", BIASED, position=30),
)
# What today's models add to it. Half precision is asked of one of them: the others' features round nowhere else.
OF_TODAY = (
    BlockCase("gpt_oss", "random", "a sink left out; a window off by one", GPT_OSS),
    BlockCase("gpt_oss", "dominates", "a sink that the row's maximum does not know of", GPT_OSS, deep=128.0),
)
OF_TODAY_ONCE = (
    BlockCase("gpt_oss", "cached", "a window counted without the cached keys", GPT_OSS, s=3, past=6),
    BlockCase("gemma3", "random", "the offset of norms of queries and keys left out; the usual scale", GEMMA3, position=20),
    BlockCase("glm4", "random", "all features turned; frequencies of the whole head", GLM4, position=20),
    BlockCase("phi", "random", "the first of the features that are turned, the last, and the next", PHI, position=20),
    BlockCase("gemma2", "hot", "a soft cap left out, before the scale, or on hidden scores", GEMMA2, hot=4.0),
    BlockCase("all_heads", "random", "queries and keys normalised head by head, or with one head's weight", ALL_HEADS),
)
STACK = StackCase("llama", "random", "layers in the wrong order, or sharing parameters", LLAMA, n_layers=2)
BLOCK_CASES = (
    *in_dtypes(OF_PRESETS, (*VALUES, *OF_TODAY), (*MASKED, *CONFIGS, *OF_TODAY_ONCE), MASKED_MANY_ROWS),
    *(replace(case, dtype=dtype) for dtype in ("float32", "bfloat16") for case in PLACED),
)
STACK_CASES = tuple(in_dtypes((), float32=(STACK,)))
