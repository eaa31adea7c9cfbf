"""TensorFlow: eager, or each function compiled whole by XLA."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

from functools import cache, partial
from typing import Any

import numpy as np
import tensorflow as tf

import conformance.port
from conformance.port import Skip
from ports.tensorflow import block, rows

Tensor = Any  # what type checkers know of tf.Tensor is partly wrong

GELU = "tf.nn.gelu casts its constants to float64 from float32 (tensorflow#57779): ratios of 1e5 to 3e6"
HALF = "statistics and every step are rounded to x's dtype: ratios of 1e2 to infinity"
WIDTH_1 = "x·rstd + (bias - mean·rstd) rounds bias to the ulps of mean·rstd: ratios of 2e3 to 4e6"


class TensorFlowPort(conformance.port.Port):
    """TensorFlow's tensors, `tf.GradientTape`, and `tf.function(jit_compile=True)` or operation by operation."""

    compiles = True

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        self.place = tf.config.list_logical_devices(device.upper())[0].name  # a device that is not there is said so at once

    def versions(self) -> dict[str, str]:
        return {"tensorflow": tf.__version__}

    def to_tensor(self, array: np.ndarray) -> Tensor:
        with tf.device(self.place):
            return tf.convert_to_tensor(array)

    def to_numpy(self, tensor: Tensor) -> np.ndarray:
        return tensor.numpy()

    def evaluate(self, function: Any, inputs: tuple, constants: dict[str, Any]) -> Any:
        return self._program(_evaluate, function, constants)(inputs, **_tensors(constants))

    def vjp(self, function: Any, inputs: tuple, dy: Tensor, constants: dict[str, Any]) -> tuple[Tensor, tuple]:
        return self._program(_vjp, function, constants)(inputs, dy, **_tensors(constants))

    def _program(self, how: Any, function: Any, constants: dict[str, Any]) -> Any:
        fixed = {name: value for name, value in constants.items() if name not in _tensors(constants)}
        return (_compiled if self.jit else partial)(how, function, **fixed)


class Port(TensorFlowPort):
    """The norms and the block of TensorFlow's operations, with statistics, sums and activations in float32."""

    name = "tensorflow"
    features = ("placement", "norm_bias")
    taps = True
    expected = {"gelu/*/float64/*": GELU, "pre_ln_block/gpt2/float64/*": GELU}  # noqa: RUF012
    rms_norm = staticmethod(rows.rms_norm)
    layer_norm = staticmethod(rows.layer_norm)
    batch_norm = staticmethod(rows.batch_norm)
    rope = staticmethod(block.rope)
    attention = staticmethod(block.attention)
    swiglu = staticmethod(block.swiglu)
    gelu = staticmethod(block.gelu)
    pre_ln_block = staticmethod(block.pre_ln_block)
    pre_ln_stack = staticmethod(block.pre_ln_stack)


class Moments(TensorFlowPort):
    """LayerNorm as TensorFlow's documentation composes it, in x's dtype: `tf.nn.moments`, then `tf.nn.batch_normalization`."""

    name = "tensorflow moments"
    orders = ("scale_then_cast",)
    weight_offsets = (0,)
    expected = {"layer_norm/scale_then_cast/*float16/*": HALF, "layer_norm/*/width_1": WIDTH_1}  # noqa: RUF012
    skips = {"*16/exact": "no number of it needs more than half precision"}  # noqa: RUF012

    @staticmethod
    def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, **_: Any) -> Tensor:
        if weight is not None and weight.dtype != x.dtype:
            raise Skip("tf.nn.batch_normalization takes parameters of x's dtype only")
        mean, var = tf.nn.moments(x, axes=[-1], keepdims=True)
        return tf.nn.batch_normalization(x, mean, var, bias, weight, eps)  # pyright: ignore[reportArgumentType]


def _tensors(constants: dict[str, Any]) -> dict[str, Tensor]:
    """Those that a program is given anew at every call."""
    return {name: value for name, value in constants.items() if tf.is_tensor(value)}


def _evaluate(function: Any, inputs: tuple, **constants: Any) -> Any:
    return function(*inputs, **constants)


def _vjp(function: Any, inputs: tuple, dy: Tensor, **constants: Any) -> tuple[Tensor, tuple]:
    leaves = tf.nest.flatten(inputs)
    present = [leaf for leaf in leaves if leaf is not None]
    with tf.GradientTape() as tape:
        tape.watch(present)
        made = function(*inputs, **constants)
        y = made[0] if isinstance(made, tuple) else made
    gradients = iter(tape.gradient(y, present, dy))
    return made, tf.nest.pack_sequence_as(inputs, [None if leaf is None else next(gradients) for leaf in leaves])


@cache
def _compiled(how: Any, function: Any, **constants: Any) -> Any:
    return tf.function(partial(how, function, **constants), jit_compile=True)
