"""The table of the composite ops' cases: one case exposes one fault, and its id says which."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from conformance.numbers.rounding import DTYPES, HALF, DType
from conformance.ops.inputs import Draw
from conformance.question.case import OPS, Layout
from conformance.question.dialects import Dialect
from reference import PRESETS, BlockConfig, small

CompositeOp = Literal["rope", "attention", "swiglu", "gelu", "pre_ln_block", "pre_ln_stack"]
KeyMask = Literal["absent", "padding", "hides_a_row"]


@dataclass(frozen=True)
class BlockCase:
    """A question about a composite op, of a `kind`, such as a preset: what of the config the op needs, and its sizes.

    `s` positions after `past` cached ones, the first of them at `position` + `past`. `hot` scales the queries' weights, or the
    queries, and so the scores; `wide` scales the weights of gate and up. The key mask leaves the last keys of the last
    sequence out (`padding`), or the first keys of the first sequence, so that its first query sees none (`hides_a_row`).
    """

    op: CompositeOp
    kind: str
    name: str
    exposes: str
    config: BlockConfig
    dtype: DType = "float32"
    batch: int = 2
    s: int = 7
    past: int = 0
    position: int = 0
    key_mask: KeyMask = "absent"
    x: Draw = field(default_factory=Draw)
    hot: float = 1.0
    wide: float = 1.0
    n_layers: int = 1
    layout: Layout = "contiguous"

    @property
    def id(self) -> str:
        """The path that names the case."""
        return f"{self.op}/{self.kind}/{self.dtype}/{self.name}"

    @property
    def is_block(self) -> bool:
        """Whether it has parameters: a block, or a stack of them."""
        return self.op in ("pre_ln_block", "pre_ln_stack")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of x, or of the first of an op's inputs."""
        return self.inputs[next(iter(self.inputs))]

    @cached_property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """What is differentiated, by name and shape: the op's own inputs, then the parameters."""
        c, t = self.config, self.past + self.s
        rows = (self.batch, self.s)
        match self.op:
            case "rope":
                return {"x": (*rows, c.n_heads, c.d_head)}
            case "attention":
                keys = (self.batch, t, c.n_kv_heads, c.d_head)
                return {"q": (*rows, c.n_heads, c.d_head), "k": keys, "v": keys}
            case "swiglu":
                return {"gate": (*rows, c.d_ff), "up": (*rows, c.d_ff)}
            case "gelu":
                return {"x": (*rows, c.d_ff)}
            case _:
                layers = [f"{layer}." for layer in range(self.n_layers)] if self.op == "pre_ln_stack" else [""]
                return {"x": (*rows, c.d_model)} | {
                    layer + name: shape for layer in layers for name, shape in c.parameters().items()
                }

    @property
    def constants(self) -> dict[str, tuple[int, ...]]:
        """The tensors that are not differentiated, by name and shape."""
        c, tensors = self.config, dict[str, tuple[int, ...]]()
        if self.is_block and self.past:
            cache = (self.batch, self.past, c.n_kv_heads, c.d_head)
            tensors |= {"k_cache": cache, "v_cache": cache}
        if self.key_mask != "absent":
            tensors["key_mask"] = (self.batch, self.past + self.s)
        return tensors

    @property
    def outputs(self) -> dict[str, str]:
        """`out` of a block, y of any other op, and the gradient of every input."""
        return {name: self.dtype for name in ("out" if self.is_block else "y", *(f"d{name}" for name in self.inputs))}

    @property
    def made(self) -> tuple[str, ...]:
        """The outputs that are no gradients."""
        return tuple(self.outputs)[:1]

    def output_shape(self, output: str) -> tuple[int, ...]:
        """Shape of an output: a gradient's is that of its input."""
        return self.inputs.get(output[1:], self.shape)

    @property
    def has_fixture(self) -> bool:
        """Whether golden values are stored: of ops in float32 or plain, of blocks the presets' and Llama's."""
        if not self.is_block:
            return self.dtype == "float32" or self.name == "random"
        plain = self.name == "random" and self.kind in PRESETS and self.dtype in ("float32", "bfloat16")
        return self.op == "pre_ln_block" and (plain or (self.kind == "llama" and self.dtype == "float32"))

    @property
    def dialect(self) -> Dialect:
        """The norms' order of casting, where half precision has one."""
        return Dialect(self.config.order if self.is_block and self.dtype in HALF else "either_order")

    @property
    def eps(self) -> float:
        """The norms'."""
        return self.config.eps

    @property
    def weight_offset(self) -> int | None:
        """The norms', where there are any."""
        return int(self.config.weight_offset) if self.is_block else None

    @property
    def settings(self) -> dict[str, Any]:
        """The op's constants, by the names that a port is given them."""
        c, first = self.config, self.position + (self.past if self.is_block else 0)
        match self.op:
            case "rope":
                return {"position": first, "base": c.rope_base, "interleaved": c.rope == "interleaved"}
            case "attention":
                return {"causal": c.causal}
            case "swiglu":
                return {}
            case "gelu":
                return {"approximate": c.feed_forward == "gelu_tanh"}
            case "pre_ln_block":
                return {"config": asdict(c), "position": first}
            case "pre_ln_stack":
                return {"config": asdict(c), "position": first, "n_layers": self.n_layers}


