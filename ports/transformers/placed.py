"""Hugging Face's decoder layers whose norms stand elsewhere than in Llama's, as they ship, with the case's weights."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.cohere.configuration_cohere import CohereConfig
from transformers.models.cohere.modeling_cohere import CohereDecoderLayer, CohereRotaryEmbedding
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer, Gemma2RotaryEmbedding
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer, Gemma3RotaryEmbedding
from transformers.models.glm4.configuration_glm4 import Glm4Config
from transformers.models.glm4.modeling_glm4 import Glm4DecoderLayer, Glm4RotaryEmbedding
from transformers.models.olmo2.configuration_olmo2 import Olmo2Config
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer, Olmo2RotaryEmbedding

from conformance.port import Skip
from conformance.port.protocol import Call
from ports.transformers.layers import LlamaLayer
from reference.checkpoints import fuse, to_glm4, to_hf


class Gemma2Layer(LlamaLayer):
    """Gemma2DecoderLayer with a window, in eager mode: torch's own attention has no soft cap."""

    name = "transformers Gemma 2 layer"
    orders = ("scale_then_cast",)
    weight_offsets = (1,)
    features = ("window", "softcap", "attention_scale", "placement")
    Config = Gemma2Config
    Layer = Gemma2DecoderLayer
    Rope = Gemma2RotaryEmbedding
    attention_by = "eager"
    fixed: ClassVar[dict[str, Any]] = LlamaLayer.fixed | {"feed_forward": "geglu_tanh", "placement": "sandwich"}

    def run(self, call: Call, given: dict[str, Any]) -> dict[str, np.ndarray]:
        if "window" not in call.settings["config"]:
            raise Skip("a layer without a window")
        return super().run(call, given)

    def _make(self, c: dict[str, Any]) -> nn.Module:
        layer: Any = super()._make(c)
        layer.self_attn.scaling = c.get("attention_scale", layer.self_attn.scaling)  # theirs is of a whole number
        return layer

    def _sizes(self, c: dict[str, Any]) -> dict[str, Any]:
        return super()._sizes(c) | {
            "num_hidden_layers": 1,
            "layer_types": ["sliding_attention"],
            "sliding_window": c["window"],
            "query_pre_attn_scalar": c["d_head"],
            "attn_logit_softcapping": c.get("softcap"),
        }

    def _named(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return to_hf(parameters, placement="sandwich")


class Gemma3Layer(Gemma2Layer):
    """Gemma3DecoderLayer with a window: queries and keys are normalised, and no score is capped."""

    name = "transformers Gemma 3 layer"
    features = ("window", "attention_scale", "placement")
    Config = Gemma3TextConfig
    Layer = Gemma3DecoderLayer
    Rope = Gemma3RotaryEmbedding
    rope_of_layer = ("sliding_attention",)
    attention_by = "sdpa"
    fixed: ClassVar[dict[str, Any]] = Gemma2Layer.fixed | {"qk_norm": True}

    def _sizes(self, c: dict[str, Any]) -> dict[str, Any]:
        sizes = super()._sizes(c)
        return sizes | {"rope_parameters": {"sliding_attention": sizes["rope_parameters"]}}


class Olmo2Layer(LlamaLayer):
    """Olmo2DecoderLayer: norms behind the branches, and over all heads of queries and of keys."""

    name = "transformers OLMo 2 layer"
    orders = ("scale_then_cast",)
    features = ("qk_norm_over", "placement")
    Config = Olmo2Config
    Layer = Olmo2DecoderLayer
    Rope = Olmo2RotaryEmbedding
    fixed: ClassVar[dict[str, Any]] = LlamaLayer.fixed | {"qk_norm": True, "qk_norm_over": "all_heads", "placement": "branch"}

    def _named(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return to_hf(parameters, placement="branch")


class CohereLayer(LlamaLayer):
    """CohereDecoderLayer: both branches read one norm, which has no bias, and are added together."""

    name = "transformers Cohere layer"
    orders = ("scale_then_cast",)
    features = ("placement", "norm_bias")
    Config = CohereConfig
    Layer = CohereDecoderLayer
    Rope = CohereRotaryEmbedding
    fixed: ClassVar[dict[str, Any]] = LlamaLayer.fixed | {
        "norm": "layer_norm",
        "norm_bias": False,
        "rope": "interleaved",
        "placement": "parallel",
    }

    def _sizes(self, c: dict[str, Any]) -> dict[str, Any]:
        return super()._sizes(c) | {"layer_norm_eps": c["eps"]}

    def _named(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return to_hf(parameters, placement="parallel")


class Glm4Layer(LlamaLayer):
    """Glm4DecoderLayer, of the GLM-4 of April 2025: a sandwich, and neighbours in half of each head are turned."""

    name = "transformers GLM-4 layer"
    features = ("rotary_features", "placement")
    Config = Glm4Config
    Layer = Glm4DecoderLayer
    Rope = Glm4RotaryEmbedding
    fixed: ClassVar[dict[str, Any]] = LlamaLayer.fixed | {"rope": "interleaved", "placement": "sandwich"}

    def _sizes(self, c: dict[str, Any]) -> dict[str, Any]:
        sizes = super()._sizes(c)
        share = c.get("rotary_features", c["d_head"]) / c["d_head"]
        return sizes | {"rope_parameters": sizes["rope_parameters"] | {"partial_rotary_factor": share}, "pad_token_id": 0}

    def _named(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Norms have names of their own, and gate and up are one matrix."""
        return fuse(to_glm4(parameters), torch.cat, "mlp.gate_up_proj")
