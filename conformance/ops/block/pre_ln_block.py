"""The ops `pre_ln_block` and `pre_ln_stack`: a Pre-LN transformer block, and several of them one after another."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import reference
from conformance.numbers.rounding import HALF
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention import attention_stages
from conformance.ops.block.case import (
    GELU,
    GEMMA3,
    GLM4,
    GPT_OSS,
    INTERLEAVED,
    LLAMA,
    MULTI_QUERY,
    PHI,
    CompositeCase,
    described,
    in_dtypes,
    sized,
)
from conformance.ops.block.feed_forward import gelu_of
from conformance.ops.block.golden import Values, composite_golden, exact_inputs
from conformance.ops.block.primitives import Add, Concatenate, Linear, Normalise, OverHeads, SwiGLU
from conformance.ops.block.program import Program, Stage
from conformance.ops.block.rope import rotate
from conformance.ops.draw import Draw
from conformance.ops.op import Constant, Golden, Op, Output, Tensor
from conformance.question.dialects import Dialect
from reference import FEATURES, PRESETS, BlockConfig

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
        return Dialect(self.config.order if self.dtype in HALF else "either_order")

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
CAPPED = replace(LLAMA, softcap=1.5, attention_scale=0.5)
ALL_HEADS = replace(LLAMA, qk_norm=True, qk_norm_over="all_heads", weight_offset=1.0, qk_norm_offset=False)
GEMMA = replace(MULTI_QUERY, weight_offset=1.0)  # but for its tanh GELU in the gate

PLAIN = tuple(kind for kind, config in PRESETS.items() if not config.features)

# Asked in every dtype.
OF_PRESETS = tuple(
    BlockCase(kind, "random", "the block's formula itself, as people know it", sized(PRESETS[kind])) for kind in PLAIN
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
    BlockCase("capped", "random", "a soft cap left out, before the scale, or on hidden scores", CAPPED, hot=4.0),
    BlockCase("all_heads", "random", "queries and keys normalised head by head, or with one head's weight", ALL_HEADS),
)
STACK = StackCase("llama", "random", "layers in the wrong order, or sharing parameters", LLAMA, n_layers=2)


def _anatomy(case: BlockCase, seed: int) -> Composite:
    given, _ = exact_inputs(case, seed)
    stages: list[Stage] = []
    for layer in case.layers:
        x = stages[-1].name if stages else "x"
        stages += [_in_layer(stage, layer, x) if layer else stage for stage in _stages(case, given)]
    return Composite(case, Program(tuple(stages)), seed)


def _stages(case: BlockCase, given: Values) -> Iterator[Stage]:
    c = case.config
    norm = Normalise(c.eps, c.weight_offset, c.norm == "layer_norm", c.order)
    q, k = "q", "k"
    yield Stage("attention_norm", norm, ("x", *_parameters(c, "attention_norm")))
    for name in ("q", "k", "v"):
        yield Stage(name, Linear(c.d_head), ("attention_norm", *_parameters(c, f"attention.{name}")))
    if c.qk_norm:
        offset = c.weight_offset if c.qk_norm_offset else 0.0
        of_head = replace(norm, centred=False, weight_offset=offset)
        for name in (q, k):
            of_all = OverHeads(of_head) if c.qk_norm_over == "all_heads" else of_head
            yield Stage(f"{name}_norm", of_all, (name, f"attention.{name}_norm.weight"))
        q, k = "q_norm", "k_norm"
    if c.rope != "none":
        turn = rotate(case, case.settings["position"])
        yield Stage("q_rope", turn, (q,))
        yield Stage("k_rope", turn, (k,))
        q, k = "q_rope", "k_rope"
    keys, values = k, "v"
    if case.past:
        yield Stage("keys", Concatenate(), ("k_cache", k))
        yield Stage("values", Concatenate(), ("v_cache", "v"))
        keys, values = "keys", "values"
    yield from attention_stages(case, given, (q, keys, values), merged=True)
    yield Stage("attn_out", Linear(), ("attn", *_parameters(c, "attention.o")))
    yield Stage("h", Add(), ("x", "attn_out"))
    yield Stage("ffn_norm", norm, ("h", *_parameters(c, "ffn_norm")))
    gated = c.feed_forward == "swiglu"
    for name in ("gate", "up") if gated else ("up",):
        yield Stage(name, Linear(), ("ffn_norm", *_parameters(c, f"feed_forward.{name}")))
    yield Stage("act", SwiGLU(), ("gate", "up")) if gated else Stage("act", gelu_of(c), ("up",))
    yield Stage("ffn_out", Linear(), ("act", *_parameters(c, "feed_forward.down")))
    yield Stage("out", Add(), ("h", "ffn_out"))


def _parameters(c: BlockConfig, name: str) -> tuple[str, ...]:
    return tuple(known for known in c.parameters() if known.rpartition(".")[0] == name)


def _in_layer(stage: Stage, layer: str, x: str) -> Stage:
    """A block's stage as one of a stack's; the block's x is what the layer below gives, and a cache is nobody's."""
    return Stage(stage.local_name, stage.op, tuple(x if name == "x" else layer + name for name in stage.reads), layer)


def _golden(case: BlockCase, seed: int) -> Golden:
    """The block, or the blocks of a stack one after another, and then back."""
    tensors, cotangent = exact_inputs(case, seed)
    constants: dict[str, Any] = {name: tensors[name] for name in case.constants if name != "key_mask"}
    constants |= {"position": case.settings["position"]}
    constants |= {"key_mask": tensors["key_mask"] != 0} if "key_mask" in tensors else {}
    parameters = {layer: {name: tensors[layer + name] for name in case.config.parameters()} for layer in case.layers}
    x, taps, given_to = tensors["x"], Values(), Values()
    for layer in case.layers:
        given_to[layer] = x
        x, intermediates = reference.pre_ln_block(x, parameters[layer], case.config, **constants)
        taps |= {layer + name: value for name, value in intermediates.items()}
    gradients: Values = {}
    for layer in reversed(case.layers):
        of_layer = reference.pre_ln_block_vjp(cotangent, given_to[layer], parameters[layer], case.config, **constants)
        cotangent = of_layer.pop("dx")
        gradients |= {f"d{layer}{name[1:]}": gradient for name, gradient in of_layer.items()}
    return composite_golden(_anatomy(case, seed), taps, {"out": x, "dx": cotangent} | gradients)


PRE_LN_BLOCK = Op(
    name="pre_ln_block",
    formula="What spec.md says of the block.",
    tensors=(
        Tensor("x"),
        Tensor("parameters"),
        *(Tensor(name, differentiable=False) for name in ("k_cache", "v_cache", "key_mask")),
    ),
    outputs=(OUT,),
    constants=(Constant("config"), Constant("position")),
    taps=True,
    cases=tuple(in_dtypes(OF_PRESETS, (*VALUES, *OF_TODAY), (*MASKED, *CONFIGS, *OF_TODAY_ONCE), MASKED_MANY_ROWS)),
    golden=_golden,
    anatomy=_anatomy,
    costly=True,
)
PRE_LN_STACK = Op(
    name="pre_ln_stack",
    formula="Blocks whose parameters are named 0.…, 1.….",
    tensors=(Tensor("x"), Tensor("parameters"), Tensor("key_mask", differentiable=False)),
    outputs=(OUT,),
    constants=(Constant("config"), Constant("position"), Constant("n_layers")),
    taps=True,
    cases=tuple(in_dtypes((), float32=(STACK,))),
    golden=_golden,
    anatomy=_anatomy,
    costly=True,
)
