"""The decoder layers of Hugging Face transformers as they ship: Llama's, Qwen3's, Phi's and GPT-2's, with the case's weights.

In eager mode: under torch.compile they are other programs, and not what a checkpoint was trained with.
"""

from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3RotaryEmbedding
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

import impl_torch.port
from conformance.port import Skip
from conformance.port.protocol import Call
from reference.block_config import BlockConfig
from reference.checkpoints import fuse, to_hf

FLOAT64 = {"*/float64/*": "norms, softmax and angles are in float32"}
GELU = "gelu_new is computed operation by operation in half precision, where 1 + tanh cancels"
FLOAT16 = {"*/float16/*": GELU}
BFLOAT16 = {"*/bfloat16/*": f"{GELU}: enough to fail on some inputs"}
PLAIN = {"placement": "pre", "qk_norm_over": "head", "norm_bias": True}  # what a config does not say
GPT2_NAMES = {
    "attention_norm": "ln_1",
    "attention.o": "attn.c_proj",
    "ffn_norm": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}


class LlamaLayer(impl_torch.port.TorchPort):
    """LlamaDecoderLayer, with biases where the case has them."""

    name = "transformers Llama layer"
    orders = ("cast_then_scale",)
    weight_offsets = (0,)
    expected = FLOAT64
    Config: ClassVar[Any] = LlamaConfig
    Layer: ClassVar[type[nn.Module]] = LlamaDecoderLayer
    Rope: ClassVar[Any] = LlamaRotaryEmbedding
    rope_of_layer: ClassVar[tuple[str, ...]] = ()
    attention_by = "sdpa"
    fixed: ClassVar[dict[str, Any]] = {"norm": "rms_norm", "qk_norm": False, "rope": "half_split", "feed_forward": "swiglu"}

    def versions(self) -> dict[str, str]:
        return super().versions() | {"transformers": version("transformers")}

    def run(self, call: Call, given: dict[str, Any]) -> dict[str, np.ndarray]:
        if self.jit:
            raise Skip("ships to be run in eager mode")
        c = call.settings["config"]
        other = [name for name, value in self.fixed.items() if c.get(name, PLAIN.get(name)) != value]
        if other or not c["causal"]:
            raise Skip(f"another {(other or ['mask'])[0]}")
        self.config: Any = self.Config(**self._sizes(c), attn_implementation=self.attention_by)
        self.layer = self._make(c).to(given["x"].dtype)
        self.rope_of = self.Rope(self.config) if self.Rope else None
        return super().run(call, given)

    def pre_ln_block(
        self,
        x: Tensor,
        parameters: dict[str, Tensor],
        k_cache: Tensor | None,
        v_cache: Tensor | None,
        key_mask: Tensor | None,
        *,
        config: BlockConfig,
        position: int,
        **_: Any,
    ) -> Tensor:
        positions = torch.arange(position, position + x.shape[1])[None]
        cache = None
        if k_cache is not None and v_cache is not None:
            cache = DynamicCache(config=self.config)
            cache.update(k_cache.transpose(1, 2), v_cache.transpose(1, 2), 0)
        make_mask = create_sliding_window_causal_mask if config.window else create_causal_mask
        mask = make_mask(self.config, x, None if key_mask is None else key_mask != 0, cache, positions)
        how: dict[str, Any] = {"attention_mask": mask, "past_key_values": cache}
        if self.rope_of is not None:
            how["position_embeddings"] = self.rope_of(x, positions, *self.rope_of_layer)
        return functional_call(self.layer, self._named(parameters), (x,), how, strict=True)

    def _make(self, c: dict[str, Any]) -> nn.Module:
        layer: Any = self.Layer
        return layer(self.config, layer_idx=0)

    def _sizes(self, c: dict[str, Any]) -> dict[str, Any]:
        return {
            "hidden_size": c["d_model"],
            "num_attention_heads": c["n_heads"],
            "num_key_value_heads": c["n_kv_heads"],
            "head_dim": c["d_head"],
            "intermediate_size": c["d_ff"],
            "rms_norm_eps": c["eps"],
            "rope_parameters": {"rope_theta": c["rope_base"], "rope_type": "default"},
            "attention_bias": c["qkv_bias"],
            "mlp_bias": c["feed_forward_bias"],
        }

    def _named(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return to_hf(parameters)


class Qwen3Layer(LlamaLayer):
    """Qwen3DecoderLayer."""

    name = "transformers Qwen3 layer"
    Config = Qwen3Config
    Layer = Qwen3DecoderLayer
    Rope = Qwen3RotaryEmbedding
    fixed: ClassVar[dict[str, Any]] = LlamaLayer.fixed | {"qk_norm": True}


class Phi3Layer(LlamaLayer):
    """Phi3DecoderLayer, of which a part of each head may be turned: Phi-4-mini's."""

    name = "transformers Phi layer"
    features = ("rotary_features",)
    Config = Phi3Config
    Layer = Phi3DecoderLayer
    Rope = Phi3RotaryEmbedding
    fixed: ClassVar[dict[str, Any]] = LlamaLayer.fixed | {"qkv_bias": False, "o_bias": False, "feed_forward_bias": False}

    def _sizes(self, c: dict[str, Any]) -> dict[str, Any]:
        sizes = super()._sizes(c)
        share = c.get("rotary_features", c["d_head"]) / c["d_head"]
        return sizes | {"rope_parameters": sizes["rope_parameters"] | {"partial_rotary_factor": share}, "pad_token_id": 0}

    def _named(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Matrices that read the same are one."""
        return fuse(super()._named(parameters), torch.cat, "self_attn.qkv_proj", "mlp.gate_up_proj")


class GPT2Layer(LlamaLayer):
    """GPT2Block."""

    name = "transformers GPT-2 layer"
    orders = ("scale_then_cast",)
    expected = FLOAT16
    skips = BFLOAT16
    Config = GPT2Config
    Layer = GPT2Block
    Rope = None
    fixed: ClassVar[dict[str, Any]] = {"norm": "layer_norm", "rope": "none", "feed_forward": "gelu_tanh"}

    def _sizes(self, c: dict[str, Any]) -> dict[str, Any]:
        sizes = {"hidden_size": c["d_model"], "num_attention_heads": c["n_heads"], "n_inner": c["d_ff"]}
        return sizes | {"layer_norm_epsilon": c["eps"], "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

    def _named(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Matrices are [in, out] here, and those of q, k and v are one."""
        named: dict[str, Tensor] = {}
        for kind in ("weight", "bias"):
            fused = torch.cat([parameters[f"attention.{name}.{kind}"] for name in "qkv"])
            each = {"attn.c_attn": fused} | {GPT2_NAMES[name]: parameters[f"{name}.{kind}"] for name in GPT2_NAMES}
            named |= {f"{name}.{kind}": tensor.T if tensor.ndim == 2 else tensor for name, tensor in each.items()}
        return named
