"""tinygrad's norms as they ship, and the ops of its own language model."""

import os
from importlib.metadata import version
from typing import Any

import ml_dtypes
import numpy as np

import conformance.port
from conformance.port import Skip
from ports.tinygrad.clang import find_clang

if "clang" not in os.environ.get("CC", "") and (clang := find_clang()):
    os.environ["CC"] = clang  # tinygrad asks for it when it compiles

from tinygrad import Context, Tensor, TinyJit, dtypes, nn

FLOAT64 = "computed in float32"
HALF = "mean, variance and every step are rounded to x's dtype: ratios of 1e2 to infinity"
FOLDED = "float32 -> float16 -> float32 is folded away, so that x_hat is not rounded (tinygrad#17208, mended since)"
PROMOTED = "cosines and sines are float32, and so is y"
BLIND = "a query that sees no key gives NaN"
ERF = "erf is a polynomial of an absolute error of 1.4e-7, in float64 too"
GELU = "GELU is computed operation by operation in half precision, where 1 + tanh and 1 + erf cancel"
BY_CHANCE = "computed operation by operation in half precision: enough to fail on some inputs"


class Port(conformance.port.Port):
    """`tinygrad.nn`'s RMSNorm and LayerNorm, gradients by `Tensor.gradient`; compiled either way, with jit replayed."""

    name = "tinygrad"
    compiles = True
    orders = ("cast_then_scale",)
    weight_offsets = (0,)
    expected = {  # noqa: RUF012
        "rms_norm/*/float64/*": FLOAT64,
        "rms_norm/*_float32_weight/float16/*": FOLDED,
        "layer_norm/*/*float16/*": HALF,
        "batch_norm/training/*float16/*": HALF,
        "rope/*/float64/*": FLOAT64,
        "rope/*/*float16/*": PROMOTED,
        "attention/*/hides_a_row": BLIND,
        "gelu/erf/float64/*": ERF,
        "gelu/*/*float16/tail": GELU,
    }
    skips = {  # noqa: RUF012
        "batch_norm/training_biased/*": "the variance that runs is the unbiased one",
        "gelu/*/*float16/random": BY_CHANCE,
        "swiglu/*/*float16/*": BY_CHANCE,
    }

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device.upper(), jit=jit)
        Tensor(np.zeros(1, np.float32), device=self.device).realize()  # a device that is not there is said so at once

    def versions(self) -> dict[str, str]:
        return {"tinygrad": version("tinygrad"), "clang": os.environ.get("CC", "clang")}

    def to_tensor(self, array: np.ndarray) -> Tensor:
        if array.dtype == ml_dtypes.bfloat16:
            return Tensor(array.view(np.uint16), device=self.device).bitcast(dtypes.bfloat16).realize()
        return Tensor(array, device=self.device).realize()

    def to_numpy(self, tensor: Tensor) -> np.ndarray:
        if tensor.dtype == dtypes.bfloat16:  # NumPy's buffers have no bfloat16
            return tensor.bitcast(dtypes.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float, **_: Any) -> Tensor:
        norm = nn.RMSNorm(int(x.shape[-1]), eps, elementwise_affine=False)
        norm.weight = weight
        return norm(x)

    @staticmethod
    def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, **_: Any) -> Tensor:
        norm = nn.LayerNorm(int(x.shape[-1]), eps, elementwise_affine=False)
        if (weight is None) != (bias is None):
            raise Skip("LayerNorm has a weight and a bias, or neither")
        norm.weight, norm.bias = weight, bias
        return norm(x)

    @staticmethod
    def batch_norm(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        training: bool,
        momentum: float = 0.1,
        **_: Any,
    ) -> Any:
        """y, which float32 parameters promote, is cast to x's dtype outside."""
        norm = nn.BatchNorm(int(x.shape[-1]), eps, affine=False, momentum=momentum)
        norm.weight, norm.bias = weight, bias
        norm.running_mean, norm.running_var = running_mean.clone(), running_var.clone()  # they are assigned to
        with Context(TRAINING=int(training)):
            y = norm(x.transpose(1, -1)).transpose(1, -1).cast(x.dtype)
        return (y, norm.running_mean, norm.running_var) if training else y

    @staticmethod
    def rope(x: Tensor, *, position: int, base: float, interleaved: bool) -> Tensor:
        if interleaved:
            raise Skip("its model turns pairs of halves")
        s, d = (int(x.shape[axis]) for axis in (-3, -1))
        freqs = 1.0 / (base ** (Tensor.arange(0, d, 2)[: (d // 2)] / d))
        angles = Tensor.arange(position + s).unsqueeze(1) * freqs.unsqueeze(0)
        cos, sin = (turn[position:, None] for turn in (angles.cos(), angles.sin()))
        x1, x2 = x.chunk(2, dim=-1)
        return (x1 * cos - x2 * sin).cat(x2 * cos + x1 * sin, dim=-1)

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, *, causal: bool) -> Tensor:
        s, t = int(q.shape[-3]), int(k.shape[-3])
        visible = Tensor.ones(s, t, dtype=dtypes.bool).tril(t - s) if causal else Tensor.ones(s, t, dtype=dtypes.bool)
        if key_mask is not None:
            visible = visible & (key_mask != 0)[:, None, None, :]
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return q.scaled_dot_product_attention(k, v, attn_mask=visible, enable_gqa=True).transpose(1, 2)

    @staticmethod
    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return gate.silu() * up

    @staticmethod
    def gelu(x: Tensor, *, approximate: bool) -> Tensor:
        return x.gelu("tanh" if approximate else "none")

    def evaluate(self, function: Any, inputs: tuple, constants: dict[str, Any]) -> Any:
        return _alone(self._realize(lambda *given: _all(function(*given, **constants)), inputs))

    def vjp(self, function: Any, inputs: tuple, dy: Tensor, constants: dict[str, Any]) -> tuple[Any, tuple]:
        def both(dy: Tensor, *given: Tensor | None) -> list[Tensor]:
            made = _all(function(*given, **constants))
            return [*made, *made[0].gradient(*(tensor for tensor in given if tensor is not None), gradient=dy)]

        realized = self._realize(both, (dy, *inputs))
        made = len(realized) - sum(tensor is not None for tensor in inputs)
        gradients = iter(realized[made:])
        return _alone(realized[:made]), tuple(None if tensor is None else next(gradients) for tensor in inputs)

    def _realize(self, function: Any, inputs: tuple) -> list[Tensor]:
        """What the function returns of the inputs, computed; the third call of a `TinyJit` replays what the second recorded."""

        def realized(*given: Tensor | None) -> list[Tensor]:
            return [tensor.contiguous().realize() for tensor in function(*given)]

        if not self.jit:
            return realized(*inputs)
        recorded = TinyJit(realized)
        for _ in range(2):
            recorded(*inputs)
        return recorded(*inputs)


def _all(made: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return list(made) if isinstance(made, tuple) else [made]


def _alone(made: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
    return tuple(made) if len(made) > 1 else made[0]
