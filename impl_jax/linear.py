"""Matrix products for JAX that accumulate in float32 on every platform, forward and backward."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from impl_jax.mesh import cotangent, summed
from impl_jax.rows import compute_dtype, round_to, sum_rows


def contract(equation: str, a: Array, b: Array) -> Array:
    """`jnp.einsum` of two arrays, its products and sums in float32 (float64 for float64), and so its result.

    Both are asked for: without a precision, a GPU multiplies float32 in tf32 and a TPU in bfloat16; without an element
    type, half precision is rounded after every product, and on some platforms within it.
    """
    dtype = jnp.result_type(a, b, jnp.float32)
    return jnp.einsum(equation, a, b, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)


# Autodiff would multiply float32 cotangents with the weight: right, but not a product of half precision, for which GPUs
# and TPUs are built, hence a backward pass of our own.
@jax.custom_vjp
def linear(
    x: Float[Array, "*batch d_in"], weight: Float[Array, "d_out d_in"], bias: Float[Array, " d_out"] | None = None
) -> Float[Array, "*batch d_out"]:
    r"""Multiply every row by the matrix, and add the bias.

    $$ y_o = \textstyle\sum_i W_{oi}\, x_i + b_o $$

    y is rounded once, to x's dtype. A float32 weight beside a bfloat16 x is rounded before it multiplies; its gradient is not.
    Inside `jax.shard_map` d_out may be split over an axis of the mesh: dx is then summed over it, before it is rounded.
    """
    y, _ = _linear_forward(x, weight, bias)
    return y


def _linear_forward(x: Array, weight: Array, bias: Array | None) -> tuple[Array, tuple]:
    y = contract("...i,oi->...o", x, weight.astype(x.dtype))  # *batch d_out
    if bias is not None:
        y = y + bias.astype(y.dtype)  # *batch d_out
    return round_to(y, x.dtype), (x, weight, bias)


def _linear_backward(saved: tuple, dy: Array) -> tuple[Array, Array, Array | None]:
    x, weight, bias = saved
    rows, dy_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dx = contract("...o,oi->...i", dy, weight.astype(x.dtype))  # *batch d_in
    dweight = contract("ro,ri->oi", dy_rows, rows)  # d_out d_in
    dbias = None if bias is None else cotangent(bias, sum_rows(dy.astype(compute_dtype(dy))))  # d_out
    return round_to(summed(x, dx), x.dtype), cotangent(weight, dweight), dbias


linear.defvjp(_linear_forward, _linear_backward)
