"""Paddle's layer_norm, gelu and swiglu as they ship; RMSNorm as its users write it, for the fused one has no CPU kernel."""

# Paddle is not among the packages that a check installs (README.md): pyright finds this folder in its place.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import paddle
from paddle.nn import functional as F

from conformance import port


class Port(port.Port):
    """Dynamic graphs, gradients by `paddle.grad`; a CPU has no float16 arithmetic."""

    name = "paddle"
    dtypes = ("float64", "float32", "bfloat16")
    orders = ("cast_then_scale",)
    expected = {  # noqa: RUF012
        "layer_norm/*/rank_1": "layer_norm refuses a single row: begin_norm_axis must be positive",
        "layer_norm/*/exact": "layer_norm refuses an eps above 0.001",
    }

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        paddle.set_device(device)

    def versions(self) -> dict[str, str]:
        return {"paddle": paddle.__version__}

    def to_tensor(self, array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            array = array.view(np.uint16)  # which paddle takes for bfloat16
        return paddle.to_tensor(array)

    def to_numpy(self, tensor: Any) -> np.ndarray:
        array = tensor.numpy()
        return array.view(ml_dtypes.bfloat16) if tensor.dtype == paddle.bfloat16 else array

    def lay_out(self, tensor: Any, layout: str) -> Any:
        match layout:
            case "permuted":
                axes = [*range(tensor.ndim - 2), tensor.ndim - 1, tensor.ndim - 2]
                return tensor.transpose(axes).contiguous().transpose(axes)
            case "sliced":
                return paddle.concat([tensor, tensor, tensor], -1)[..., tensor.shape[-1] : 2 * tensor.shape[-1]]
            case "strided":
                return paddle.repeat_interleave(tensor, 2, axis=-1)[..., ::2]
            case "expanded" | "one_number":
                raise port.Skip("expand copies")
            case _:
                return super().lay_out(tensor, layout)

    def rms_norm(self, x: Any, weight: Any, *, eps: float) -> Any:
        """Statistics in float32, the cast to x's dtype, then the weight: PaddleNLP's LlamaRMSNorm, its fused path aside."""
        x_compute = x if x.dtype == paddle.float64 else x.astype("float32")
        x_hat = x_compute * paddle.rsqrt(x_compute.pow(2).mean(-1, keepdim=True) + eps)
        return x_hat.astype(x.dtype) if weight is None else x_hat.astype(x.dtype) * weight

    def layer_norm(self, x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
        _need_kernel(x, "layer_norm")
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def gelu(self, x: Any, *, approximate: bool) -> Any:
        _need_kernel(x, "gelu")
        return F.gelu(x, approximate=approximate)

    def swiglu(self, gate: Any, up: Any) -> Any:
        _need_kernel(gate, "swiglu")
        return F.swiglu(gate, up)

    def gradients(self, function: Callable[..., Any], tensors: list[Any], dy: Any) -> tuple[Any, Sequence[Any]]:
        for tensor in tensors:
            tensor.stop_gradient = False
        y = function(*tensors)
        return y, paddle.grad(y, tensors, dy)


def _need_kernel(x: Any, op: str) -> None:
    """Skip the case where Paddle's CPU kernel for it is float32 and float64 only."""
    if x.dtype == paddle.bfloat16 and x.place.is_cpu_place():
        raise port.Skip(f"the CPU has no {op} in half precision")
