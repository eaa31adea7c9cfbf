"""torch.nn's norms, attention and activations as they ship, in eager mode and under torch.compile."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import conformance.port
import impl_torch.port

HALF = "CPU: mean and rstd are saved in half precision for the backward pass, and in eager mode dbias is summed in it"
WIDTH_1 = "CPU: x_hat is x·rstd - mean·rstd, whose roundings do not cancel at a width of one (pytorch#188375)"
STRIDED = "CPU: where x has features last, the gradients are computed step by step in x's dtype; dbias in bfloat16 is rounded"

COMPILED = {
    "layer_norm/*float16/*": HALF,
    "batch_norm/training/bfloat16/rows_8192": "CPU: rstd is saved in half precision for the backward pass",
}
EAGER = {
    "layer_norm/*/float32/width_1": WIDTH_1,
    "layer_norm/*float16/*": HALF,
    "batch_norm/training/float16/*[!t]": STRIDED,  # tiny_weight passes
    "batch_norm/*/bfloat16/*": STRIDED,
}


class Port(impl_torch.port.TorchPort):
    """`torch.nn.functional`; tensors, gradients and torch.compile are those of impl_torch's port."""

    name = "torch.nn"
    orders = ("scale_then_cast",)
    weight_offsets = (0,)
    skips = {  # noqa: RUF012
        "batch_norm/training_biased/*": "the variance that runs is the unbiased one",
        "layer_norm/*16/exact": "no number of it needs more than half precision, and so none is lost that is saved in it",
    }

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

    @staticmethod
    def batch_norm(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        training: bool,
        momentum: float = 0.1,
        **_: Any,
    ) -> Any:
        running = running_mean.detach().clone(), running_var.detach().clone()  # they are written to
        y = F.batch_norm(x.movedim(-1, 1), *running, weight, bias, training, momentum, eps).movedim(1, -1)
        return (y, *running) if training else y

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, *, causal: bool) -> Tensor:
        s, t = q.shape[-3], k.shape[-3]
        plain = key_mask is None and (not causal or s == t)  # is_causal aligns the first query with the first key
        seen = None if plain else visible(s, t, key_mask, causal).to(q.device)
        q, k, v = (a.transpose(-2, -3) for a in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, seen, is_causal=causal and plain, enable_gqa=True)
        return y.transpose(-2, -3)

    @staticmethod
    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    @staticmethod
    def gelu(x: Tensor, *, approximate: bool) -> Tensor:
        return F.gelu(x, approximate="tanh" if approximate else "none")


class Rows(Port):
    """BatchNorm of x as [R, features], which is contiguous: what is right about it in half precision, where a view is not."""

    name = "torch.nn rows"
    rms_norm = layer_norm = attention = swiglu = gelu = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        self.expected = {glob: reason for glob, reason in self.expected.items() if jit and glob.startswith("batch_norm")}

    @staticmethod
    def batch_norm(x: Tensor, *others: Any, **constants: Any) -> Any:
        made = Port.batch_norm(x.reshape(-1, x.shape[-1]), *others, **constants)
        return (made[0].view_as(x), *made[1:]) if isinstance(made, tuple) else made.view_as(x)


class Forward(Port):
    """y alone: what is right about LayerNorm in half precision, whose gradients are not."""

    name = "torch.nn forward"
    vjp = conformance.port.Port.vjp

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        self.expected = {}


def visible(s: int, t: int, key_mask: Tensor | None, causal: bool) -> Tensor:
    """Which of t keys each of s queries sees, `[*batch, 1, s, t]`: the last query is at the last key."""
    seen = torch.ones(s, t, dtype=torch.bool, device=None if key_mask is None else key_mask.device)
    seen = seen.tril(t - s) if causal else seen
    return seen if key_mask is None else seen & (key_mask != 0)[..., None, None, :]