def _sized(config: BlockConfig) -> BlockConfig:
    """A preset in its small size, with the eps nearest to its own that every dtype but the half ones has."""
    return replace(small(config), eps=float(np.float32(config.eps)))


LLAMA, GPT2 = (_sized(PRESETS[name]) for name in ("llama", "gpt2"))
MULTI_HEAD = replace(LLAMA, n_kv_heads=4)
MULTI_QUERY = replace(LLAMA, n_kv_heads=1)
INTERLEAVED = replace(LLAMA, rope="interleaved")
GELU, GELU_TANH = replace(GPT2, feed_forward="gelu"), GPT2
BIASED = replace(INTERLEAVED, qkv_bias=True, o_bias=True, feed_forward_bias=True)
ENCODER = replace(GELU, causal=False)  # a vision transformer's block, and torch.nn.TransformerEncoderLayer's with norm_first
GEMMA = replace(MULTI_QUERY, weight_offset=1.0)  # but for its tanh GELU in the gate


def _presets() -> Iterator[BlockCase]:
    for kind, config in PRESETS.items():
        yield BlockCase("pre_ln_block", kind, "random", "the block's formula itself, as people know it", _sized(config))


# Asked in every dtype.
PLAIN_OPS = (
    BlockCase("rope", "half_split", "random", "pairs of neighbours instead of halves; the sign of an angle", LLAMA),
    BlockCase("attention", "grouped", "random", "the scale, the mask, the axes; heads tiled instead of repeated", LLAMA),
    BlockCase("attention", "grouped", "hot", "a softmax in low precision, or without its maximum", LLAMA, hot=12.0),
    BlockCase("swiglu", "silu", "random", "gate and up swapped; another activation", LLAMA),
    BlockCase("swiglu", "silu", "large", "an overflow in the sigmoid", LLAMA, x=Draw(scale=30.0)),
    BlockCase("gelu", "erf", "random", "the tanh for the error function", GELU),
    BlockCase("gelu", "erf", "tail", "a share below that cancels; the tanh's error", GELU, x=Draw(scale=0.3, offset=-2.6)),
    BlockCase("gelu", "erf", "large", "an overflow in a cube", GELU, x=Draw(scale=30.0)),
    BlockCase("gelu", "tanh", "random", "the error function for the tanh", GELU_TANH),
    BlockCase("gelu", "tanh", "tail", "the error function for the tanh", GELU_TANH, x=Draw(scale=0.3, offset=-2.6)),
)
# Not in float64, which float32 speaks for.
OPS_OF_A_BLOCK = (
    BlockCase("rope", "interleaved", "random", "pairs of halves instead of neighbours", INTERLEAVED),
    BlockCase("rope", "half_split", "position_5000", "positions or angles in half precision", LLAMA, position=5000),
    BlockCase("attention", "grouped", "cached", "a mask that does not know of the cached keys", LLAMA, s=3, past=6),
    BlockCase("attention", "grouped", "padding", "a key mask left out, or inverted", LLAMA, key_mask="padding"),
    BlockCase("attention", "grouped", "hides_a_row", "a query that sees no key", LLAMA, key_mask="hides_a_row"),
)
# Faults that a dtype hardly changes, or that it takes a compiler long to show.
VARIED_OPS = (
    BlockCase("rope", "half_split", "base_1e6", "the base hard-coded at 1e4", replace(LLAMA, rope_base=1e6), position=20),
    BlockCase("attention", "multi_head", "random", "the scale, the mask, the axes", MULTI_HEAD),
    BlockCase("attention", "multi_query", "random", "one key head for all", MULTI_QUERY),
    BlockCase("attention", "grouped", "one_query", "decoding: every key is visible to the only query", LLAMA, s=1, past=8),
    BlockCase("attention", "grouped", "not_causal", "a causal mask where none belongs", replace(LLAMA, causal=False)),
)

