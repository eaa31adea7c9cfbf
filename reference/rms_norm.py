"""RMSNorm in float64: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", arXiv:1910.07467."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from reference.rows import check_rows, sum_rows

Array = np.ndarray


class RMSNorm(NamedTuple):
    """The output of `rms_norm` and the intermediates on the way to it."""

    y: Float64[Array, "*batch d"]
    rstd: Float64[Array, "*batch 1"]
    x_hat: Float64[Array, "*batch d"]


class RMSNormGradients(NamedTuple):
    """The gradients of ⟨y, dy⟩; `dweight` is None where there is no weight."""

    dx: Float64[Array, "*batch d"]
    dweight: Float64[Array, " d"] | None


def rms_norm(
    x: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    *,
    eps: float,
    weight_offset: float = 0.0,
) -> RMSNorm:
    r"""Divide every row by its root mean square, then scale.

    $$ y_i = (w_i + o)\, \hat x_i, \qquad \hat x_i = x_i / \sqrt{\tfrac1d \textstyle\sum_j x_j^2 + \varepsilon} $$

    `eps` joins the mean square *inside* the root, so a zero row maps to zeros. `weight_offset` o is 0, or 1 where
    the weight is stored as its distance from one (Gemma). Without a weight, y is x_hat.

    Raises `ValueError` for an x without features or a weight that is not of shape [d].
    """
    check_rows("rms_norm", x, weight=weight)

    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)  # *batch 1
    rstd = 1 / np.sqrt(mean_square + eps)  # *batch 1
    x_hat = x * rstd  # *batch d
    y = x_hat if weight is None else x_hat * (weight + weight_offset)  # *batch d
    return RMSNorm(y, rstd, x_hat)


def rms_norm_vjp(
    dy: Float64[Array, "*batch d"],
    x: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    *,
    eps: float,
    weight_offset: float = 0.0,
) -> RMSNormGradients:
    r"""Pull a cotangent dy of y back to x and weight.

    $$ g = (w + o)\,dy, \qquad dx = r\,(g - \hat x\, \overline{g \hat x}), \qquad dw = \textstyle\sum_{rows} dy\,\hat x $$

    The mean of g·x_hat is the share of g along x_hat: to first order a row's length cannot change y, so
    that share is projected out, all of it but a part eps·rstd².
    """
    check_rows("rms_norm_vjp", x, dy=dy, weight=weight)

    _, rstd, x_hat = rms_norm(x, eps=eps)
    g = dy if weight is None else dy * (weight + weight_offset)  # *batch d
    projection = np.mean(g * x_hat, axis=-1, keepdims=True)  # *batch 1
    dx = rstd * (g - x_hat * projection)  # *batch d
    dweight = None if weight is None else sum_rows(dy * x_hat)  # d
    return RMSNormGradients(dx, dweight)
