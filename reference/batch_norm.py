"""BatchNorm in float64: Ioffe & Szegedy 2015, "Batch Normalization", arXiv:1502.03167."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from reference.rows import check_rows, sum_rows

Array = np.ndarray


class BatchNorm(NamedTuple):
    """The output of `batch_norm`, what it normalised by, and what becomes of the running statistics."""

    y: Float64[Array, "*batch d"]
    mean: Float64[Array, " d"]
    var: Float64[Array, " d"]
    rstd: Float64[Array, " d"]
    x_hat: Float64[Array, "*batch d"]
    running_mean: Float64[Array, " d"]
    running_var: Float64[Array, " d"]


class BatchNormGradients(NamedTuple):
    """The gradients of ⟨y, dy⟩; `dweight` or `dbias` is None where there is no such parameter."""

    dx: Float64[Array, "*batch d"]
    dweight: Float64[Array, " d"] | None
    dbias: Float64[Array, " d"] | None


def batch_norm(
    x: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None,
    bias: Float64[Array, " d"] | None,
    running_mean: Float64[Array, " d"],
    running_var: Float64[Array, " d"],
    *,
    eps: float,
    training: bool,
    momentum: float = 0.1,
    unbiased: bool = True,
) -> BatchNorm:
    r"""Centre every feature and divide it by its standard deviation, over the batch or as it ran so far; scale and shift.

    $$ y_i = w_i\, \hat x_i + b_i, \qquad \hat x_i = (x_i - \mu_i) / \sqrt{\sigma^2_i + \varepsilon} $$

    In training μ and σ² are the mean and the biased variance (divided by R) of a feature over the batch's R rows, and move the
    running statistics, in which `momentum` m is the share of the new:

    $$ \mu' \leftarrow (1 - m)\,\mu' + m\,\mu, \qquad \sigma'^2 \leftarrow (1 - m)\,\sigma'^2 + m\,c\,\sigma^2 $$

    with c = R/(R − 1), the unbiased variance, as in PyTorch and cuDNN, or with `unbiased=False` c = 1, as in flax, Keras and
    ONNX. In evaluation μ and σ² are the running ones, which stay as they are.

    The features are on the last axis; whoever has channels first moves them there. Raises `ValueError` for an x without
    features, for a parameter or a running statistic that is not of shape [d], for a training batch without rows, and for
    one of a single row whose unbiased variance is asked for.
    """
    given = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    check_rows("batch_norm", x, **given)
    rows = x.size // x.shape[-1]
    if training and rows < 1 + unbiased:
        wanted = "two rows, for an unbiased variance" if unbiased else "a row"
        raise ValueError(f"batch_norm: x has shape {x.shape}; to train on, it must hold at least {wanted}")

    if training:
        mean = sum_rows(x) / rows  # d
        # As in layer_norm: what the computed mean leaves behind corrects it.
        remainder = sum_rows(x - mean) / rows  # d
        mean, centred = mean + remainder, (x - mean) - remainder  # d, *batch d
        var = sum_rows(np.square(centred)) / rows  # d
        correction = rows / (rows - 1) if unbiased else 1.0
        running_mean = (1 - momentum) * running_mean + momentum * mean  # d
        running_var = (1 - momentum) * running_var + momentum * correction * var  # d
    else:
        mean, var, centred = running_mean, running_var, x - running_mean
    rstd = 1 / np.sqrt(var + eps)  # d
    x_hat = centred * rstd  # *batch d
    y = x_hat if weight is None else x_hat * weight  # *batch d
    y = y if bias is None else y + bias  # *batch d
    return BatchNorm(y, mean, var, rstd, x_hat, running_mean, running_var)


def batch_norm_vjp(
    dy: Float64[Array, "*batch d"],
    x: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None,
    bias: Float64[Array, " d"] | None,
    running_mean: Float64[Array, " d"],
    running_var: Float64[Array, " d"],
    *,
    eps: float,
    training: bool,
) -> BatchNormGradients:
    r"""Pull a cotangent dy of y back to x, weight and bias; the running statistics are constants to it.

    $$ g = w\,dy, \qquad dx = r\,(g - \bar g - \hat x\, \overline{g \hat x}), \quad\text{in evaluation } r\,g,
       \qquad dw = \textstyle\sum_{rows} dy\,\hat x, \qquad db = \sum_{rows} dy $$

    The means are over the rows, feature by feature: LayerNorm's gradient, turned. Raises as `batch_norm` does.
    """
    given = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    check_rows("batch_norm_vjp", x, dy=dy, **given)
    norm = batch_norm(x, weight, bias, running_mean, running_var, eps=eps, training=training, unbiased=False)
    rows = x.size // x.shape[-1]
    g = dy if weight is None else dy * weight  # *batch d
    dx = norm.rstd * g  # *batch d
    if training:
        shift, projection = sum_rows(g) / rows, sum_rows(g * norm.x_hat) / rows  # d, d
        dx = norm.rstd * (g - shift - norm.x_hat * projection)  # *batch d
    dweight = None if weight is None else sum_rows(dy * norm.x_hat)  # d
    dbias = None if bias is None else sum_rows(dy)  # d
    return BatchNormGradients(dx, dweight, dbias)
