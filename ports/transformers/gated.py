"""The gated RMSNorms of Hugging Face transformers as they ship, in eager mode: that of Qwen3-Next, and that of Mamba2."""

from typing import Any

import numpy as np
import transformers
from torch import Tensor
from torch.func import functional_call
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

import impl_torch.port
from conformance.port import Skip
from conformance.port.protocol import Call
from ports.transformers.port import FLOAT64


class Qwen3Next(impl_torch.port.TorchPort):
    """Qwen3NextRMSNormGated: the norm is first, and the gate's activation is SiLU."""

    name = "transformers Qwen3-Next, gated"
    orders = ("cast_then_scale",)
    weight_offsets = (0,)
    expected = FLOAT64
    norm_first = True

    def versions(self) -> dict[str, str]:
        return super().versions() | {"transformers": transformers.__version__}

    def run(self, call: Call, given: dict[str, Any]) -> dict[str, np.ndarray]:
        if self.jit:
            raise Skip("ships to be run in eager mode")
        if "weight" not in given:
            raise Skip("always has a weight")
        if call.settings["norm_before_gate"] != self.norm_first:
            raise Skip(f"the {'norm' if self.norm_first else 'gate'} is first")
        if call.settings["activation"] != "silu":
            raise Skip("the gate's activation is SiLU")
        return super().run(call, given)

    @staticmethod
    def gated_rms_norm(
        x: Tensor, gate: Tensor, weight: Tensor, *, eps: float, norm_before_gate: bool, activation: str
    ) -> Tensor:
        return functional_call(Qwen3NextRMSNormGated(x.shape[-1], eps), {"weight": weight}, (x, gate))


class Mamba2(Qwen3Next):
    """MambaRMSNormGated: the gate is first, and groups may have statistics of their own."""

    name = "transformers Mamba2, gated"
    norm_first = False

    @staticmethod
    def gated_rms_norm(
        x: Tensor,
        gate: Tensor,
        weight: Tensor,
        *,
        eps: float,
        norm_before_gate: bool,
        activation: str,
        group_size: int | None = None,
    ) -> Tensor:
        module = MambaRMSNormGated(x.shape[-1], group_size or x.shape[-1], eps)
        return functional_call(module, {"weight": weight}, (x, gate))
