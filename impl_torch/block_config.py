"""What a transformer block is made of."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class BlockConfig:
    """What a transformer block is made of: a Pre-LN block, unless its norms are placed elsewhere.

    norm, eps, weight_offset, order
        All norms, and with `qk_norm` the RMSNorm of queries and keys, before they are rotated. `order`
        says where half precision is cast, before the weight multiplies or after; in float64 there is nothing to cast.
    n_kv_heads
        Grouped-query attention where it is less than `n_heads`, multi-query where it is 1.
    rope, rope_base
        `half_split` (Llama, GPT-NeoX) or `interleaved` (RoFormer, GPT-J) pairs, or `none`.
    feed_forward
        `swiglu` of gate and up, or `geglu_tanh`, Gemma's; or the GELU of up: `gelu` exactly, `gelu_tanh` by a hyperbolic
        tangent.
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
    feed_forward: Literal["swiglu", "geglu_tanh", "gelu", "gelu_tanh"] = "swiglu"
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
    placement: Literal["pre", "post", "sandwich", "branch", "parallel", "none"] = "pre"
    norm_bias: bool = True

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
        return {"base": self.rope_base, "interleaved": self.rope == "interleaved", "rotary_features": self.rotary_features}

    @property
    def attention_constants(self) -> dict[str, Any]:
        """What attention is given besides tensors."""
        return {name: getattr(self, name) for name in ("causal", "window", "softcap", "attention_scale")}

    def offset_of(self, norm: str) -> float:
        """What is added to a norm's weight."""
        return (self.qk_norm_constants if "attention." in norm else self.norm_constants)["weight_offset"]

    @property
    def norms_before(self) -> bool:
        """Whether a norm stands before what reads the stream."""
        return self.placement in ("pre", "sandwich", "parallel")

    @property
    def norms_branch(self) -> bool:
        """Whether a norm stands after attention and after the feed-forward layer, before they are added."""
        return self.placement in ("sandwich", "branch")

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a gate."""
        return self.feed_forward in ("swiglu", "geglu_tanh")

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape, in data-flow order; matrices are [out, in]."""
        d, d_q, d_kv = self.d_model, self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        matrices = {"attention.q": (d_q, d), "attention.k": (d_kv, d), "attention.v": (d_kv, d)}
        attention = self._linear(matrices, self.qkv_bias)
        if self.qk_norm:
            of_all = {"q": d_q, "k": d_kv} if self.qk_norm_over == "all_heads" else dict.fromkeys("qk", self.d_head)
            attention |= {f"attention.{name}_norm.weight": (width,) for name, width in of_all.items()}
        attention |= {"attention.sink": (self.n_heads,)} if self.sink else {}
        attention |= self._linear({"attention.o": (d, d_q)}, self.o_bias)
        inner = {"feed_forward.gate": (self.d_ff, d)} if self.gated else {}
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
