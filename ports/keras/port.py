"""Keras' RMSNormalization and LayerNormalization as they ship, on the JAX backend."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported

from functools import cache
from typing import Any

import jax
import keras
from jax import Array

import ports.jax_library
from conformance.port import Skip
from ports.jax_library import BIASED


class Port(ports.jax_library.Port):
    """Every default but epsilon; the dtype policy is x's dtype, or mixed_bfloat16 and the like for a float32 weight.

    The layers are called as a model calls them, with a state of their own: `stateless_call` on a layer alone would
    not cast the variables.
    """

    name = "keras"
    packages = ("keras",)
    skips = BIASED
    expected = {  # noqa: RUF012
        "*/float64/*": "computed in float32: ratios of 2e7 to 2e8",
        "rms_norm/*_float32_weight/*": "mixed precision rounds the scale to half precision first: ratios of 1e2 to 1e4",
        "layer_norm/*/width_1": "x·rstd + (bias - mean·rstd) rounds bias to the ulps of mean·rstd: ratios of 2e3 to 4e6",
    }

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float, order: str = "scale_then_cast") -> Array:
        if weight is None:
            raise Skip("RMSNormalization always has a scale")
        layer = _layer("RMSNormalization", x.shape[-1:], epsilon=eps, dtype=_policy(x, weight))
        with keras.StatelessScope([(layer.scale, weight)]):
            return layer(x)

    def layer_norm(
        self, x: Array, weight: Array | None, bias: Array | None, *, eps: float, order: str = "scale_then_cast"
    ) -> Array:
        has = {"scale": weight is not None, "center": bias is not None}
        layer = _layer("LayerNormalization", x.shape[-1:], epsilon=eps, dtype=_policy(x, weight), **has)
        state = ((layer.gamma, weight), (layer.beta, bias))
        with keras.StatelessScope([(variable, value) for variable, value in state if value is not None]):
            return layer(x)

    def batch_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        *,
        running_mean: Array,
        running_var: Array,
        eps: float,
        training: bool,
        momentum: float = 0.1,
        **_: Any,
    ) -> Any:
        layer = _layer(
            "BatchNormalization",
            x.shape,
            momentum=1 - momentum,
            epsilon=eps,
            dtype=_policy(x, running_mean),
            scale=weight is not None,
            center=bias is not None,
        )
        running = (layer.moving_mean, running_mean), (layer.moving_variance, running_var)
        state = ((layer.gamma, weight), (layer.beta, bias), *running)
        with keras.StatelessScope([(variable, value) for variable, value in state if value is not None]) as scope:
            y = layer(x, training=training)
        return (y, *(scope.get_current_value(variable) for variable, _ in running)) if training else y


def _policy(x: Array, weight: Array | None) -> str:
    """The name of the dtype policy under which variables have the weight's dtype and y has x's."""
    return x.dtype.name if weight is None or weight.dtype == x.dtype else f"mixed_{x.dtype.name}"


@cache
def _layer(kind: str, shape: tuple[int, ...], **arguments) -> Any:
    """A layer with variables of its own, which no trace must see."""
    with jax.ensure_compile_time_eval():
        layer = getattr(keras.layers, kind)(**arguments)
        layer.build(shape)
    return layer
