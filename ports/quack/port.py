"""quack's norms as they ship: kernels in CuTe's DSL, on a GPU."""

from typing import Any

import torch
from torch import Tensor

import ports.cuda_library
from conformance.port import Skip


class Port(ports.cuda_library.Port):
    """`rmsnorm`, also of a sum, and `layernorm_fwd` with `layernorm_bwd`."""

    name = "quack"
    module, package = "quack.rmsnorm", "quack-kernels"
    orders = ("scale_then_cast",)
    sums = ("unrounded", "float32")

    def rms_norm(self, x: Tensor, weight: Tensor | None, *, eps: float, weight_offset: float = 0.0) -> Any:
        if weight is None and weight_offset:
            raise Skip("an offset only with a weight")
        return self.library.rmsnorm(x, weight, eps=eps, weight_offset=weight_offset)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor | None, *, eps: float, weight_offset: float = 0.0
    ) -> Any:
        if weight is None and weight_offset:
            raise Skip("an offset only with a weight")
        return self.library.rmsnorm(x, weight, residual=residual, eps=eps, prenorm=True, weight_offset=weight_offset)

    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, weight_offset: float = 0.0
    ) -> Any:
        if weight_offset or weight is None or any(each is not None and each.dtype != torch.float32 for each in (weight, bias)):
            raise Skip("always has a weight, in float32 as the bias is, and no offset")
        rows = ports.cuda_library.rows_of(x)
        return _LayerNorm.apply(rows, weight.contiguous(), bias, eps, self.library).reshape(x.shape)


class _LayerNorm(torch.autograd.Function):
    """The forward and the backward kernel, which quack has apart."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, library: Any) -> Tensor:
        y, rstd, mean = library.layernorm_fwd(x, weight, bias, eps, return_rstd=True, return_mean=True)
        ctx.save_for_backward(x, weight, rstd, mean)
        ctx.has_bias, ctx.library = bias is not None, library
        return y

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd, mean = ctx.saved_tensors
        return *ctx.library.layernorm_bwd(x, weight, dys[0].contiguous(), rstd, mean, ctx.has_bias), None, None
