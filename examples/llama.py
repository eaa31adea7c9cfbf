"""RMSNorm as every Llama has it: right in eager mode, another function under torch.compile.

`conformance run examples.llama:Port --mode eager` conforms; without `--mode eager` it does not, and the report says why.
"""

import torch
from torch import Tensor

import impl_torch.port


class Port(impl_torch.port.TorchPort):
    """The four lines that most models carry; tensors, gradients and torch.compile are those of impl_torch's port."""

    name = "llama"
    orders = ("cast_then_scale",)
    weight_offsets = (0,)
    layer_norm = None

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float, order: str = "cast_then_scale") -> Tensor:
        """Statistics in float32, the cast to x's dtype, then the weight."""
        x_compute = x.to(torch.promote_types(x.dtype, torch.float32))
        x_hat = x_compute * torch.rsqrt(x_compute.pow(2).mean(-1, keepdim=True) + eps)
        return x_hat.to(x.dtype) if weight is None else weight * x_hat.to(x.dtype)
