"""RMSNorm in float64: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", arXiv:1910.07467."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from reference.rows import check_rows, split, sum_rows

Array = np.ndarray


class RMSNorm(NamedTuple):
    """The output of `rms_norm` and the intermediates on the way to it."""

    y: Float64[Array, "*batch d"]
    rstd: Float64[Array, "*batch groups"]
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
    group_size: int | None = None,
) -> RMSNorm:
    r"""Divide every row by its root mean square, then scale.

    $$ y_i = (w_i + o)\, \hat x_i, \qquad \hat x_i = x_i / \sqrt{\tfrac1d \textstyle\sum_j x_j^2 + \varepsilon} $$

    `eps` joins the mean square *inside* the root, so a zero row maps to zeros. `weight_offset` o is 0, or 1 where
    the weight is stored as its distance from one (Gemma). Without a weight, y is x_hat. With a `group_size` g the mean is that
    of a group of g neighbouring features (Mamba2 under tensor parallelism); without one, a row is a single group.

    Raises `ValueError` for an x without features, a weight that is not of shape [d], or a group that does not divide d.
    """
    check_rows("rms_norm", x, weight=weight)

    groups = split("rms_norm", x, group_size)  # *batch groups g
    mean_square = np.mean(np.square(groups), axis=-1)  # *batch groups
    rstd = 1 / np.sqrt(mean_square + eps)  # *batch groups
    x_hat = (groups * rstd[..., None]).reshape(x.shape)  # *batch d
    y = x_hat if weight is None else x_hat * (weight + weight_offset)  # *batch d
    return RMSNorm(y, rstd, x_hat)


def rms_norm_vjp(
    dy: Float64[Array, "*batch d"],
    x: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    *,
    eps: float,
    weight_offset: float = 0.0,
    group_size: int | None = None,
) -> RMSNormGradients:
    r"""Pull a cotangent dy of y back to x and weight.

    $$ g = (w + o)\,dy, \qquad dx = r\,(g - \hat x\, \overline{g \hat x}), \qquad dw = \textstyle\sum_{rows} dy\,\hat x $$

    The mean of g·x_hat is the share of g along x_hat: to first order a row's length cannot change y, so
    that share is projected out, all of it but a part eps·rstd². The mean is over the group.
    """
    check_rows("rms_norm_vjp", x, dy=dy, weight=weight)

    _, rstd, x_hat = rms_norm(x, eps=eps, group_size=group_size)
    g = dy if weight is None else dy * (weight + weight_offset)  # *batch d
    projection = np.mean(split("rms_norm_vjp", g * x_hat, group_size), axis=-1)  # *batch groups
    size = x.shape[-1] // rstd.shape[-1]
    dx = np.repeat(rstd, size, axis=-1) * (g - x_hat * np.repeat(projection, size, axis=-1))  # *batch d
    dweight = None if weight is None else sum_rows(dy * x_hat)  # d
    return RMSNormGradients(dx, dweight)
