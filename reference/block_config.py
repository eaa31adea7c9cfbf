"""What a transformer block is made of, and blocks that people know by name."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args


@dataclass(frozen=True)
class BlockConfig:
    """What a transformer block is made of: a Pre-LN block, unless its norms are placed elsewhere.

    norm, eps, weight_offset, order
        All norms, and with `qk_norm` the RMSNorm over `d_head` of every query and key head, before they are rotated. `order`
        says where half precision is cast, before the weight multiplies or after; in float64 there is nothing to cast.
    n_kv_heads
        Grouped-query attention where it is less than `n_heads`, multi-query where it is 1.
    rope, rope_base
        `half_split` (Llama, GPT-NeoX) or `interleaved` (RoFormer, GPT-J) pairs, or `none`.
    feed_forward
        `swiglu` of gate and up, or the GELU of up: `gelu` exactly, `gelu_tanh` by a hyperbolic tangent.
    qkv_bias, o_bias, feed_forward_bias
        Whether these projections have biases.
    placement
        Where the norms stand. `pre`: before attention and before the feed-forward layer. `post`: after each sum, which the
        stream then is. `branch`: after each of the two, before it is added. `sandwich`: before and after. `parallel`: one
        before both, which read it and are added together. `none`: nowhere.
    norm_bias
        Whether a LayerNorm has a bias.
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
    placement: Literal["pre", "post", "sandwich", "branch", "parallel", "none"] = "pre"
    norm_bias: bool = True

    def __post_init__(self) -> None:
        """Raise `ValueError`, naming the field and its choices, for any other."""
        for field in fields(self):
            choices, given = get_args(field.type), getattr(self, field.name)
            if choices and given not in choices:
                raise ValueError(f"BlockConfig: {field.name} is {given!r}; it must be one of {', '.join(choices)}")

    @property
    def norm_constants(self) -> dict[str, Any]:
        """What the norms are given besides tensors."""
        return {"eps": self.eps, "weight_offset": self.weight_offset}

    @property
    def rope_constants(self) -> dict[str, Any]:
        """What rope is given besides tensors."""
        return {"base": self.rope_base, "interleaved": self.rope == "interleaved"}

    @property
    def norms_before(self) -> bool:
        """Whether a norm stands before what reads the stream."""
        return self.placement in ("pre", "sandwich", "parallel")

    @property
    def norms_branch(self) -> bool:
        """Whether a norm stands after attention and after the feed-forward layer, before they are added."""
        return self.placement in ("sandwich", "branch")

    def centres(self, norm: str) -> bool:
        """Whether the norm of this name is a LayerNorm; those of queries and keys never are."""
        return self.norm == "layer_norm" and not norm.startswith("attention.")

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape, in data-flow order; matrices are [out, in]."""
        d, d_q, d_kv = self.d_model, self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        matrices = {"attention.q": (d_q, d), "attention.k": (d_kv, d), "attention.v": (d_kv, d)}
        attention = self._linear(matrices, self.qkv_bias)
        if self.qk_norm:
            attention |= {f"attention.{name}_norm.weight": (self.d_head,) for name in "qk"}
        attention |= self._linear({"attention.o": (d, d_q)}, self.o_bias)
        inner = {"feed_forward.gate": (self.d_ff, d)} if self.feed_forward == "swiglu" else {}
        matrices = inner | {"feed_forward.up": (self.d_ff, d), "feed_forward.down": (d, self.d_ff)}
        feed_forward = self._linear(matrices, self.feed_forward_bias)
        if self.placement == "parallel":
            return self._norm("attention_norm") | attention | feed_forward
        attention = self._normed("attention_norm", attention, "attn_out_norm")
        return attention | self._normed("ffn_norm", feed_forward, "ffn_out_norm")

    def _normed(self, norm: str, sublayer: dict[str, tuple[int, ...]], out_norm: str) -> dict[str, tuple[int, ...]]:
        """A sublayer's parameters, with those of its norms where they stand."""
        if self.placement == "post":
            return sublayer | self._norm(norm)
        before = self._norm(norm) if self.norms_before else {}
        return before | sublayer | (self._norm(out_norm) if self.norms_branch else {})

    def _norm(self, name: str) -> dict[str, tuple[int, ...]]:
        kinds = ("weight", "bias") if self.norm == "layer_norm" and self.norm_bias else ("weight",)
        return {f"{name}.{kind}": (self.d_model,) for kind in kinds}

    def _linear(self, matrices: dict[str, tuple[int, int]], bias: bool) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in matrices.items():
            shapes |= {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})
        return shapes


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
    # 9B (arXiv:2408.00118), but for its tanh GELU in the gate.
    "gemma2": BlockConfig(
        3584,
        n_heads=16,
        n_kv_heads=8,
        d_head=256,
        d_ff=14336,
        eps=1e-6,
        weight_offset=1.0,
        order="scale_then_cast",
        placement="sandwich",
    ),
    # 7B (arXiv:2501.00656), but for its norms of queries and keys.
    "olmo2": BlockConfig(
        4096,
        n_heads=32,
        n_kv_heads=32,
        d_head=128,
        d_ff=11008,
        eps=1e-6,
        order="scale_then_cast",
        rope_base=5e5,
        placement="branch",
    ),
    # Command R, 35B, as Hugging Face's CohereConfig has it.
    "cohere": BlockConfig(
        8192,
        n_heads=64,
        n_kv_heads=64,
        d_head=128,
        d_ff=22528,
        norm="layer_norm",
        order="scale_then_cast",
        rope="interleaved",
        rope_base=5e5,
        placement="parallel",
        norm_bias=False,
    ),
    # BERT base (arXiv:1810.04805): the first transformer's block (arXiv:1706.03762), with GELU instead of ReLU.
    "post_ln": BlockConfig(
        768,
        n_heads=12,
        n_kv_heads=12,
        d_head=64,
        d_ff=3072,
        norm="layer_norm",
        eps=1e-12,
        order="scale_then_cast",
        rope="none",
        feed_forward="gelu",
        qkv_bias=True,
        o_bias=True,
        feed_forward_bias=True,
        causal=False,
        placement="post",
    ),
    # The MiniMind of 2025 without its norms.
    "no_norm": BlockConfig(512, n_heads=8, n_kv_heads=2, d_head=64, d_ff=1408, rope_base=1e6, placement="none"),
}
"""Blocks that people know, in the sizes that they are known by."""


def small(config: BlockConfig) -> BlockConfig:
    """The same block in a size to test: no two of its dimensions are equal, and heads share keys where the large one's do."""
    n_heads = 6 if config.n_heads == config.n_kv_heads else 4
    n_kv_heads = max(2, n_heads * config.n_kv_heads // config.n_heads)  # one head for all would hide which one is whose
    d_head = 16 if config.d_head * config.n_heads > config.d_model else 8
    return replace(config, d_model=n_heads * 8, n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=d_head, d_ff=20)
