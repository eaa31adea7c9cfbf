"""The norms and the matrix product, of TensorFlow's own operations; gradients are those of `tf.GradientTape`."""

from typing import Any

import tensorflow as tf

Tensor = Any  # what type checkers know of tf.Tensor is partly wrong


def widen(x: Tensor) -> Tensor:
    """x in the dtype that is computed in: float32, or float64 for float64."""
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


def rms_norm(
    x: Tensor, weight: Tensor | None, *, eps: float, weight_offset: float = 0.0, order: str = "cast_then_scale"
) -> Tensor:
    """x over its root mean square, scaled."""
    wide = widen(x)
    mean_square = tf.reduce_mean(tf.square(wide), axis=-1, keepdims=True)  # *batch 1
    return scale(wide * tf.math.rsqrt(mean_square + eps), x.dtype, weight, None, weight_offset, order)


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    weight_offset: float = 0.0,
    order: str = "scale_then_cast",
) -> Tensor:
    """x less its mean, over its standard deviation, both from `tf.nn.moments`; scaled and shifted."""
    wide = widen(x)
    mean, var = tf.nn.moments(wide, axes=[-1], keepdims=True)  # *batch 1
    return scale((wide - mean) * tf.math.rsqrt(var + eps), x.dtype, weight, bias, weight_offset, order)


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
    unbiased: bool = True,
) -> Any:
    """x less its mean, over its standard deviation, both from `tf.nn.moments`, or as they ran; scaled and shifted."""
    wide, rows = widen(x), x.shape.num_elements() / x.shape[-1]
    mean, var = running_mean, running_var  # d
    if training:
        mean, var = tf.nn.moments(wide, axes=list(range(len(x.shape) - 1)))
    y = scale((wide - mean) * tf.math.rsqrt(var + eps), x.dtype, weight, bias, 0.0, "scale_then_cast")
    if not training:
        return y
    kept = var * (rows / (rows - 1)) if unbiased else var
    return y, (1 - momentum) * running_mean + momentum * mean, (1 - momentum) * running_var + momentum * kept


def scale(
    x_hat: Tensor, dtype: tf.DType, weight: Tensor | None, bias: Tensor | None, weight_offset: float, order: str
) -> Tensor:
    """Cast to x's dtype, then scale and shift, in which a float32 parameter promotes y; or scale and shift, then cast."""
    y = widen(tf.cast(x_hat, dtype)) if order == "cast_then_scale" else x_hat
    for parameter in (weight, bias):
        if parameter is not None and order == "cast_then_scale" and parameter.dtype != dtype:
            dtype = y.dtype
    y = y if weight is None else y * (widen(weight) + weight_offset)
    y = y if bias is None else y + widen(bias)
    return tf.cast(y, dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Every row times the matrix, which is [out, in], and the bias."""
    y = tf.linalg.matmul(widen(x), widen(weight), transpose_b=True)
    return tf.cast(y if bias is None else y + widen(bias), x.dtype)
