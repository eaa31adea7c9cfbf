"""LayerNorm (Ba, Kiros & Hinton 2016, arXiv:1607.06450) for JAX."""

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


def layer_norm(
    x: Float[Array, "*batch d"],
    weight: Float[Array, " d"] | None = None,
    bias: Float[Array, " d"] | None = None,
    *,
    eps: float = 1e-5,
    order: str = "scale_then_cast",
    weight_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    group_size: int | None = None,
    kernel: str | None = None,
    axis_name: AxisName | None = None,
) -> Float[Array, "*batch d"]:
    r"""Centre every row, divide it by its standard deviation, then scale and shift.

    $$ y_i = (w_i + o)\, \hat x_i + b_i, \qquad \hat x_i = (x_i - \mu) / \sqrt{\sigma^2 + \varepsilon} $$

    Statistics and sums are in float32 (float64 for float64), forward and backward; the variance is the mean square of the
    centred row. `order`, `dtype`, `group_size`, `kernel` and `axis_name` are as in `rms_norm`; the bias is added before the
    last rounding. `eps` and `weight_offset` are constants to every gradient. Raises as `rms_norm` does.
    """
    if in_pallas(kernel, axis_name):
        settings: Any = {"eps": eps, "order": order, "weight_offset": weight_offset, "group_size": group_size}
        return pallas_norm(x, None, weight, bias, **settings, dtype=x.dtype if dtype is None else dtype, centred=True)[0]
    check_order(order)
    check_rows(x, weight=weight, bias=bias)
    rows, weight, bias = split(group_size, axis_name, x, weight, bias)
    y_dtype = x.dtype if dtype is None else jnp.dtype(dtype)
    y: Any = _layer_norm(order, y_dtype, axis_name, rows, weight, bias, eps, weight_offset)
    return jnp.reshape(y, x.shape)


class LayerNorm(nnx.Module):
    """`layer_norm` over the last axis, of `num_features`, with learned `weight` and (unless `use_bias=False`) `bias`."""

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        use_bias: bool = True,
        param_dtype: DTypeLike = jnp.float32,
        order: str = "scale_then_cast",
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
        self.bias = nnx.Param(jnp.zeros(num_features, param_dtype)) if use_bias else None

    def __call__(self, x: Float[Array, "*batch d"], *, dtype: DTypeLike | None = None) -> Float[Array, "*batch d"]:
        bias = None if self.bias is None else self.bias[...]
        return layer_norm(
            x,
            self.weight[...],
            bias,
            eps=self.eps,
            order=self.order,
            weight_offset=self.weight_offset,
            dtype=dtype,
            group_size=self.group_size,
        )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _layer_norm(
    order: str,
    dtype: jnp.dtype,
    axis_name: AxisName | None,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    weight_offset: float,
) -> Array:
    y, _ = _layer_norm_forward(order, dtype, axis_name, x, weight, bias, eps, weight_offset)
    return y


def _layer_norm_forward(
    order: str,
    dtype: jnp.dtype,
    axis_name: AxisName | None,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    weight_offset: float,
):
    compute, y_dtype = compute_dtype(x), output_dtype(order, dtype, weight, bias)
    mean = row_mean(x.astype(compute), axis_name)  # *batch 1
    centred = x.astype(compute) - mean  # *batch d
    var = row_mean(jnp.square(centred), axis_name)  # *batch 1
    rstd = lax.rsqrt(var + jnp.asarray(eps, compute))  # *batch 1
    x_hat = centred * rstd  # *batch d
    y = round_to(x_hat, dtype).astype(compute) if order == "cast_then_scale" else x_hat
    if weight is not None:
        y = y * (weight.astype(compute) + jnp.asarray(weight_offset, compute))  # *batch d
    if bias is not None:
        y = y + bias.astype(compute)  # *batch d
    return y.astype(y_dtype), (x, weight, bias, weight_offset, mean, rstd)


def _layer_norm_backward(order: str, dtype: jnp.dtype, axis_name: AxisName | None, saved: tuple, dy: Array):
    x, weight, bias, weight_offset, mean, rstd = saved
    compute = compute_dtype(x)
    dy = dy.astype(compute)
    x_hat = (x.astype(compute) - mean) * rstd  # *batch d
    g = dy if weight is None else dy * (weight.astype(compute) + jnp.asarray(weight_offset, compute))  # *batch d
    shift = row_mean(g, axis_name)  # *batch 1
    projection = row_mean(g * x_hat, axis_name)  # *batch 1
    dx = rstd * (g - shift - x_hat * projection)  # *batch d
    dweight = None if weight is None else cotangent(weight, sum_rows(dy * x_hat, weight.ndim))  # d
    dbias = None if bias is None else cotangent(bias, sum_rows(dy, bias.ndim))  # d
    return cotangent(x, dx), dweight, dbias, None, None


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
