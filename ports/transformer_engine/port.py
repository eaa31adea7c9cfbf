"""TransformerEngine's norms as they ship: modules of PyTorch around CUDA kernels, on a GPU."""

from typing import Any

from torch import Tensor
from torch.func import functional_call

import ports.cuda_library
from conformance.port import Skip
from ports.cuda_library import weight_like


class Port(ports.cuda_library.Port):
    """`RMSNorm` and `LayerNorm`, with `zero_centered_gamma` where the weight has an offset of one."""

    name = "transformer_engine"
    module, package = "transformer_engine.pytorch", "transformer-engine"
    orders = ("scale_then_cast",)

    def rms_norm(self, x: Tensor, weight: Tensor | None, *, eps: float, weight_offset: float = 0.0) -> Any:
        return self._call(self.library.RMSNorm, x, eps, weight_offset, weight=weight_like(x, weight))

    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, weight_offset: float = 0.0
    ) -> Any:
        if bias is None:
            raise Skip("always has a bias")
        return self._call(self.library.LayerNorm, x, eps, weight_offset, weight=weight_like(x, weight), bias=bias)

    def _call(self, kind: Any, x: Tensor, eps: float, weight_offset: float, **parameters: Tensor) -> Any:
        module = kind(x.shape[-1], eps=eps, device=x.device, dtype=x.dtype, zero_centered_gamma=bool(weight_offset))
        return functional_call(module, parameters, (x,))
