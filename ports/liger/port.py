"""Liger Kernel's norms as they ship: Triton kernels, on a GPU or interpreted with TRITON_INTERPRET=1."""

from importlib.metadata import version
from typing import Any

from liger_kernel.ops import LigerFusedAddRMSNormFunction, LigerLayerNormFunction, LigerRMSNormFunction
from torch import Tensor

from conformance.port import Skip
from impl_torch.kernels.port import TritonPort

CASTING_MODES = {"cast_then_scale": "llama", "scale_then_cast": "gemma"}


class Port(TritonPort):
    """Every default, and the casting mode that a case asks for."""

    name = "liger"
    dtypes = ("float32", "bfloat16", "float16")
    orders = {"layer_norm/*": ("scale_then_cast",), "*": ("cast_then_scale", "scale_then_cast")}  # noqa: RUF012
    sums = ("rounded",)
    overwrites = ("dy",)
    expected = {"rms_norm/cast_then_scale*float32_weight*/*": "y keeps x's dtype, whatever the weight's is"}  # noqa: RUF012

    def versions(self) -> dict[str, str]:
        return super().versions() | {"liger-kernel": version("liger-kernel")}

    @staticmethod
    def rms_norm(
        x: Tensor, weight: Tensor | None, *, eps: float, order: str = "cast_then_scale", weight_offset: float = 0.0
    ) -> Any:
        return LigerRMSNormFunction.apply(x, weight, eps, weight_offset, CASTING_MODES[order])

    @staticmethod
    def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Any:
        if weight is None or bias is None:
            raise Skip("always has a weight and a bias")
        return LigerLayerNormFunction.apply(x, weight, bias, eps)

    @staticmethod
    def add_rms_norm(
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        *,
        eps: float,
        order: str = "cast_then_scale",
        weight_offset: float = 0.0,
    ) -> Any:
        if weight is None:
            raise Skip("always has a weight")
        return LigerFusedAddRMSNormFunction.apply(x, residual, weight, eps, weight_offset, CASTING_MODES[order], True)
