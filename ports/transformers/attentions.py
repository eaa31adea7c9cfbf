"""Eager attention and rope of four families of Hugging Face transformers, as they ship: what today's models add to Llama's."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as of_gemma2
from transformers.models.glm4.configuration_glm4 import Glm4Config
from transformers.models.glm4.modeling_glm4 import Glm4RotaryEmbedding
from transformers.models.glm4.modeling_glm4 import apply_rotary_pos_emb as turned_by_glm4
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as of_gpt_oss
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as turned_by_phi3

from conformance.port import Skip
from ports.torch_nn.port import visible
from ports.transformers.functions import UNSEEN, Functions


class _Attention(Functions):
    """Attention alone."""

    rope = swiglu = gelu = None  # pyright: ignore
    skips: ClassVar[dict[str, str]] = {}


class GptOss(_Attention):
    """gpt-oss's attention in eager mode: a sink, and a window."""

    name = "transformers gpt-oss attention"
    features = ("window", "sink", "attention_scale")

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        self.expected = {}

    @staticmethod
    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        sink: Tensor | None = None,
        *,
        causal: bool,
        window: int | None = None,
        attention_scale: float | None = None,
    ) -> Tensor:
        if sink is None:
            raise Skip("every head has a sink")
        return _attend(of_gpt_oss, q, k, v, key_mask, causal, window, attention_scale, sinks=sink)


class Gemma2(_Attention):
    """Gemma 2's attention in eager mode: a soft cap, a scale and a window; Gemma 3's is the same function."""

    name = "transformers Gemma 2 attention"
    features = ("window", "softcap", "attention_scale")

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        self.expected = {"attention/*/float64/*": "the softmax is in float32", "attention/*/hides_a_row": UNSEEN}

    @staticmethod
    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        *,
        causal: bool,
        window: int | None = None,
        softcap: float | None = None,
        attention_scale: float | None = None,
    ) -> Tensor:
        return _attend(of_gemma2, q, k, v, key_mask, causal, window, attention_scale, softcap=softcap)


class _Rope(Functions):
    """Rope alone."""

    attention = swiglu = gelu = None  # pyright: ignore
    features = ("rotary_features",)
    skips: ClassVar[dict[str, str]] = {}

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        self.expected = {"rope/*/float64/*": "cosines and sines are in float32"}


class Phi3(_Rope):
    """Phi's rope, of a part of the head in Phi-4-mini; a pair is a feature of the part's first half and one of its second."""

    name = "transformers Phi rope"

    @staticmethod
    def rope(x: Tensor, *, position: int, base: float, interleaved: bool, rotary_features: int | None = None) -> Tensor:
        if interleaved:
            raise Skip("pairs are a feature of the first half and one of the second")
        return _turned(Phi3Config, Phi3RotaryEmbedding, turned_by_phi3, x, position, base, rotary_features)


class Glm4(_Rope):
    """GLM-4's rope, of half of the head; pairs are neighbours."""

    name = "transformers GLM-4 rope"

    @staticmethod
    def rope(x: Tensor, *, position: int, base: float, interleaved: bool, rotary_features: int | None = None) -> Tensor:
        if not interleaved:
            raise Skip("pairs are neighbours")
        return _turned(Glm4Config, Glm4RotaryEmbedding, turned_by_glm4, x, position, base, rotary_features)


def _attend(
    function: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    causal: bool,
    window: int | None,
    attention_scale: float | None,
    *,
    sinks: Tensor | None = None,
    **how: Any,
) -> Tensor:
    """Their function, with a mask that is merely low, as theirs is."""
    module: Any = nn.Module().eval()
    module.num_key_value_groups, module.sinks = q.shape[-2] // k.shape[-2], sinks
    s, t = q.shape[-3], k.shape[-3]
    seen = visible(s, t, key_mask, causal)
    seen = seen if window is None else seen & torch.ones(s, t, dtype=torch.bool).triu(t - s - window + 1)
    low = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, torch.finfo(q.dtype).min)
    heads = [a.transpose(-2, -3) for a in (q, k, v)]
    scale = q.shape[-1] ** -0.5 if attention_scale is None else attention_scale
    return function(module, *heads, attention_mask=low, scaling=scale, **how)[0]


def _turned(config: Any, rotary: Any, turn: Any, x: Tensor, position: int, base: float, rotary_features: int | None) -> Tensor:
    share = (rotary_features or x.shape[-1]) / x.shape[-1]
    of = {"rope_theta": base, "rope_type": "default", "partial_rotary_factor": share}
    sizes: dict[str, Any] = {"hidden_size": x.shape[-1], "num_attention_heads": 1, "num_key_value_heads": 1, "pad_token_id": 0}
    embedding = rotary(config(**sizes, head_dim=x.shape[-1], rope_parameters=of))
    cos, sin = embedding(x, torch.arange(position, position + x.shape[1])[None])
    return turn(x, x, cos, sin, unsqueeze_dim=2)[0]
