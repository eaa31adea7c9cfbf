"""FlashInfer's norms as they ship: kernels in CuTe's DSL or CUDA, on a GPU; forward alone."""

from typing import Any

import torch
from torch import Tensor

import conformance.port
import ports.cuda_library
from conformance.port import Skip
from ports.cuda_library import norm_of_sum, rows_of, weight_like


class Port(ports.cuda_library.Port):
    """`rmsnorm` and `gemma_rmsnorm`, of a sum, and quantised with a scale that is given; `layernorm`."""

    name = "flashinfer"
    module, package = "flashinfer.norm", "flashinfer-python"
    dtypes = ("bfloat16", "float16")
    orders = ("scale_then_cast",)
    sums = ("unrounded",)
    ys = ("unrounded",)
    vjp = conformance.port.Port.vjp

    def rms_norm(self, x: Tensor, weight: Tensor | None, *, eps: float, weight_offset: float = 0.0) -> Any:
        norm = self.library.gemma_rmsnorm if weight_offset else self.library.rmsnorm
        return norm(rows_of(x), weight_like(x, weight), eps).reshape(x.shape)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor | None, *, eps: float, weight_offset: float = 0.0
    ) -> Any:
        norm = self.library.gemma_fused_add_rmsnorm if weight_offset else self.library.fused_add_rmsnorm
        return norm_of_sum(norm, x, residual, weight, eps)

    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, weight_offset: float = 0.0
    ) -> Any:
        given = [each for each in (weight, bias) if each is not None and each.dtype == torch.float32]
        if weight_offset or x.dtype != torch.bfloat16 or len(given) < 2:
            raise Skip("of bfloat16 alone, with a weight and a bias in float32, and no offset")
        return self.library.layernorm(rows_of(x), *given, eps).reshape(x.shape)

    def quantised_rms_norm(
        self,
        x: Tensor,
        weight: Tensor | None,
        scale: Tensor | None,
        *,
        eps: float,
        quantised_dtype: str,
        weight_offset: float = 0.0,
        **_: Any,
    ) -> Any:
        if scale is None or weight_offset or quantised_dtype == "int8":
            raise Skip("quantises to float8 alone, with a scale that is given, and has no offset")
        q = torch.empty(rows_of(x).shape, dtype=getattr(torch, quantised_dtype), device=x.device)
        self.library.rmsnorm_quant(q, rows_of(x), weight_like(x, weight), scale, eps)
        return q.reshape(x.shape)
