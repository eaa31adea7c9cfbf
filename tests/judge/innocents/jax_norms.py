"""Norms as careful people write them in JAX: statistics in float32, and x cast as often as the line at hand needs it.

What the weight multiplies is cast back to float32 first: JAX would sum dweight in x's dtype otherwise.
"""

import jax
import jax.numpy as jnp
from jax import Array


def layer_norm_three_casts(x, weight, bias, *, eps, weight_offset, order):
    """One cast for the mean, one for the variance, one for the numerator."""
    mean = jnp.mean(x.astype(jnp.float32), -1, keepdims=True)
    var = jnp.mean(jnp.square(x.astype(jnp.float32) - mean), -1, keepdims=True)
    x_hat = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(var + eps)
    return scaled(x_hat, x, weight, bias, weight_offset, order)


def layer_norm_centred_once(x, weight, bias, *, eps, weight_offset, order):
    """The deviations serve numerator and variance; the mean accumulates in float32 by itself."""
    centred = x - jnp.mean(x, -1, keepdims=True, dtype=jnp.float32)
    x_hat = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + eps)
    return scaled(x_hat, x, weight, bias, weight_offset, order)


def layer_norm_variance_first(x, weight, bias, *, eps, weight_offset, order):
    """The variance before the numerator, whose mean is taken anew."""
    var = jnp.var(x.astype(jnp.float32), -1, keepdims=True)
    x_hat = (x.astype(jnp.float32) - jnp.mean(x.astype(jnp.float32), -1, keepdims=True)) / jnp.sqrt(var + eps)
    return scaled(x_hat, x, weight, bias, weight_offset, order)


def rms_norm_two_casts(x, weight, _, *, eps, weight_offset, order):
    """One cast for the mean square, one for the numerator."""
    mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
    return scaled(x.astype(jnp.float32) * jax.lax.rsqrt(mean_square + eps), x, weight, None, weight_offset, order)


def rms_norm_square_as_product(x, weight, _, *, eps, weight_offset, order):
    """The square is a product of two casts."""
    mean_square = jnp.mean(x.astype(jnp.float32) * x.astype(jnp.float32), -1, keepdims=True)
    return scaled(x.astype(jnp.float32) * jax.lax.rsqrt(mean_square + eps), x, weight, None, weight_offset, order)


def scaled(x_hat: Array, x: Array, weight: Array | None, bias: Array | None, weight_offset: float, order: str) -> Array:
    """Scale and shift x_hat in the dialect that is asked for."""
    dtype = x.dtype
    if order == "cast_then_scale":
        x_hat = x_hat.astype(x.dtype).astype(jnp.float32)
        dtype = x.dtype if weight is None else jnp.promote_types(x.dtype, weight.dtype)
    y = x_hat if weight is None else x_hat * (weight.astype(jnp.float32) + weight_offset)
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(dtype)
