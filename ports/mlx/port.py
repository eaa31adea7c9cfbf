"""MLX's fast norms, rope and attention, and its activations, as they ship, eager and under mx.compile."""

from importlib.metadata import version
from typing import Any

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np

import conformance.port

FLOAT64 = "float64 is computed in float32"
UNROUNDED = "x_hat is rounded to the dtype that x and the weight promote to, which with a float32 weight is float32"

HALF = "computed operation by operation in half precision, where 1 + tanh, or 1 + erf, cancels"
UNSEEN = "a query that sees no key gets the mean of all values: masked scores are merely low"
EXPECTED = {
    "rms_norm/*/float64/*": FLOAT64,
    "layer_norm/*/float64/*": FLOAT64,
    "rope/*/float64/*": FLOAT64,
    "attention/*/float64/*": FLOAT64,
    "swiglu/*/float64/*": FLOAT64,
    "gelu/erf/float64/*": "erf of a float64 x is computed in float32",
    "*_float32_weight/*": UNROUNDED,
    "batch_norm/training/*float16/*": "the batch's statistics are rounded to x's dtype: ratios of 1e3 to 2e4",
    "attention/*/hides_a_row": UNSEEN,
    "gelu/*16/tail": HALF,
}
SKIPS = {
    "batch_norm/training_biased/*": "the variance that runs is the unbiased one",
    "layer_norm/*_float32_weight/*/tiny_weight": "the bias hides whether x_hat was rounded, or not, as the seed has it",
    "gelu/*16/random": f"{HALF}: enough to fail on some inputs",
    "swiglu/*16/*": "the terms of silu's gradient are rounded one by one, and cancel: enough to fail on some inputs",
}


class Port(conformance.port.Port):
    """`mx.fast` and `mlx.nn`, with gradients by `mx.vjp`."""

    name = "mlx"
    compiles = True
    orders = ("cast_then_scale",)
    weight_offsets = (0,)
    expected = EXPECTED
    skips = SKIPS

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

    def finish(self, made: Any) -> None:
        mx.eval(made)  # arrays are computed when they are read

    @staticmethod
    def rms_norm(x: mx.array, weight: mx.array | None, *, eps: float, **_: Any) -> mx.array:
        return mx.fast.rms_norm(x, weight, eps)

    @staticmethod
    def layer_norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, *, eps: float, **_: Any) -> mx.array:
        return mx.fast.layer_norm(x, weight, bias, eps)

    @staticmethod
    def batch_norm(
        x: mx.array,
        weight: mx.array | None,
        bias: mx.array | None,
        *,
        running_mean: mx.array,
        running_var: mx.array,
        eps: float,
        training: bool,
        momentum: float = 0.1,
        **_: Any,
    ) -> Any:
        """y, which float32 parameters promote, is cast to x's dtype outside."""
        norm = nn.BatchNorm(x.shape[-1], eps, momentum, affine=weight is not None)
        given = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
        norm.update({name: each for name, each in given.items() if each is not None})
        norm.train(training)
        y = norm(x).astype(x.dtype)
        return (y, norm.running_mean, norm.running_var) if training else y

    @staticmethod
    def rope(x: mx.array, *, position: int, base: float, interleaved: bool) -> mx.array:
        heads = x.swapaxes(-2, -3)
        turned = mx.fast.rope(heads, x.shape[-1], traditional=interleaved, base=base, scale=1.0, offset=position)
        return turned.swapaxes(-2, -3)

    @staticmethod
    def attention(q: mx.array, k: mx.array, v: mx.array, key_mask: mx.array | None, *, causal: bool) -> mx.array:
        heads = [a.swapaxes(-2, -3) for a in (q, k, v)]
        mask: Any = "causal" if causal else None  # the last query is at the last key
        if key_mask is not None:
            seen = mx.tril(mx.ones((q.shape[-3], k.shape[-3])), k.shape[-3] - q.shape[-3]) != 0
            mask = (seen if causal else mx.array(True)) & (key_mask != 0)[:, None, None, :]
        return mx.fast.scaled_dot_product_attention(*heads, scale=q.shape[-1] ** -0.5, mask=mask).swapaxes(-2, -3)

    @staticmethod
    def swiglu(gate: mx.array, up: mx.array) -> mx.array:
        return nn.silu(gate) * up

    @staticmethod
    def gelu(x: mx.array, *, approximate: bool) -> mx.array:
        return nn.gelu_approx(x) if approximate else nn.gelu(x)

    def vjp(self, function: Any, inputs: tuple, dy: mx.array, constants: dict[str, Any]) -> tuple[mx.array, tuple]:
        def forward(*present: mx.array) -> mx.array:
            given = iter(present)
            made = function(*(None if tensor is None else next(given) for tensor in inputs), **constants)
            return made[0] if isinstance(made, tuple) else made

        def both(dy: mx.array, *present: mx.array) -> list[mx.array]:
            outputs, gradients = mx.vjp(forward, list(present), [dy])
            return outputs + gradients

        present = [tensor for tensor in inputs if tensor is not None]
        y, *rest = (mx.compile(both) if self.jit else both)(dy, *present)
        gradients = iter(rest)
        return y, tuple(None if tensor is None else next(gradients) for tensor in inputs)
