"""vLLM's norms as they ship: its own CUDA kernels, on a GPU; forward alone."""

from typing import Any

import torch
from torch import Tensor

import conformance.port
import ports.cuda_library
from conformance.port import Skip
from ports.cuda_library import norm_of_sum, rows_of, weight_like


class Port(ports.cuda_library.Port):
    """`rms_norm`, `fused_add_rms_norm`, and RMSNorm quantised with a scale that is given, or one for each row."""

    name = "vllm"
    module, package = "vllm._custom_ops", "vllm"
    orders = ("cast_then_scale",)
    weight_offsets = (0,)
    sums = ("rounded",)
    ys = ("rounded",)
    vjp = conformance.port.Port.vjp

    def rms_norm(self, x: Tensor, weight: Tensor | None, *, eps: float) -> Any:
        y = torch.empty_like(rows_of(x))
        self.library.rms_norm(y, rows_of(x), weight_like(x, weight), eps)
        return y.reshape(x.shape)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor | None, *, eps: float) -> Any:
        return norm_of_sum(self.library.fused_add_rms_norm, x, residual, weight, eps)

    def quantised_rms_norm(
        self,
        x: Tensor,
        weight: Tensor | None,
        scale: Tensor | None,
        *,
        eps: float,
        quantised_dtype: str,
        scaling: str,
        scale_ub: float | None = None,
        **_: Any,
    ) -> Any:
        rows, weight, dtype = rows_of(x), weight_like(x, weight), getattr(torch, quantised_dtype)
        if scale is not None:
            if quantised_dtype != "float8_e4m3fn":
                raise Skip("with a scale that is given, quantises to float8_e4m3fn alone")
            q = torch.empty(rows.shape, dtype=dtype, device=x.device)
            torch.ops._C.rms_norm_static_fp8_quant(q, rows, weight, scale, eps)
            return q.reshape(x.shape)
        if scaling != "per_row" or quantised_dtype == "float8_e5m2":
            raise Skip("a scale for each row, of float8_e4m3fn or int8")
        bound = None if scale_ub is None else torch.tensor(scale_ub, device=x.device)
        q, scales = self.library.rms_norm_dynamic_per_token_quant(rows, weight, eps, dtype, bound)
        return q.reshape(x.shape), scales.reshape(*x.shape[:-1], 1)
