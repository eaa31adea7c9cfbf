"""RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467) for JAX."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

from impl_jax.kernels import in_pallas, pallas_norm
from impl_jax.mesh import AxisName, cotangent, row_mean
from impl_jax.rows import check_order, check_rows, compute_dtype, output_dtype, round_to, split, sum_rows


def rms_norm(
    x: Float[Array, "*batch d"],
    weight: Float[Array, " d"] | None = None,
    *,
    eps: float = 1e-5,
    order: str = "cast_then_scale",
    weight_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    group_size: int | None = None,
    kernel: str | None = None,
    axis_name: AxisName | None = None,
) -> Float[Array, "*batch d"]:
    r"""Divide every row by its root mean square, then scale.

    $$ y_i = (w_i + o)\, \hat x_i, \qquad \hat x_i = x_i / \sqrt{\tfrac1d \textstyle\sum_j x_j^2 + \varepsilon} $$

    Statistics and sums are in float32 (float64 for float64), forward and backward. `order="cast_then_scale"` rounds
    x_hat to `dtype` before the weight multiplies it, and a float32 weight promotes y; `"scale_then_cast"` rounds once,
    and y has `dtype`. That is x's own unless given, as for a float32 sum of half-precision numbers. `eps` and `weight_offset`
    are constants to every gradient.
    With a `group_size` the mean square is that of so many neighbouring features, each group's own. Inside `jax.shard_map` the
    `axis_name` is the mesh axis over which features are split, x's and the weight's, evenly; rows may be split over any other.
    `kernel` is "pallas", "xla", or None, which is XLA's. Pallas's compute the same on a TPU and a GPU, and are interpreted on a
    CPU; they have gradients, no second derivatives, and no `axis_name`.
    Raises `ValueError` for another order or kernel, a weight of another shape, a group that does not divide d or one beside an
    `axis_name`, `TypeError` for an x that is not of floating point.
    """
    if in_pallas(kernel, axis_name):
        settings: Any = {"eps": eps, "order": order, "weight_offset": weight_offset, "group_size": group_size}
        return pallas_norm(x, None, weight, None, **settings, dtype=x.dtype if dtype is None else dtype, centred=False)[0]
    check_order(order)
    check_rows(x, weight=weight)
    rows, weight = split(group_size, axis_name, x, weight)
    y_dtype = x.dtype if dtype is None else jnp.dtype(dtype)
    y: Any = _rms_norm(order, y_dtype, axis_name, rows, weight, eps, weight_offset)
    return jnp.reshape(y, x.shape)


class RMSNorm(nnx.Module):
    """`rms_norm` over the last axis, of `num_features`, with a learned `weight`."""

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        param_dtype: DTypeLike = jnp.float32,
        order: str = "cast_then_scale",
        weight_offset: float = 0.0,
        group_size: int | None = None,
        rngs: nnx.Rngs | None = None,  # accepted like every flax module's, though nothing here is drawn
    ) -> None:
        check_order(order)
        self.eps = eps
        self.order = order
        self.weight_offset = weight_offset
        self.group_size = group_size
        self.weight = nnx.Param(jnp.full(num_features, 1 - weight_offset, param_dtype))

    def __call__(self, x: Float[Array, "*batch d"], *, dtype: DTypeLike | None = None) -> Float[Array, "*batch d"]:
        return rms_norm(
            x,
            self.weight[...],
            eps=self.eps,
            order=self.order,
            weight_offset=self.weight_offset,
            dtype=dtype,
            group_size=self.group_size,
        )


# Autodiff of cast_then_scale would sum dweight in x's dtype, hence a backward pass of our own.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _rms_norm(
    order: str,
    dtype: jnp.dtype,
    axis_name: AxisName | None,
    x: Array,
    weight: Array | None,
    eps: float,
    weight_offset: float,
) -> Array:
    y, _ = _rms_norm_forward(order, dtype, axis_name, x, weight, eps, weight_offset)
    return y


def _rms_norm_forward(
    order: str,
    dtype: jnp.dtype,
    axis_name: AxisName | None,
    x: Array,
    weight: Array | None,
    eps: float,
    weight_offset: float,
):
    compute, y_dtype = compute_dtype(x), output_dtype(order, dtype, weight)
    mean_square = row_mean(jnp.square(x.astype(compute)), axis_name)  # *batch 1
    rstd = lax.rsqrt(mean_square + jnp.asarray(eps, compute))  # *batch 1
    x_hat = x.astype(compute) * rstd  # *batch d
    y = round_to(x_hat, dtype).astype(compute) if order == "cast_then_scale" else x_hat
    if weight is not None:
        y = y * (weight.astype(compute) + jnp.asarray(weight_offset, compute))  # *batch d
    return y.astype(y_dtype), (x, weight, weight_offset, rstd)


def _rms_norm_backward(order: str, dtype: jnp.dtype, axis_name: AxisName | None, saved: tuple, dy: Array):
    x, weight, weight_offset, rstd = saved
    compute = compute_dtype(x)
    dy = dy.astype(compute)
    x_hat = x.astype(compute) * rstd  # *batch d
    g = dy if weight is None else dy * (weight.astype(compute) + jnp.asarray(weight_offset, compute))  # *batch d
    projection = row_mean(g * x_hat, axis_name)  # *batch 1
    dx = rstd * (g - x_hat * projection)  # *batch d
    dweight = None if weight is None else cotangent(weight, sum_rows(dy * x_hat, weight.ndim))  # d
    return cotangent(x, dx), dweight, None, None


_rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)
