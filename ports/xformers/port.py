"""xFormers' norms as they ship: Triton kernels, on a GPU or interpreted with TRITON_INTERPRET=1."""

# It is not among the packages that a check installs (README.md).
# pyright: reportMissingImports=false

from contextlib import nullcontext
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from xformers.ops._triton.rmsnorm_kernels import _rms_norm_add_forward, _rms_norm_forward

import conformance.port
from conformance.port import Skip
from impl_torch.kernels.port import TritonPort


class Port(TritonPort):
    """Forward alone: its functions refuse what asks for gradients."""

    name = "xformers"
    dtypes = ("float32", "bfloat16", "float16")
    orders = ("scale_then_cast",)
    sums = ("rounded",)
    weight_offsets = (0,)
    overwrites = ("x",)
    expected = {"add_rms_norm/*/aliased": "the sum is written into x, which is the residual too"}  # noqa: RUF012
    may_fail = dict.fromkeys(
        ("add_rms_norm/rounded_sum*/bfloat16/*", "add_rms_norm/rounded_sum*/float16/*"),
        "the statistics are of the sum before it is rounded, what is scaled is the rounded sum",
    )
    vjp = conformance.port.Port.vjp

    def versions(self) -> dict[str, str]:
        return super().versions() | {"xformers": version("xformers")}

    def evaluate(self, function: Any, inputs: tuple, constants: dict[str, Any]) -> Any:
        """On a CPU without `torch.cuda.device(x.device)`, which its launches enter."""
        with torch.no_grad(), patch("torch.cuda.device", nullcontext) if self.device == "cpu" else nullcontext():
            return super().evaluate(function, inputs, constants)

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float) -> Any:
        _refuse_strides(x, weight)
        return _rms_norm_forward(x, weight, eps)

    @staticmethod
    def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None, *, eps: float) -> Any:
        _refuse_strides(x, residual, weight)
        return _rms_norm_add_forward(x, residual, weight, eps), x


def _refuse_strides(*tensors: Tensor | None) -> None:
    if not all(each is None or each.is_contiguous() for each in tensors):
        raise Skip("refuses what is not contiguous")