# In float32 and in half precision; all share one program, that of the preset itself.
BLOCKS = (
    BlockCase("pre_ln_block", "llama", "position_5000", "positions or angles in half precision", LLAMA, position=5000),
    BlockCase("pre_ln_block", "llama", "hot", "a mask that is merely low; a softmax in low precision", LLAMA, hot=24.0),
    BlockCase("pre_ln_block", "llama", "large_gates", "a gate, or up, that is clamped", LLAMA, wide=8.0),
    BlockCase("pre_ln_block", "llama", "large", "squares of x in half precision", LLAMA, x=Draw(scale=300.0)),
    BlockCase("pre_ln_block", "llama", "small", "eps left out, or outside the root", LLAMA, x=Draw(scale=2**-8)),
)
MASKED = (
    BlockCase("pre_ln_block", "llama", "cached", "a mask or positions that do not know of the cache", LLAMA, s=3, past=6),
    BlockCase("pre_ln_block", "llama", "padding", "a key mask left out", LLAMA, key_mask="padding"),
    BlockCase(
        "pre_ln_block", "llama", "hides_a_row", "a query that sees no key: NaN, or the mean", LLAMA, key_mask="hides_a_row"
    ),
)
# The same in half precision, and over many rows, in one program instead of three.
CACHED_PADDING = BlockCase(
    "pre_ln_block",
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
VARIED = (
    BlockCase(
        "pre_ln_block", "encoder", "random", "a causal mask where none belongs; the tanh for the error function", ENCODER
    ),
    BlockCase("pre_ln_block", "gemma", "random", "the norms' offset missing or doubled; one key head for all", GEMMA),
    BlockCase(
        "pre_ln_block", "biased", "random", "biases left out; pairs of halves instead of neighbours", BIASED, position=30
    ),
)
STACK = BlockCase("pre_ln_stack", "llama", "random", "layers in the wrong order, or sharing parameters", LLAMA, n_layers=2)


def _table() -> Iterator[BlockCase]:
    for dtype in DTYPES:
        rows = [*PLAIN_OPS, *_presets()]
        rows += [*OPS_OF_A_BLOCK, *BLOCKS] if dtype != "float64" else []
        rows += [*MASKED, *VARIED_OPS, *VARIED, STACK] if dtype == "float32" else []
        rows += MASKED_MANY_ROWS if dtype in HALF else []
        yield from (replace(case, dtype=dtype) for case in rows)


BLOCK_CASES = tuple(sorted(_table(), key=lambda case: OPS.index(case.op)))
