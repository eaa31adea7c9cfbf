"""The ops `pre_ln_block` and `pre_ln_stack`: a transformer block, wherever its norms stand, and several one after another."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import reference
from conformance.numbers.rounding import HALF
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention import attention_stages
from conformance.ops.block.case import GELU, INTERLEAVED, LLAMA, MULTI_QUERY, CompositeCase, in_dtypes, sized
from conformance.ops.block.feed_forward import gelu_of
from conformance.ops.block.golden import Values, composite_golden, exact_inputs
from conformance.ops.block.primitives import Add, AddBoth, Concatenate, Linear, Normalise, SwiGLU
from conformance.ops.block.program import Program, Stage
from conformance.ops.block.rope import rotate
from conformance.ops.draw import Draw
from conformance.ops.op import Constant, Golden, Op, Output, Tensor
from conformance.question.dialects import Dialect
from reference import PRESETS, BlockConfig
from reference.pre_ln_block import SUM_NORMS

OUT = Output("out")


@dataclass(frozen=True)
class BlockCase(CompositeCase):
    """x is [batch, s, d_model], after `past` cached positions."""

    op: str = field(default="pre_ln_block", init=False)

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
        """Whether golden values are stored: of the Pre-LN presets in float32 and bfloat16, and of all of Llama in float32."""
        preset = self.kind in PRESETS and self.config.placement == "pre"
        plain = self.name == "random" and preset and self.dtype in ("float32", "bfloat16")
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
        return {"config": asdict(self.config), "position": self.position + self.past}


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
GEMMA = replace(MULTI_QUERY, weight_offset=1.0)  # but for its tanh GELU in the gate

OF_PRESETS = tuple(
    BlockCase(kind, "random", "the block's formula itself, as people know it", sized(config))
    for kind, config in PRESETS.items()
)
# Asked in every dtype.
PRE_LN = tuple(case for case in OF_PRESETS if case.config.placement == "pre")
# In float32 and bfloat16, which speak for the other two: norms and sums stand elsewhere, and are what they are in Pre-LN.
PLACED = tuple(case for case in OF_PRESETS if case.config.placement != "pre")
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
    q, k, read = "q", "k", "x"
    if c.norms_before:
        yield Stage("attention_norm", norm, ("x", *_parameters(c, "attention_norm")))
        read = "attention_norm"
    for name in ("q", "k", "v"):
        yield Stage(name, Linear(c.d_head), (read, *_parameters(c, f"attention.{name}")))
    if c.qk_norm:
        for name in (q, k):
            yield Stage(f"{name}_norm", replace(norm, centred=False), (name, f"attention.{name}_norm.weight"))
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
    if c.placement != "parallel":
        yield from _joined(c, norm, "attn", "x", "h")
        read = "h"
        if c.norms_before:
            yield Stage("ffn_norm", norm, ("h", *_parameters(c, "ffn_norm")))
            read = "ffn_norm"
    gated = c.feed_forward == "swiglu"
    for name in ("gate", "up") if gated else ("up",):
        yield Stage(name, Linear(), (read, *_parameters(c, f"feed_forward.{name}")))
    yield Stage("act", SwiGLU(), ("gate", "up")) if gated else Stage("act", gelu_of(c), ("up",))
    yield Stage("ffn_out", Linear(), ("act", *_parameters(c, "feed_forward.down")))
    if c.placement == "parallel":
        yield Stage("out", AddBoth(), ("x", "attn_out", "ffn_out"))
    else:
        yield from _joined(c, norm, "ffn", "h", "out")


def _joined(c: BlockConfig, norm: Normalise, branch: str, stream: str, joined: str) -> Iterator[Stage]:
    """The stream and what `branch`, attn or ffn, gives to it, with the norms that stand behind."""
    given = f"{branch}_out"
    multiplies = not (c.norm == "layer_norm" and c.norm_bias)  # a norm's last step, if it does not add a bias
    add = Add((c.placement == "post" and stream == "h" and multiplies, c.norms_branch and multiplies))
    if c.norms_branch:
        yield Stage(f"{given}_norm", norm, (given, *_parameters(c, f"{given}_norm")))
        given = f"{given}_norm"
    if c.placement == "post":
        yield Stage(f"{branch}_sum", add, (stream, given))
        yield Stage(joined, norm, (f"{branch}_sum", *_parameters(c, SUM_NORMS[branch])))
    else:
        yield Stage(joined, add, (stream, given))


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
    cases=(
        *in_dtypes(PRE_LN, VALUES, (*MASKED, *CONFIGS), MASKED_MANY_ROWS),
        *(replace(case, dtype=dtype) for dtype in ("float32", "bfloat16") for case in PLACED),
    ),
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
