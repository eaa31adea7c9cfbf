"""What the decoder layers of Hugging Face transformers are made of, as it ships: rope, eager attention, activations.

In eager mode: under torch.compile they are other programs, and not what a checkpoint was trained with.
"""

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb, eager_attention_forward

import ports.torch_nn.port
from conformance.port import Skip
from conformance.port.protocol import Call
from ports.torch_nn.port import visible

HALF = "gelu_new is computed operation by operation in half precision, where 1 + tanh cancels"
UNSEEN = "a query that sees no key gets the mean of all values, and gradients: masked scores are merely low"
EXPECTED = {
    "rope/*/float64/*": "cosines and sines are in float32",
    "attention/*/float64/*": "the softmax is in float32",
    "attention/*/hides_a_row": UNSEEN,
    "gelu/tanh/*16/tail": HALF,
}
SKIPS = {"gelu/tanh/*16/random": f"{HALF}: enough to fail on some inputs"}


class Functions(ports.torch_nn.port.Port):
    """Llama's rope and its attention in eager mode, `silu`, `gelu`, and the `gelu_new` of GPT-2."""

    name = "transformers functions"
    rms_norm = layer_norm = batch_norm = None  # pyright: ignore
    skips = SKIPS

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        self.expected = EXPECTED  # and not torch.nn's

    def versions(self) -> dict[str, str]:
        return super().versions() | {"transformers": version("transformers")}

    def run(self, call: Call, given: dict[str, Any]) -> dict[str, np.ndarray]:
        if self.jit:
            raise Skip("ships to be run in eager mode")
        return super().run(call, given)

    @staticmethod
    def rope(x: Tensor, *, position: int, base: float, interleaved: bool) -> Tensor:
        if interleaved:
            raise Skip("pairs are a feature of the first half and one of the second")
        of = {"rope_theta": base, "rope_type": "default"}
        turn = LlamaRotaryEmbedding(LlamaConfig(hidden_size=x.shape[-1], num_attention_heads=1, rope_parameters=of))
        cos, sin = turn(x, torch.arange(position, position + x.shape[1])[None])
        return apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)[0]

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, *, causal: bool) -> Tensor:
        module = nn.Module().eval()
        module.num_key_value_groups = q.shape[-2] // k.shape[-2]  # pyright: ignore
        seen = visible(q.shape[-3], k.shape[-3], key_mask, causal)
        low = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, torch.finfo(q.dtype).min)
        heads = [a.transpose(-2, -3) for a in (q, k, v)]
        return eager_attention_forward(module, *heads, attention_mask=low, scaling=q.shape[-1] ** -0.5)[0]

    @staticmethod
    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return ACT2FN["silu"](gate) * up

    @staticmethod
    def gelu(x: Tensor, *, approximate: bool) -> Tensor:
        return ACT2FN["gelu_new" if approximate else "gelu"](x)
