"""MLX's fast norms as they ship, eager and under mx.compile."""

from importlib.metadata import version
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np

import conformance.port

FLOAT64 = "a float64 x is normalised in float32"
UNROUNDED = "x_hat is rounded to the dtype that x and the weight promote to, which with a float32 weight is float32"

BY_CHANCE = "by chance: the bias hides whether x_hat was rounded, or not, as the seed has it"


class Port(conformance.port.Port):
    """`mx.fast.rms_norm` and `mx.fast.layer_norm`, with gradients by `mx.vjp`."""

    name = "mlx"
    orders = ("cast_then_scale",)
    weight_offsets = (0,)
    expected = {"*/float64/*": FLOAT64, "*_float32_weight/*": UNROUNDED}  # noqa: RUF012
    skips = {"layer_norm/*_float32_weight/*/tiny_weight": BY_CHANCE}  # noqa: RUF012

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        mx.set_default_device(mx.cpu if device == "cpu" else mx.gpu)

    def versions(self) -> dict[str, str]:
        return {"mlx": version("mlx")}

    def to_tensor(self, array: np.ndarray) -> mx.array:
        return mx.array(array, dtype=getattr(mx, array.dtype.name))

    def to_numpy(self, tensor: mx.array) -> np.ndarray:
        if tensor.dtype == mx.bfloat16:  # NumPy's buffers have no bfloat16
            return np.array(tensor.view(mx.uint16)).view(ml_dtypes.bfloat16)
        return np.array(tensor)

    def lay_out(self, tensor: mx.array, layout: str) -> mx.array:
        match layout:
            case "permuted":
                return mx.contiguous(tensor.swapaxes(-1, -2)).swapaxes(-1, -2)
            case "sliced":
                return mx.pad(tensor, [(0, 0)] * (tensor.ndim - 1) + [(3, 4)])[..., 3:-4]
            case "strided":
                return mx.repeat(tensor, 2, axis=-1)[..., ::2]
            case "expanded":
                return mx.broadcast_to(tensor[:1], tensor.shape)
            case _:
                return super().lay_out(tensor, layout)

    @staticmethod
    def rms_norm(x: mx.array, weight: mx.array | None, *, eps: float, **_: Any) -> mx.array:
        return mx.fast.rms_norm(x, weight, eps)

    @staticmethod
    def layer_norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, *, eps: float, **_: Any) -> mx.array:
        return mx.fast.layer_norm(x, weight, bias, eps)

    def vjp(self, function: Any, inputs: tuple, dy: mx.array, constants: dict[str, Any]) -> tuple[mx.array, tuple]:
        def forward(*present: mx.array) -> mx.array:
            given = iter(present)
            return function(*(None if tensor is None else next(given) for tensor in inputs), **constants)

        def both(dy: mx.array, *present: mx.array) -> list[mx.array]:
            outputs, gradients = mx.vjp(forward, list(present), [dy])
            return outputs + gradients

        present = [tensor for tensor in inputs if tensor is not None]
        y, *rest = (mx.compile(both) if self.jit else both)(dy, *present)
        gradients = iter(rest)
        return y, tuple(None if tensor is None else next(gradients) for tensor in inputs)
