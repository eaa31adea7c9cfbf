"""RMSNorm on several ranks, in plain torch and gloo.

conformance run examples/ranks.py --ranks 2
"""

import numpy as np
import torch
import torch.distributed as dist

from conformance.port import Port as Base


class Sum(torch.autograd.Function):
    """The sum over all ranks. Each of them reads it, so its cotangents are summed as well."""

    @staticmethod
    def forward(ctx, a):
        total = a.clone()
        dist.all_reduce(total)
        return total

    backward = forward


class Whole(torch.autograd.Function):
    """What every rank has whole: its gradient is the sum of what the ranks find for their own rows."""

    @staticmethod
    def forward(ctx, a):
        return a.clone()

    backward = Sum.forward


class Port(Base):
    """Both splits, in float32 and float64."""

    name, dtypes, splits = "ranks", ("float32", "float64"), ("rows", "features")

    def __init__(self, device="cpu", *, jit=True):
        super().__init__(device, jit=jit)
        dist.init_process_group("gloo")

    def to_tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array)

    def to_numpy(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().numpy()

    def rms_norm(self, x, weight, *, eps):
        squares = x.square().sum(dim=-1, keepdim=True)
        if self.call.split == "features":
            squares = Sum.apply(squares)
        x_hat = x * torch.rsqrt(squares / self.call.shape[-1] + eps)
        if weight is None:
            return x_hat
        return x_hat * (Whole.apply(weight) if self.call.split == "rows" else weight)

    def gradients(self, function, tensors, dy):
        leaves = [tensor.requires_grad_() for tensor in tensors]
        y = function(*leaves)
        return y, torch.autograd.grad(y, leaves, dy)
