"""The norms of rows as Triton kernels, for CUDA tensors, or for any in Triton's interpreter.

This module is what the functions ask; it imports Triton only when a kernel is to run.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

HAS_TRITON = find_spec("triton") is not None


def in_triton(kernel: str | None, x: Tensor, *groups: ProcessGroup | None) -> bool:
    """Whether a norm of x is to run as a Triton kernel.

    `kernel` is "triton", "torch", or None: then by Triton where x is on a CUDA device and Triton is installed, but not within a
    transform of `torch.func`, which sees through torch's own operations alone. No kernel knows of process `groups`.
    Raises `ValueError` for another kernel, and for "triton" with a group.
    """
    if kernel not in ("triton", "torch", None):
        raise ValueError(f"kernel is {kernel!r}; it must be 'triton', 'torch' or None")
    if any(group is not None for group in groups):
        if kernel == "triton":
            raise ValueError("kernel is 'triton', which has no process_group and no rows_group")
        return False
    transformed = torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
    by_itself = x.is_cuda and HAS_TRITON and not transformed
    return by_itself if kernel is None else kernel == "triton"


def triton_norm(x: Tensor, *others: Tensor | None, **settings: Any) -> tuple[Tensor, Tensor]:
    """`impl_torch.kernels.norms.norm`. Raises `ImportError` where Triton is not installed."""
    from impl_torch.kernels.norms import norm

    return norm(x, *others, **settings)


def triton_gated_norm(x: Tensor, gate: Tensor, weight: Tensor | None, **settings: Any) -> Tensor:
    """`impl_torch.kernels.gated_norms.gated_norm`. Raises `ImportError` where Triton is not installed."""
    from impl_torch.kernels.gated_norms import gated_norm

    return gated_norm(x, gate, weight, **settings)


def triton_quantised_norm(x: Tensor, *others: Tensor | None, **settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`impl_torch.kernels.quantised_norms.quantised_norm`. Raises `ImportError` where Triton is not installed."""
    from impl_torch.kernels.quantised_norms import quantised_norm

    return quantised_norm(x, *others, **settings)
