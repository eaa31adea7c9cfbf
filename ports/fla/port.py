"""flash-linear-attention's norms as they ship: Triton kernels, on a GPU or interpreted with TRITON_INTERPRET=1."""

# It is not among the packages that a check installs (README.md).
# pyright: reportMissingImports=false

from importlib.metadata import version
from typing import Any

from fla.modules.norm.fused_norm_gate import rms_norm_gated
from fla.modules.norm.layernorm import group_norm, layer_norm, rms_norm
from fla.modules.norm.layernorm_gated import rmsnorm_fn
from torch import Tensor

from conformance.port import Skip
from impl_torch.kernels.port import TritonPort

AT_THE_ROUNDED_SUM = "gradients are taken at the rounded sum; y, which is not, is right"


class Port(TritonPort):
    """Every default; a norm and a gate by the kernel that has what a case asks for."""

    name = "fla"
    dtypes = ("float32", "bfloat16", "float16")
    orders = ("scale_then_cast",)
    sums = ("unrounded", "float32")
    weight_offsets = (0,)
    expected = dict.fromkeys(
        ("rms_norm/*/rows_0", "layer_norm/*/rows_0"), "a batch without rows has no gradients: ZeroDivisionError"
    ) | dict.fromkeys(
        [f"add_*/unrounded_sum*/*/{each}" for each in ("random", "rows_near_eps", "large_residual", "residual_out_unread")],
        AT_THE_ROUNDED_SUM,
    )
    may_fail = {"add_*/unrounded_sum*/*/cancels": AT_THE_ROUNDED_SUM}  # noqa: RUF012

    def versions(self) -> dict[str, str]:
        return super().versions() | {"flash-linear-attention": version("flash-linear-attention")}

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float, group_size: int | None = None) -> Any:
        if group_size is not None:
            return group_norm(x, weight, None, eps=eps, is_rms_norm=True, num_groups=x.shape[-1] // group_size)
        return rms_norm(x, weight, None, eps=eps)

    @staticmethod
    def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, group_size: int | None = None) -> Any:
        if group_size is not None:
            return group_norm(x, weight, bias, eps=eps, num_groups=x.shape[-1] // group_size)
        return layer_norm(x, weight, bias, eps=eps)

    @staticmethod
    def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None, *, eps: float, sum: str = "") -> Any:
        return rms_norm(x, weight, None, residual, eps=eps, prenorm=True, residual_in_fp32=sum == "float32")

    @staticmethod
    def add_layer_norm(
        x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, sum: str = ""
    ) -> Any:
        return layer_norm(x, weight, bias, residual, eps=eps, prenorm=True, residual_in_fp32=sum == "float32")

    @staticmethod
    def gated_rms_norm(
        x: Tensor,
        gate: Tensor,
        weight: Tensor | None,
        *,
        eps: float,
        norm_before_gate: bool,
        activation: str,
        group_size: int | None = None,
    ) -> Any:
        if norm_before_gate and group_size is None:
            return rms_norm_gated(x, gate, weight, None, activation, eps=eps)
        if activation != "silu":
            raise Skip("a sigmoid only after a norm of whole rows")
        if weight is None:
            raise Skip("a gate that comes first, or groups, only with a weight")
        return rmsnorm_fn(x, weight, None, gate, eps, group_size, norm_before_gate)
