"""What a Pre-LN block is made of, and blocks that people know by name."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class BlockConfig:
    """What a Pre-LN block is made of.

    norm, eps, weight_offset, order
        Both norms, and with `qk_norm` the RMSNorm of queries and keys, before they are rotated. `order`
        says where half precision is cast, before the weight multiplies or after; in float64 there is nothing to cast.
    n_kv_heads
        Grouped-query attention where it is less than `n_heads`, multi-query where it is 1.
    rope, rope_base
        `half_split` (Llama, GPT-NeoX) or `interleaved` (RoFormer, GPT-J) pairs, or `none`.
    feed_forward
        `swiglu` of gate and up, or the GELU of up: `gelu` exactly, `gelu_tanh` by a hyperbolic tangent.
    qkv_bias, o_bias, feed_forward_bias
        Whether these projections have biases.
    window
        How many keys a query sees at most, the last of them its own where attention is `causal`; None for all.
    sink
        Whether every head has one more logit in its softmax, with no value: the parameter `attention.sink`.
    softcap
        Scores become softcap · tanh(scores / softcap), after they are scaled and before they are masked.
    attention_scale
        What dot products are multiplied by; None for d_head^-1/2.
    rotary_features
        How many features of a head are turned, the first ones, as if they were all; None for all.
    qk_norm_over, qk_norm_offset
        Whether QK-norm is over the `d_head` features of every head, or over those of all heads at once, each with a weight of
        its own; and whether `weight_offset` holds for its weights, too.
    """

    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    norm: Literal["rms_norm", "layer_norm"] = "rms_norm"
    eps: float = 1e-5
    weight_offset: float = 0.0
    order: Literal["cast_then_scale", "scale_then_cast"] = "cast_then_scale"
    qk_norm: bool = False
    rope: Literal["half_split", "interleaved", "none"] = "half_split"
    rope_base: float = 10_000.0
    feed_forward: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu"
    qkv_bias: bool = False
    o_bias: bool = False
    feed_forward_bias: bool = False
    causal: bool = True
    window: int | None = None
    sink: bool = False
    softcap: float | None = None
    attention_scale: float | None = None
    rotary_features: int | None = None
    qk_norm_over: Literal["head", "all_heads"] = "head"
    qk_norm_offset: bool = True

    def __post_init__(self) -> None:
        """Raise `ValueError`, naming the field and its choices, for any other."""
        for field in fields(self):
            choices, given = get_args(field.type), getattr(self, field.name)
            if get_origin(field.type) is Literal and given not in choices:
                raise ValueError(f"BlockConfig: {field.name} is {given!r}; it must be one of {', '.join(choices)}")

    @property
    def norm_constants(self) -> dict[str, Any]:
        """What the norms are given besides tensors."""
        return {"eps": self.eps, "weight_offset": self.weight_offset}

    @property
    def qk_norm_constants(self) -> dict[str, Any]:
        """What the norms of queries and keys are given besides tensors."""
        return self.norm_constants | {"weight_offset": self.weight_offset if self.qk_norm_offset else 0.0}

    @property
    def rope_constants(self) -> dict[str, Any]:
        """What rope is given besides tensors."""
        part = {} if self.rotary_features is None else {"rotary_features": self.rotary_features}
        return {"base": self.rope_base, "interleaved": self.rope == "interleaved", **part}

    @property
    def attention_constants(self) -> dict[str, Any]:
        """What attention is given besides tensors."""
        return {name: getattr(self, name) for name in ("causal", "window", "softcap", "attention_scale")}

    @property
    def features(self) -> dict[str, Any]:
        """What it has that a plain block has not: the fields of `FEATURES` that are not at their defaults."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) != field.default}
        return {name: chosen[name] for name in FEATURES if name in chosen}

    def offset_of(self, norm: str) -> float:
        """What is added to a norm's weight."""
        return (self.qk_norm_constants if "attention." in norm else self.norm_constants)["weight_offset"]

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape, in data-flow order; matrices are [out, in]."""
        d, d_q, d_kv = self.d_model, self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        matrices = {"attention.q": (d_q, d), "attention.k": (d_kv, d), "attention.v": (d_kv, d)}
        shapes = self._norm("attention_norm") | self._linear(matrices, self.qkv_bias)
        if self.qk_norm:
            of_all = {"q": d_q, "k": d_kv} if self.qk_norm_over == "all_heads" else dict.fromkeys("qk", self.d_head)
            shapes |= {f"attention.{name}_norm.weight": (width,) for name, width in of_all.items()}
        shapes |= {"attention.sink": (self.n_heads,)} if self.sink else {}
        shapes |= self._linear({"attention.o": (d, d_q)}, self.o_bias) | self._norm("ffn_norm")
        inner = {"feed_forward.gate": (self.d_ff, d)} if self.feed_forward == "swiglu" else {}
        matrices = inner | {"feed_forward.up": (self.d_ff, d), "feed_forward.down": (d, self.d_ff)}
        return shapes | self._linear(matrices, self.feed_forward_bias)

    def _norm(self, name: str) -> dict[str, tuple[int, ...]]:
        kinds = ("weight", "bias") if self.norm == "layer_norm" else ("weight",)
        return {f"{name}.{kind}": (self.d_model,) for kind in kinds}

    def _linear(self, matrices: dict[str, tuple[int, int]], bias: bool) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in matrices.items():
            shapes |= {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})
        return shapes


FEATURES = ("window", "sink", "softcap", "attention_scale", "rotary_features", "qk_norm_over", "qk_norm_offset")
"""The fields that a plain block leaves at their defaults: what an implementation need not have."""

PRESETS = {
    # The MiniMind of 2025: its RMSNorm casts, then scales.
    "minimind": BlockConfig(512, n_heads=8, n_kv_heads=2, d_head=64, d_ff=1408, rope_base=1e6),
    "minimind_2026": BlockConfig(
        768, n_heads=8, n_kv_heads=4, d_head=96, d_ff=2432, eps=1e-6, order="scale_then_cast", qk_norm=True, rope_base=1e6
    ),
    "llama": BlockConfig(2048, n_heads=32, n_kv_heads=8, d_head=64, d_ff=8192, rope_base=5e5),  # Llama 3.2 1B
    "qwen3": BlockConfig(1024, n_heads=16, n_kv_heads=8, d_head=128, d_ff=3072, eps=1e-6, qk_norm=True, rope_base=1e6),  # 0.6B
    "gpt2": BlockConfig(
        768,
        n_heads=12,
        n_kv_heads=12,
        d_head=64,
        d_ff=3072,
        norm="layer_norm",
        order="scale_then_cast",
        rope="none",
        feed_forward="gelu_tanh",
        qkv_bias=True,
        o_bias=True,
        feed_forward_bias=True,
    ),
    # Gemma 3 27B, a layer with a window, but for its tanh GELU in the gate and the norms that it has after each branch.
    # https://huggingface.co/google/gemma-3-27b-it: query_pre_attn_scalar is 168, the width over the heads.
    "gemma3": BlockConfig(
        5376,
        n_heads=32,
        n_kv_heads=16,
        d_head=128,
        d_ff=21504,
        eps=1e-6,
        weight_offset=1.0,
        order="scale_then_cast",
        qk_norm=True,
        window=1024,
        attention_scale=168**-0.5,
    ),
    # gpt-oss-20b, a layer with a window, and one of its experts without the clamp; without YaRN's other frequencies.
    # https://huggingface.co/openai/gpt-oss-20b
    "gpt_oss": BlockConfig(
        2880,
        n_heads=64,
        n_kv_heads=8,
        d_head=64,
        d_ff=2880,
        order="scale_then_cast",
        rope_base=150_000.0,
        qkv_bias=True,
        o_bias=True,
        feed_forward_bias=True,
        window=128,
        sink=True,
    ),
    # GLM-4-9B-0414, but for the norms that it has after each branch. https://huggingface.co/zai-org/GLM-4-9B-0414
    "glm4": BlockConfig(
        4096, n_heads=32, n_kv_heads=2, d_head=128, d_ff=13696, rope="interleaved", qkv_bias=True, rotary_features=64
    ),
    # Phi-4-mini: of 128 features 96 are turned. https://huggingface.co/microsoft/Phi-4-mini-instruct
    "phi": BlockConfig(3072, n_heads=24, n_kv_heads=8, d_head=128, d_ff=8192, rotary_features=96),
}
"""Blocks that people know, in the sizes that they are known by."""


def small(config: BlockConfig) -> BlockConfig:
    """The same block in a size to test: no two of its dimensions are equal, and heads share keys where the large one's do.

    Of a head as large a share is turned, and the scale is as far from d_head^-1/2; a window is narrow and a cap is low enough
    for few keys and for scores about one.
    """
    n_heads = 6 if config.n_heads == config.n_kv_heads else 4
    n_kv_heads = max(2, n_heads * config.n_kv_heads // config.n_heads)  # one head for all would hide which one is whose
    inner = config.n_heads * config.d_head
    d_head = 8 if inner == config.d_model else 16 if inner > config.d_model else 6
    share = d_head / config.d_head
    return replace(
        config,
        d_model=n_heads * 8,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        d_ff=20,
        window=config.window and 4,
        softcap=config.softcap and 1.5,
        attention_scale=config.attention_scale and config.attention_scale * share**-0.5,
        rotary_features=config.rotary_features and int(config.rotary_features * share),
    )
