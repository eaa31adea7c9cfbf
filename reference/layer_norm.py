"""LayerNorm in float64: Ba, Kiros & Hinton 2016, "Layer Normalization", arXiv:1607.06450."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from reference.rows import check_rows, sum_rows

Array = np.ndarray


class LayerNorm(NamedTuple):
    """The output of `layer_norm` and the intermediates on the way to it."""

    y: Float64[Array, "*batch d"]
    mean: Float64[Array, "*batch 1"]
    rstd: Float64[Array, "*batch 1"]
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
) -> LayerNorm:
    r"""Centre every row, divide it by its standard deviation, then scale and shift.

    $$ y_i = (w_i + o)\, \hat x_i + b_i, \qquad \hat x_i = (x_i - \mu) / \sqrt{\sigma^2 + \varepsilon} $$

    The variance is the biased one (divided by d) of the centred row, never E[x²] − E[x]², which cancels
    where |μ| is large against σ. `weight_offset` o is 0, or 1 where the weight is stored as its distance from one.

    Raises `ValueError` for an x without features or a parameter that is not of shape [d].
    """
    check_rows("layer_norm", x, weight=weight, bias=bias)

    mean = np.mean(x, axis=-1, keepdims=True)  # *batch 1
    # The computed mean is off by some ulps of μ, which may be large against σ: what it leaves behind corrects it.
    remainder = np.mean(x - mean, axis=-1, keepdims=True)  # *batch 1
    mean, centred = mean + remainder, (x - mean) - remainder  # *batch 1, *batch d
    var = np.mean(np.square(centred), axis=-1, keepdims=True)  # *batch 1
    rstd = 1 / np.sqrt(var + eps)  # *batch 1
    x_hat = centred * rstd  # *batch d
    y = x_hat if weight is None else x_hat * (weight + weight_offset)  # *batch d
    y = y if bias is None else y + bias  # *batch d
    return LayerNorm(y, mean, rstd, x_hat)


def layer_norm_vjp(
    dy: Float64[Array, "*batch d"],
    x: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    bias: Float64[Array, " d"] | None = None,
    *,
    eps: float,
    weight_offset: float = 0.0,
) -> LayerNormGradients:
    r"""Pull a cotangent dy of y back to x, weight and bias.

    $$ g = (w + o)\,dy, \qquad dx = r\,(g - \bar g - \hat x\, \overline{g \hat x}), \qquad
       dw = \textstyle\sum_{rows} dy\,\hat x, \qquad db = \sum_{rows} dy $$

    Two shares of g are projected out: along the ones (the mean) and along x_hat (the scale). With dy and the
    weight all ones both shares are all there is, and dx is zero: a test with such a dy sees nothing.
    """
    check_rows("layer_norm_vjp", x, dy=dy, weight=weight, bias=bias)

    _, _, rstd, x_hat = layer_norm(x, eps=eps)
    g = dy if weight is None else dy * (weight + weight_offset)  # *batch d
    shift = np.mean(g, axis=-1, keepdims=True)  # *batch 1
    projection = np.mean(g * x_hat, axis=-1, keepdims=True)  # *batch 1
    dx = rstd * (g - shift - x_hat * projection)  # *batch d
    dweight = None if weight is None else sum_rows(dy * x_hat)  # d
    dbias = None if bias is None else sum_rows(dy)  # d
    return LayerNormGradients(dx, dweight, dbias)
