"""LayerNorm in float64: Ba, Kiros & Hinton 2016, "Layer Normalization", arXiv:1607.06450."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from reference.rows import check_rows, split, sum_rows

Array = np.ndarray


class LayerNorm(NamedTuple):
    """The output of `layer_norm` and the intermediates on the way to it."""

    y: Float64[Array, "*batch d"]
    mean: Float64[Array, "*batch groups"]
    rstd: Float64[Array, "*batch groups"]
    x_hat: Float64[Array, "*batch d"]


class LayerNormGradients(NamedTuple):
    """The gradients of ⟨y, dy⟩; `dweight` or `dbias` is None where there is no such parameter."""

    dx: Float64[Array, "*batch d"]
    dweight: Float64[Array, " d"] | None
    dbias: Float64[Array, " d"] | None


def layer_norm(
    x: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    bias: Float64[Array, " d"] | None = None,
    *,
    eps: float,
    weight_offset: float = 0.0,
    group_size: int | None = None,
) -> LayerNorm:
    r"""Centre every row, divide it by its standard deviation, then scale and shift.

    $$ y_i = (w_i + o)\, \hat x_i + b_i, \qquad \hat x_i = (x_i - \mu) / \sqrt{\sigma^2 + \varepsilon} $$

    The variance is the biased one (divided by d) of the centred row, never E[x²] − E[x]², which cancels
    where |μ| is large against σ. `weight_offset` o is 0, or 1 where the weight is stored as its distance from one.
    `group_size` is as in `rms_norm`: mean and variance are those of a group.

    Raises `ValueError` for an x without features, a parameter that is not of shape [d], or a group that does not divide d.
    """
    check_rows("layer_norm", x, weight=weight, bias=bias)

    groups = split("layer_norm", x, group_size)  # *batch groups g
    mean = np.mean(groups, axis=-1, keepdims=True)  # *batch groups 1
    # The computed mean is off by some ulps of μ, which may be large against σ: what it leaves behind corrects it.
    remainder = np.mean(groups - mean, axis=-1, keepdims=True)  # *batch groups 1
    mean, centred = mean + remainder, (groups - mean) - remainder  # *batch groups 1, *batch groups g
    var = np.mean(np.square(centred), axis=-1, keepdims=True)  # *batch groups 1
    rstd = 1 / np.sqrt(var + eps)  # *batch groups 1
    x_hat = (centred * rstd).reshape(x.shape)  # *batch d
    y = x_hat if weight is None else x_hat * (weight + weight_offset)  # *batch d
    y = y if bias is None else y + bias  # *batch d
    return LayerNorm(y, mean[..., 0], rstd[..., 0], x_hat)


def layer_norm_vjp(
    dy: Float64[Array, "*batch d"],
    x: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    bias: Float64[Array, " d"] | None = None,
    *,
    eps: float,
    weight_offset: float = 0.0,
    group_size: int | None = None,
) -> LayerNormGradients:
    r"""Pull a cotangent dy of y back to x, weight and bias.

    $$ g = (w + o)\,dy, \qquad dx = r\,(g - \bar g - \hat x\, \overline{g \hat x}), \qquad
       dw = \textstyle\sum_{rows} dy\,\hat x, \qquad db = \sum_{rows} dy $$

    Two shares of g are projected out: along the ones (the mean) and along x_hat (the scale). With dy and the
    weight all ones both shares are all there is, and dx is zero: a test with such a dy sees nothing.
    """
    check_rows("layer_norm_vjp", x, dy=dy, weight=weight, bias=bias)

    _, _, rstd, x_hat = layer_norm(x, eps=eps, group_size=group_size)
    g = dy if weight is None else dy * (weight + weight_offset)  # *batch d
    shift, projection = (np.mean(split("layer_norm_vjp", each, group_size), axis=-1) for each in (g, g * x_hat))
    rstd, shift, projection = (np.repeat(each, x.shape[-1] // rstd.shape[-1], axis=-1) for each in (rstd, shift, projection))
    dx = rstd * (g - shift - x_hat * projection)  # *batch d
    dweight = None if weight is None else sum_rows(dy * x_hat)  # d
    dbias = None if bias is None else sum_rows(dy)  # d
    return LayerNormGradients(dx, dweight, dbias)
