"""RMSNorm and LayerNorm over rows, BatchNorm over columns, and the matrix product.

Each returns y and the function that pulls dy back to its inputs. What is read is widened first, half precision to
float32, and what is returned is rounded once.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

Array = np.ndarray
Backward = Callable[[Array], tuple[Any, ...]]
"""From dy to the gradients of ⟨y, dy⟩, one for every input, None for a None."""


def widen(x: Array) -> Array:
    """x in the dtype that is computed in."""
    return x.astype(np.result_type(x, np.float32), copy=False)


def mean(a: Array, group_size: int | None) -> Array:
    """The mean of every row; or, for every feature, that of its group."""
    if group_size is None:
        return np.mean(a, axis=-1, keepdims=True)
    groups = a.reshape(*a.shape[:-1], a.shape[-1] // group_size, group_size)
    return np.repeat(np.mean(groups, axis=-1), group_size, axis=-1)


def rms_norm(
    x: Array,
    weight: Array | None,
    *,
    eps: float,
    weight_offset: float = 0.0,
    order: str = "cast_then_scale",
    dtype: np.dtype | None = None,
    group_size: int | None = None,
) -> tuple[Array, Backward]:
    r"""Divide every row by its root mean square, then scale. `dtype` is that of y and of a cast, if it is not x's.

    $$ y = w\, \hat x, \qquad \hat x = r\,x, \qquad dx = r\,(g - \hat x\, \overline{g \hat x}), \quad g = w\,dy $$

    With a `group_size` the means are those of so many features.
    """
    wide = widen(x)
    rstd = 1 / np.sqrt(mean(np.square(wide), group_size) + eps)  # *batch d, or *batch 1
    x_hat = wide * rstd  # *batch d
    y, scale_backward = _scale(x_hat, dtype or x.dtype, weight, None, weight_offset, order)

    def backward(dy: Array) -> tuple[Any, ...]:
        g, dweight, _ = scale_backward(dy)
        dx = rstd * (g - x_hat * mean(g * x_hat, group_size))  # *batch d
        return dx.astype(x.dtype), dweight

    return y, backward


def layer_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    eps: float,
    weight_offset: float = 0.0,
    order: str = "scale_then_cast",
    dtype: np.dtype | None = None,
    group_size: int | None = None,
) -> tuple[Array, Backward]:
    r"""Centre every row, divide it by its standard deviation, then scale and shift; the last two are as in `rms_norm`.

    $$ y = w\, \hat x + b, \qquad \hat x = r\,(x - \mu), \qquad
       dx = r\,(g - \bar g - \hat x\, \overline{g \hat x}), \quad g = w\,dy $$
    """
    wide = widen(x)
    centred = wide - mean(wide, group_size)  # *batch d
    rstd = 1 / np.sqrt(mean(np.square(centred), group_size) + eps)  # *batch d, or *batch 1
    x_hat = centred * rstd  # *batch d
    y, scale_backward = _scale(x_hat, dtype or x.dtype, weight, bias, weight_offset, order)

    def backward(dy: Array) -> tuple[Any, ...]:
        g, dweight, dbias = scale_backward(dy)
        dx = rstd * (g - mean(g, group_size) - x_hat * mean(g * x_hat, group_size))  # *batch d
        return dx.astype(x.dtype), dweight, dbias

    return y, backward


Sum = Literal["rounded", "unrounded", "float32"]


def add_rms_norm(
    x: Array, residual: Array, weight: Array | None, *, eps: float, sum: Sum = "rounded", **dialect: Any
) -> tuple[tuple[Array, Array], Backward]:
    """Add the residual to x; return RMSNorm of the sum, and the sum, in the residual's dtype."""
    return _add_norm(rms_norm, x, residual, weight, eps=eps, sum=sum, **dialect)


def add_layer_norm(
    x: Array, residual: Array, weight: Array | None, bias: Array | None, *, eps: float, sum: Sum = "rounded", **dialect: Any
) -> tuple[tuple[Array, Array], Backward]:
    """Add the residual to x; return LayerNorm of the sum, and the sum, in the residual's dtype."""
    return _add_norm(layer_norm, x, residual, weight, bias, eps=eps, sum=sum, **dialect)


