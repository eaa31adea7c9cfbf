"""The RMSNorms of Hugging Face transformers as they ship: each module is given the case's eps and weight, and called.

They ship to be run in eager mode, and their order is the one they have there. torch.compile changes it, unless
`TORCHINDUCTOR_EMULATE_PRECISION_CASTS=1` is set: a port says which order it has in the mode it is in.
"""

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

import impl_torch.port
from conformance.port import Skip
from conformance.port.protocol import Call

FLOAT64 = {"*/float64/*": "a float64 x is normalised in float32"}
UNROUNDED = {"*_float32_weight/*": "x_hat is not rounded to half precision before a float32 weight; y is float32"}


class Llama(impl_torch.port.TorchPort):
    """LlamaRMSNorm, which most models here have under a name of their own."""

    name = "transformers Llama"
    orders = ("cast_then_scale",)
    weight_offsets = (0,)
    layer_norm = None
    expected = FLOAT64
    Norm: type[nn.Module] = LlamaRMSNorm

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        keeps_casts = not jit or torch._inductor.config.emulate_precision_casts  # pyright: ignore
        if self.orders == ("cast_then_scale",) and not keeps_casts:
            self.orders = ("scale_then_cast",)
            self.expected = FLOAT64 | UNROUNDED

    def versions(self) -> dict[str, str]:
        return super().versions() | {"transformers": version("transformers")}

    def run(self, call: Call, given: dict[str, Any]) -> dict[str, np.ndarray]:
        if "weight" not in given:
            raise Skip(f"{self.Norm.__name__} always has a weight")
        self.module = self.Norm(given["x"].shape[-1], call.eps)  # outside of what is compiled
        return super().run(call, given)

    def rms_norm(self, x: Tensor, weight: Tensor, **_: Any) -> Tensor:
        return functional_call(self.module, {"weight": weight}, (x,))


class Qwen3(Llama):
    """Qwen3RMSNorm."""

    name = "transformers Qwen3"
    Norm = Qwen3RMSNorm


class T5(Llama):
    """T5LayerNorm, an RMSNorm; it rounds x_hat where the weight is in half precision, and to the weight's dtype."""

    name = "transformers T5"
    expected = FLOAT64 | UNROUNDED
    Norm = T5LayerNorm


class Gemma(Llama):
    """GemmaRMSNorm; one is added to its weight."""

    name = "transformers Gemma"
    orders = ("scale_then_cast",)
    weight_offsets = (1,)
    Norm = GemmaRMSNorm
