"""torch.nn's norms as they ship, in eager mode and under torch.compile."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

import conformance.port
import impl_torch.port

HALF = "CPU: mean and rstd are saved in half precision for the backward pass, and in eager mode dbias is summed in it"
WIDTH_1 = "CPU: x_hat is x·rstd - mean·rstd, whose roundings do not cancel at a width of one (pytorch#188375)"

# The first glob leaves out bfloat16's width_1, which passes: compiled, x - mean comes first.
COMPILED = {"layer_norm/*/bfloat16/*[!1]": HALF, "layer_norm/*/float16/*": HALF}
EAGER = {"layer_norm/*/float32/width_1": WIDTH_1, "layer_norm/*float16/*": HALF}


class Port(impl_torch.port.TorchPort):
    """`torch.nn.functional`; tensors, gradients and torch.compile are those of impl_torch's port."""

    name = "torch.nn"
    orders = ("scale_then_cast",)
    weight_offsets = (0,)

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        if device == "cpu":
            self.expected = COMPILED if jit else EAGER

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float, **_: Any) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, eps)

    @staticmethod
    def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, **_: Any) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


class Forward(Port):
    """y alone: what is right about LayerNorm in half precision, whose gradients are not."""

    name = "torch.nn forward"
    vjp = conformance.port.Port.vjp

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        self.expected = {"layer_norm/*/bfloat16/width_1": WIDTH_1} if device == "cpu" and not jit else {}