def _add_norm(
    norm: Any, x: Array, residual: Array, *parameters: Array | None, sum: Sum, **dialect: Any
) -> tuple[tuple[Array, Array], Backward]:
    r"""Add, then norm: the sum as it is rounded, or as it was before.

    $$ s = x + residual, \qquad dx = dresidual = ds + dresidual\_out $$
    """
    total = widen(x) + widen(residual)  # *batch d
    residual_out = total.astype(residual.dtype)  # *batch d
    y, norm_backward = norm(residual_out if sum == "rounded" else total, *parameters, dtype=x.dtype, **dialect)

    def backward(cotangents: Any) -> tuple[Any, ...]:
        dy, dresidual_out = (np.zeros_like(y) if each is None else each for each in cotangents)
        ds, *dparameters = norm_backward(dy)
        total = widen(ds) + widen(dresidual_out)  # *batch d
        return total.astype(x.dtype), total.astype(residual.dtype), *dparameters

    return (y, residual_out), backward


def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    running_mean: Array,
    running_var: Array,
    eps: float,
    training: bool,
    momentum: float = 0.1,
    unbiased: bool = True,
) -> tuple[Any, Backward]:
    r"""Centre every column, divide it by its standard deviation, over the batch or as it ran so far, then scale and shift.

    $$ y = w\, \hat x + b, \qquad \hat x = r\,(x - \mu), \qquad
       dx = r\,(g - \bar g - \hat x\, \overline{g \hat x}), \text{ in evaluation } r\,g, \quad g = w\,dy $$

    In training y is one of three: the running statistics, (1 − momentum)·old + momentum·new, go with it.
    """
    wide, rows = widen(x), x.size // x.shape[-1]
    mean = _sum_rows(wide) / rows if training else running_mean  # d
    centred = wide - mean  # *batch d
    var = _sum_rows(np.square(centred)) / rows if training else running_var  # d
    rstd = 1 / np.sqrt(var + eps)  # d
    x_hat = centred * rstd  # *batch d
    y, scale_backward = _scale(x_hat, x.dtype, weight, bias, 0.0, "scale_then_cast")

    def backward(dy: Array) -> tuple[Any, ...]:
        g, dweight, dbias = scale_backward(dy)
        if training:
            g = g - _sum_rows(g) / rows - x_hat * (_sum_rows(g * x_hat) / rows)  # *batch d
        return (rstd * g).astype(x.dtype), dweight, dbias

    if not training:
        return y, backward
    kept = var * (rows / (rows - 1)) if unbiased else var  # d
    new_mean = (1 - momentum) * running_mean + momentum * mean  # d
    new_var = (1 - momentum) * running_var + momentum * kept  # d
    return (y, new_mean, new_var), backward


def _scale(
    x_hat: Array, dtype: np.dtype, weight: Array | None, bias: Array | None, weight_offset: float, order: str
) -> tuple[Array, Backward]:
    """Cast to the dtype, then scale and shift, in which a float32 parameter promotes y; or scale and shift, then cast."""
    present = [parameter for parameter in (weight, bias) if parameter is not None]
    w = None if weight is None else widen(weight) + weight_offset  # d
    cast_first = order == "cast_then_scale"
    y = widen(x_hat.astype(dtype)) if cast_first else x_hat
    y = y if w is None else y * w  # *batch d
    y = y if bias is None else y + widen(bias)  # *batch d

    def backward(dy: Array) -> tuple[Any, ...]:
        dy = widen(dy)
        g = dy if w is None else dy * w  # *batch d
        dweight = None if weight is None else _sum_rows(dy * x_hat).astype(weight.dtype)  # d
        dbias = None if bias is None else _sum_rows(dy).astype(bias.dtype)  # d
        return g, dweight, dbias

    return y.astype(np.result_type(dtype, *present) if cast_first else dtype), backward


def linear(x: Array, weight: Array, bias: Array | None) -> tuple[Array, Backward]:
    r"""Multiply every row by the matrix, which is [out, in], and add the bias.

    $$ y = W x + b, \qquad dx = W^\top dy, \qquad dW = \textstyle\sum_{rows} dy\, x^\top $$
    """
    wide, matrix = widen(x), widen(weight)
    y = wide @ matrix.T  # *batch d_out
    y = y if bias is None else y + widen(bias)

    def backward(dy: Array) -> tuple[Any, ...]:
        dy = widen(dy)
        dweight = dy.reshape(-1, dy.shape[-1]).T @ wide.reshape(-1, x.shape[-1])  # d_out d_in
        dbias = None if bias is None else _sum_rows(dy).astype(bias.dtype)  # d_out
        return (dy @ matrix).astype(x.dtype), dweight.astype(weight.dtype), dbias

    return y.astype(x.dtype), backward


def _sum_rows(a: Array) -> Array:
    return a.reshape(-1, a.shape[-1]).sum(axis=0)
