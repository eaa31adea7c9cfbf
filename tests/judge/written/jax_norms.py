"""RMSNorm and LayerNorm with one thing wrong, as people write them in JAX.

Most are a plain forward pass under `jax.vjp`. A kernel's forward pass has a right backward pass beside it, and a kernel's
backward pass a right forward pass, by `jax.custom_vjp`.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from conformance.numbers.rounding import HALF
from tests.judge.written.collection import Collection
from tests.judge.written.fault import Fault

Forward = Callable[..., Array]
Backward = Callable[..., tuple[Array | None, ...]]

HALF_OR_SINGLE = (*HALF, "float32")
written = Collection("jax")


def wide(x: Array) -> Array:
    """x in the compute dtype."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def affine(x_hat: Array, x: Array, weight: Array | None, bias: Array | None, *, weight_offset: float, order: str) -> Array:
    """Scale and shift x_hat, and cast where the order says."""
    y, dtype = x_hat, x.dtype
    if order == "cast_then_scale":
        y = wide(x_hat.astype(x.dtype))
        dtype = jnp.result_type(x, *(parameter for parameter in (weight, bias) if parameter is not None))
    if weight is not None:
        y = y * (wide(weight) + weight_offset)
    if bias is not None:
        y = y + wide(bias)
    return y.astype(dtype)


def rms_norm(x: Array, weight: Array | None, bias: None = None, *, eps: float, weight_offset: float, order: str) -> Array:
    """RMSNorm under autodiff."""
    x_hat, _ = rms_statistics(x, eps)
    return affine(x_hat, x, weight, bias, weight_offset=weight_offset, order=order)


def layer_norm(x: Array, weight: Array | None, bias: Array | None, *, eps: float, weight_offset: float, order: str) -> Array:
    """LayerNorm under autodiff."""
    x_hat, _ = layer_statistics(x, eps)
    return affine(x_hat, x, weight, bias, weight_offset=weight_offset, order=order)


def rms_statistics(x: Array, eps: float) -> tuple[Array, Array]:
    """x_hat and rstd of RMSNorm."""
    x = wide(x)
    rstd = lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return x * rstd, rstd


def layer_statistics(x: Array, eps: float) -> tuple[Array, Array]:
    """x_hat and rstd of LayerNorm."""
    x = wide(x)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    rstd = lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return centred * rstd, rstd


def effective(weight: Array | None, weight_offset: float) -> Array | float:
    """What multiplies x_hat."""
    return 1.0 if weight is None else wide(weight) + weight_offset


def row_mean(a: Array) -> Array:
    """The mean of every row, kept as an axis."""
    return jnp.mean(a, axis=-1, keepdims=True)


def sum_rows(a: Array) -> Array:
    """The sum over all axes but the features'."""
    return jnp.sum(a, axis=tuple(range(a.ndim - 1)))


def rms_norm_vjp(
    x: Array, weight: Array | None, bias: None, dy: Array, *, eps: float, weight_offset: float
) -> tuple[Array | None, ...]:
    """The right gradients of RMSNorm."""
    x_hat, rstd = rms_statistics(x, eps)
    g = wide(dy) * effective(weight, weight_offset)
    dx = rstd * (g - x_hat * row_mean(g * x_hat))
    return dx, sum_rows(wide(dy) * x_hat), None


def layer_norm_vjp(
    x: Array, weight: Array | None, bias: Array | None, dy: Array, *, eps: float, weight_offset: float
) -> tuple[Array | None, ...]:
    """The right gradients of LayerNorm."""
    x_hat, rstd = layer_statistics(x, eps)
    g = wide(dy) * effective(weight, weight_offset)
    dx = rstd * (g - row_mean(g) - x_hat * row_mean(g * x_hat))
    return dx, sum_rows(wide(dy) * x_hat), sum_rows(wide(dy))


def joined(forward: Forward, backward: Backward) -> Forward:
    """A norm of a forward and a backward pass written apart."""

    def run(x: Array, weight: Array | None, bias: Array | None, *, eps: float, weight_offset: float, order: str) -> Array:
        @jax.custom_vjp
        def norm(*tensors: Array | None) -> Array:
            return forward(*tensors, eps=eps, weight_offset=weight_offset, order=order)

        def save(*tensors: Array | None) -> tuple[Array, tuple[Array | None, ...]]:
            return norm(*tensors), tensors

        def pull(tensors: tuple[Array | None, ...], dy: Array) -> tuple[Any, ...]:
            gradients = backward(*tensors, dy, eps=eps, weight_offset=weight_offset)
            pairs = zip(tensors, gradients, strict=True)
            return tuple(None if tensor is None else gradient.astype(tensor.dtype) for tensor, gradient in pairs)

        norm.defvjp(save, pull)
        return norm(x, weight, bias)

    return run


def differentiated_by(backward: Backward) -> Callable[[Forward], Forward]:
    """Give the decorated forward pass this backward pass."""
    return lambda forward: wraps(forward)(joined(forward, backward))


def gradients_of(forward: Forward) -> Callable[[Backward], Forward]:
    """Give this forward pass the decorated backward pass."""
    return lambda backward: wraps(backward)(joined(forward, backward))


HONEST = (
    Fault("jax/rms_norm", "nothing", "rms_norm", "jax", rms_norm),
    Fault("jax/rms_norm_kernel", "nothing", "rms_norm", "jax", joined(rms_norm, rms_norm_vjp)),
    Fault("jax/layer_norm", "nothing", "layer_norm", "jax", layer_norm),
    Fault("jax/layer_norm_kernel", "nothing", "layer_norm", "jax", joined(layer_norm, layer_norm_vjp)),
)


# RMSNorm under autodiff.


@written.fault("rms_norm", "eps_outside_root")
def rms_eps_outside_root(x, weight, bias, *, eps, weight_offset, order):
    """eps is added to the root mean square, after the root is taken."""
    rms = jnp.sqrt(row_mean(wide(x) ** 2))
    return affine(wide(x) / (rms + eps), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "eps_clamps_root")
def rms_divides_by_clamped_norm(x, weight, bias, *, eps, weight_offset, order):
    """The row is divided by max(rms, eps), as a normalisation of vectors does it."""
    rms = jnp.sqrt(row_mean(wide(x) ** 2))
    return affine(wide(x) / jnp.maximum(rms, eps), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "eps_clamps")
def rms_clamps_mean_square(x, weight, bias, *, eps, weight_offset, order):
    """eps is the least that the mean square may be; it is not added."""
    mean_square = lax.max(row_mean(wide(x) ** 2), jnp.asarray(eps, wide(x).dtype))
    return affine(wide(x) * lax.rsqrt(mean_square), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "eps_missing")
def rms_eps_forgotten(x, weight, bias, *, eps, weight_offset, order):
    """eps is an argument that nothing reads."""
    rstd = lax.rsqrt(row_mean(wide(x) ** 2))
    return affine(wide(x) * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "eps_1e-06")
def rms_flax_default_eps(x, weight, bias, *, eps, weight_offset, order):
    """The module is built without its eps, so flax's default of 1e-6 is used."""
    return rms_norm(x, weight, bias, eps=1e-6, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "eps_in_the_sum")
def rms_eps_in_the_sum(x, weight, bias, *, eps, weight_offset, order):
    """eps is added to the sum of squares before it is divided by the width."""
    mean_square = (jnp.sum(wide(x) ** 2, axis=-1, keepdims=True) + eps) / x.shape[-1]
    return affine(wide(x) / jnp.sqrt(mean_square), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "variance_for_mean_square")
def rms_of_jnp_var(x, weight, bias, *, eps, weight_offset, order):
    """jnp.var stands where the mean square belongs."""
    rstd = lax.rsqrt(jnp.var(wide(x), axis=-1, keepdims=True) + eps)
    return affine(wide(x) * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "layer_norm_for_rms_norm")
def rms_centres_the_row(x, weight, bias, *, eps, weight_offset, order):
    """The row loses its mean first, as in LayerNorm."""
    x_hat, _ = layer_statistics(x, eps)
    return affine(x_hat, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "statistics_over_all_rows")
def rms_mean_without_axis(x, weight, bias, *, eps, weight_offset, order):
    """jnp.mean is called without an axis, so all rows share one mean square."""
    rstd = lax.rsqrt(jnp.mean(wide(x) ** 2) + eps)
    return affine(wide(x) * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "sum_for_mean")
def rms_sum_for_mean(x, weight, bias, *, eps, weight_offset, order):
    """The squares are summed and never divided by the width."""
    rstd = lax.rsqrt(jnp.sum(wide(x) ** 2, axis=-1, keepdims=True) + eps)
    return affine(wide(x) * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "divides_by_mean_square")
def rms_root_forgotten(x, weight, bias, *, eps, weight_offset, order):
    """The row is divided by the mean square; the root is missing."""
    mean_square = row_mean(wide(x) ** 2) + eps
    return affine(wide(x) / mean_square, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "multiplies_by_root")
def rms_sqrt_for_rsqrt(x, weight, bias, *, eps, weight_offset, order):
    """lax.sqrt is typed where lax.rsqrt is meant."""
    rms = lax.sqrt(row_mean(wide(x) ** 2) + eps)
    return affine(wide(x) * rms, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "padded_width")
def rms_padded_divisor(x, weight, bias, *, eps, weight_offset, order):
    """The row is padded with zeros to a power of two, and the mean is taken over the padded row."""
    width = x.shape[-1]
    padding = [(0, 0)] * (x.ndim - 1) + [(0, (1 << (width - 1).bit_length()) - width)]
    rstd = lax.rsqrt(row_mean(jnp.pad(wide(x), padding) ** 2) + eps)
    return affine(wide(x) * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "squares_in_storage_dtype", dtypes=HALF)
def rms_squares_before_the_cast(x, weight, bias, *, eps, weight_offset, order):
    """x is squared in its own dtype; only the mean is in float32."""
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True, dtype=jnp.float32)
    return affine(wide(x) * lax.rsqrt(mean_square + eps), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "mean_square_in_storage_dtype", dtypes=HALF)
def rms_mean_square_cast_down(x, weight, bias, *, eps, weight_offset, order):
    """The mean square is kept in x's dtype; eps and the root are in float32 again."""
    mean_square = row_mean(wide(x) ** 2).astype(x.dtype)
    rstd = lax.rsqrt(wide(mean_square) + eps)
    return affine(wide(x) * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "rstd_in_storage_dtype", dtypes=HALF)
def rms_rstd_cast_down(x, weight, bias, *, eps, weight_offset, order):
    """rstd is cast to x's dtype before it multiplies."""
    rstd = lax.rsqrt(row_mean(wide(x) ** 2) + eps).astype(x.dtype)
    return affine(wide(x) * wide(rstd), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "computed_in_storage_dtype", dtypes=HALF)
def rms_in_storage_dtype(x, weight, bias, *, eps, weight_offset, order):
    """Nothing is cast to float32: every step is in x's dtype, as haiku has it."""
    mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
    y = x * lax.rsqrt(mean_square + jnp.asarray(eps, x.dtype)) * (weight.astype(x.dtype) + jnp.asarray(weight_offset, x.dtype))
    return y.astype(jnp.result_type(x, weight) if order == "cast_then_scale" else x.dtype)


@written.fault("rms_norm", "x_hat_in_bfloat16", dtypes=("float64", "float32", "float16"))
def rms_x_hat_in_bfloat16(x, weight, bias, *, eps, weight_offset, order):
    """A cast to bfloat16 is left from a TPU model."""
    x_hat, _ = rms_statistics(x, eps)
    x_hat = wide(x_hat.astype(jnp.bfloat16)).astype(wide(x).dtype)
    return affine(x_hat, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "rstd_in_bfloat16", dtypes=("float64", "float32"))
def rms_rstd_in_bfloat16(x, weight, bias, *, eps, weight_offset, order):
    """The statistics are kept in bfloat16, whatever x's dtype is."""
    rstd = lax.rsqrt(row_mean(wide(x) ** 2) + eps).astype(jnp.bfloat16)
    return affine(wide(x) * rstd.astype(wide(x).dtype), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "computed_in_float32", dtypes=("float64",))
def rms_always_in_float32(x, weight, bias, *, eps, weight_offset, order):
    """x is cast to float32 even where it is float64."""
    single = None if weight is None else weight.astype(jnp.float32)
    y = rms_norm(x.astype(jnp.float32), single, bias, eps=eps, weight_offset=weight_offset, order=order)
    return y.astype(x.dtype)


@written.fault("rms_norm", "offset_unasked")
def rms_gemma_weight(x, weight, bias, *, eps, weight_offset, order):
    """One is added to every weight, as Gemma's are stored, whether they are or not."""
    return rms_norm(x, weight, bias, eps=eps, weight_offset=1.0, order=order)


@written.fault("rms_norm", "offset_missing")
def rms_offset_forgotten(x, weight, bias, *, eps, weight_offset, order):
    """Weights that are stored less one are used as they are."""
    return rms_norm(x, weight, bias, eps=eps, weight_offset=0.0, order=order)


@written.fault("rms_norm", "weight_in_storage_dtype", "parameters_in_storage_dtype", dtypes=HALF)
def rms_offset_added_in_half(x, weight, bias, *, eps, weight_offset, order):
    """One plus weight is computed in x's dtype."""
    x_hat, _ = rms_statistics(x, eps)
    rounded = wide((wide(weight) + weight_offset).astype(x.dtype))
    dtype = jnp.result_type(x, weight) if order == "cast_then_scale" else x.dtype
    x_hat = wide(x_hat.astype(x.dtype)) if order == "cast_then_scale" else x_hat
    return (x_hat * rounded).astype(dtype)


@written.fault("rms_norm", "other_order", dtypes=HALF)
def rms_always_casts_last(x, weight, bias, *, eps, weight_offset, order):
    """The weight multiplies in float32 and the product is cast, whichever order is asked for."""
    x_hat, _ = rms_statistics(x, eps)
    y = x_hat if weight is None else x_hat * (wide(weight) + weight_offset)
    return y.astype(jnp.result_type(x, weight) if order == "cast_then_scale" else x.dtype)


@written.fault("rms_norm", "nan_swallowed")
def rms_cleans_its_input(x, weight, bias, *, eps, weight_offset, order):
    """A NaN in x is replaced by zero before anything else."""
    return rms_norm(jnp.where(jnp.isnan(x), 0, x), weight, bias, eps=eps, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "statistics_held_constant", "projection_missing", group="backward")
def rms_stops_the_statistics(x, weight, bias, *, eps, weight_offset, order):
    """rstd is under stop_gradient."""
    rstd = lax.stop_gradient(lax.rsqrt(row_mean(wide(x) ** 2) + eps))
    return affine(wide(x) * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "dweight_zero", group="backward")
def rms_freezes_the_weight(x, weight, bias, *, eps, weight_offset, order):
    """The weight is under stop_gradient."""
    frozen = None if weight is None else lax.stop_gradient(weight)
    return rms_norm(x, frozen, bias, eps=eps, weight_offset=weight_offset, order=order)


# LayerNorm under autodiff.


@written.fault("layer_norm", "divides_by_n_minus_1")
def layer_unbiased_variance(x, weight, bias, *, eps, weight_offset, order):
    """The variance is jnp.var with ddof=1."""
    x32 = wide(x)
    centred = x32 - row_mean(x32)
    rstd = lax.rsqrt(jnp.var(x32, axis=-1, keepdims=True, ddof=1) + eps)
    return affine(centred * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "one_pass_variance")
def layer_fast_variance(x, weight, bias, *, eps, weight_offset, order):
    """The variance is E[x²] - E[x]², not below zero: flax's use_fast_variance."""
    x32 = wide(x)
    mean = row_mean(x32)
    var = jnp.maximum(row_mean(x32**2) - mean**2, 0)
    return affine((x32 - mean) * lax.rsqrt(var + eps), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "eps_outside_root")
def layer_std_plus_eps(x, weight, bias, *, eps, weight_offset, order):
    """The row is divided by jnp.std plus eps."""
    x32 = wide(x)
    centred = x32 - row_mean(x32)
    std = jnp.sqrt(row_mean(centred**2))
    return affine(centred / (std + eps), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "eps_twice")
def layer_eps_twice(x, weight, bias, *, eps, weight_offset, order):
    """The helper that takes the variance adds eps, and so does its caller."""
    x32 = wide(x)
    centred = x32 - row_mean(x32)
    var = row_mean(centred**2) + eps
    return affine(centred * lax.rsqrt(var + eps), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "eps_0.001")
def layer_keras_default_eps(x, weight, bias, *, eps, weight_offset, order):
    """eps is 1e-3, keras's default."""
    return layer_norm(x, weight, bias, eps=1e-3, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "mean_left_in_values")
def layer_scales_the_uncentred_row(x, weight, bias, *, eps, weight_offset, order):
    """x, not x less its mean, is multiplied by rstd."""
    _, rstd = layer_statistics(x, eps)
    return affine(wide(x) * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "mean_square_for_variance")
def layer_mean_square_for_variance(x, weight, bias, *, eps, weight_offset, order):
    """The variance is the mean of x², from which the mean was not taken."""
    x32 = wide(x)
    centred = x32 - row_mean(x32)
    rstd = lax.rsqrt(row_mean(x32**2) + eps)
    return affine(centred * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "not_centred")
def layer_is_rms_norm(x, weight, bias, *, eps, weight_offset, order):
    """RMSNorm with a bias is called by LayerNorm's name."""
    x_hat, _ = rms_statistics(x, eps)
    return affine(x_hat, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "mean_in_storage_dtype", dtypes=HALF)
def layer_mean_in_half(x, weight, bias, *, eps, weight_offset, order):
    """The mean is taken before the cast to float32, so it is rounded to x's dtype."""
    centred = wide(x) - wide(jnp.mean(x, axis=-1, keepdims=True))
    rstd = lax.rsqrt(row_mean(centred**2) + eps)
    return affine(centred * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "centred_in_storage_dtype", dtypes=HALF)
def layer_centred_in_half(x, weight, bias, *, eps, weight_offset, order):
    """x less its mean is cast to x's dtype, and the variance is taken of that."""
    x32 = wide(x)
    centred = wide((x32 - row_mean(x32)).astype(x.dtype))
    rstd = lax.rsqrt(row_mean(centred**2) + eps)
    return affine(centred * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "statistics_over_two_axes")
def layer_over_two_axes(x, weight, bias, *, eps, weight_offset, order):
    """The statistics are taken over axes (-2, -1)."""
    x32 = wide(x)
    axes = (-2, -1) if x.ndim > 1 else (-1,)
    centred = x32 - jnp.mean(x32, axis=axes, keepdims=True)
    rstd = lax.rsqrt(jnp.mean(centred**2, axis=axes, keepdims=True) + eps)
    return affine(centred * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "padding_in_variance")
def layer_padding_in_variance(x, weight, bias, *, eps, weight_offset, order):
    """The mean is right, but it is subtracted from padding too, and that is squared and summed."""
    x32 = wide(x)
    width = x.shape[-1]
    padding = [(0, 0)] * (x.ndim - 1) + [(0, (1 << (width - 1).bit_length()) - width)]
    padded = jnp.pad(x32, padding)
    mean = jnp.sum(padded, axis=-1, keepdims=True) / width
    var = jnp.sum((padded - mean) ** 2, axis=-1, keepdims=True) / width
    return affine((x32 - mean) * lax.rsqrt(var + eps), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "bias_scaled")
def layer_bias_before_weight(x, weight, bias, *, eps, weight_offset, order):
    """The bias is added to x_hat, and the weight multiplies the sum."""
    x_hat, _ = layer_statistics(x, eps)
    x_hat = wide(x_hat.astype(x.dtype)) if order == "cast_then_scale" else x_hat
    parameters = [parameter for parameter in (weight, bias) if parameter is not None]
    y = (x_hat + (0.0 if bias is None else wide(bias))) * effective(weight, weight_offset)
    return y.astype(jnp.result_type(x, *parameters) if order == "cast_then_scale" else x.dtype)


@written.fault("layer_norm", "bias_missing")
def layer_without_bias(x, weight, bias, *, eps, weight_offset, order):
    """use_bias is false, whatever the checkpoint has."""
    x_hat, _ = layer_statistics(x, eps)
    parameters = [parameter for parameter in (weight, bias) if parameter is not None]
    y = affine(x_hat, x, weight, None, weight_offset=weight_offset, order=order)
    return y.astype(jnp.result_type(x, *parameters) if order == "cast_then_scale" else x.dtype)


@written.fault("layer_norm", "weight_of_first_feature")
def layer_scalar_weight(x, weight, bias, *, eps, weight_offset, order):
    """The weight is indexed with zero, so the first one scales every feature."""
    first = None if weight is None else weight[0]
    return layer_norm(x, first, bias, eps=eps, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "shift_missing", group="backward")
def layer_stops_the_mean(x, weight, bias, *, eps, weight_offset, order):
    """The mean is under stop_gradient."""
    x32 = wide(x)
    centred = x32 - lax.stop_gradient(row_mean(x32))
    rstd = lax.rsqrt(row_mean(centred**2) + eps)
    return affine(centred * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "projection_missing", group="backward")
def layer_stops_the_variance(x, weight, bias, *, eps, weight_offset, order):
    """rstd is under stop_gradient, the mean is not."""
    x32 = wide(x)
    centred = x32 - row_mean(x32)
    rstd = lax.stop_gradient(lax.rsqrt(row_mean(centred**2) + eps))
    return affine(centred * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


# Kernels: a forward pass with a fault, beside a right backward pass.


def padded_to(block: int, x: Array) -> Array:
    """x in the compute dtype, its rows padded with zeros to a multiple of the block."""
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % block)]
    return jnp.pad(wide(x), padding)


@written.fault("rms_norm", "eps_outside_root", group="forward")
@differentiated_by(rms_norm_vjp)
def rms_kernel_eps_outside_root(x, weight, bias, *, eps, weight_offset, order):
    """The forward kernel adds eps to the root; the backward pass is right."""
    rstd = 1 / (jnp.sqrt(row_mean(wide(x) ** 2)) + eps)
    return affine(wide(x) * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "divides_by_n_minus_1", group="forward")
@differentiated_by(rms_norm_vjp)
def rms_kernel_divides_by_n_minus_1(x, weight, bias, *, eps, weight_offset, order):
    """The forward kernel divides the sum of squares by the width less one."""
    mean_square = jnp.sum(wide(x) ** 2, axis=-1, keepdims=True) / (x.shape[-1] - 1)
    return affine(wide(x) * lax.rsqrt(mean_square + eps), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "weight_missing", group="forward")
@differentiated_by(rms_norm_vjp)
def rms_kernel_without_weight(x, weight, bias, *, eps, weight_offset, order):
    """The forward kernel stores x_hat; the backward pass knows of the weight."""
    ones = None if weight is None else jnp.ones_like(weight)
    return rms_norm(x, ones, bias, eps=eps, weight_offset=0.0, order=order)


@written.fault("rms_norm", "last_row_not_written", group="forward")
@differentiated_by(rms_norm_vjp)
def rms_kernel_grid_too_short(x, weight, bias, *, eps, weight_offset, order):
    """The grid is one row short, so the last row of the output stays zero."""
    y = rms_norm(x, weight, bias, eps=eps, weight_offset=weight_offset, order=order)
    rows = y.reshape(-1, y.shape[-1])
    return jnp.zeros_like(rows).at[: len(rows) - 1].set(rows[:-1]).reshape(y.shape) if len(rows) else y


@written.fault("rms_norm", "tail_missing_from_statistics", "statistics_of_first_32", group="forward")
@differentiated_by(rms_norm_vjp)
def rms_kernel_whole_vectors_only(x, weight, bias, *, eps, weight_offset, order):
    """The sum of squares is taken four lanes at a time, and the remainder of the row is left out."""
    whole = x.shape[-1] - x.shape[-1] % 4
    mean_square = jnp.sum(wide(x)[..., :whole] ** 2, axis=-1, keepdims=True) / x.shape[-1]
    return affine(wide(x) * lax.rsqrt(mean_square + eps), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "y_truncated", "outputs_truncated", group="forward", dtypes=("bfloat16",))
@differentiated_by(rms_norm_vjp)
def rms_kernel_truncates(x, weight, bias, *, eps, weight_offset, order):
    """The forward kernel stores the upper half of each float32's bits: bfloat16 by truncation."""
    x_hat, _ = rms_statistics(x, eps)
    x_hat = wide(x_hat.astype(x.dtype)) if order == "cast_then_scale" else x_hat
    dtype = jnp.result_type(x, weight) if order == "cast_then_scale" else x.dtype
    y = x_hat * effective(weight, weight_offset)
    if dtype == jnp.float32:
        return y
    bits = lax.bitcast_convert_type(y, jnp.uint32) & jnp.uint32(0xFFFF0000)
    return lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)


@written.fault("rms_norm", "fast_inverse_root_1", group="forward", dtypes=HALF_OR_SINGLE)
@differentiated_by(rms_norm_vjp)
def rms_kernel_fast_inverse_root(x, weight, bias, *, eps, weight_offset, order):
    """rstd is the bit trick with one Newton step: 0.2 % off."""
    mean_square = row_mean(wide(x) ** 2) + eps
    bits = jnp.uint32(0x5F3759DF) - (lax.bitcast_convert_type(mean_square, jnp.uint32) >> 1)
    guess = lax.bitcast_convert_type(bits, jnp.float32)
    rstd = guess * (1.5 - 0.5 * mean_square * guess**2)
    return affine(wide(x) * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "statistics_of_first_32", "tail_missing_from_statistics", group="forward")
@differentiated_by(rms_norm_vjp)
def rms_kernel_block_narrower_than_the_row(x, weight, bias, *, eps, weight_offset, order):
    """The sum of squares sees the first 32 features only; the width it is divided by is right."""
    mean_square = jnp.sum(wide(x)[..., :32] ** 2, axis=-1, keepdims=True) / x.shape[-1]
    return affine(wide(x) * lax.rsqrt(mean_square + eps), x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("rms_norm", "y_times_*", group="forward")  # of all rows of one width it is that
@differentiated_by(rms_norm_vjp)
def rms_kernel_divides_by_the_lanes(x, weight, bias, *, eps, weight_offset, order):
    """The width is padded to a multiple of 128 lanes, and the mean is taken over the lanes."""
    rstd = lax.rsqrt(row_mean(padded_to(128, x) ** 2) + eps)
    return affine(wide(x) * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "eps_missing", group="forward")
@differentiated_by(layer_norm_vjp)
def layer_kernel_without_eps(x, weight, bias, *, eps, weight_offset, order):
    """The forward kernel is never given eps."""
    x_hat, _ = layer_statistics(x, 0.0)
    return affine(x_hat, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "bias_twice", group="forward")
@differentiated_by(layer_norm_vjp)
def layer_kernel_adds_the_bias_twice(x, weight, bias, *, eps, weight_offset, order):
    """The kernel adds the bias, and so does the wrapper that calls it."""
    doubled = None if bias is None else 2 * bias
    return layer_norm(x, weight, doubled, eps=eps, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "weight_and_bias_swapped", group="forward")
@differentiated_by(layer_norm_vjp)
def layer_kernel_refs_exchanged(x, weight, bias, *, eps, weight_offset, order):
    """The kernel's references to weight and bias stand in the wrong order."""
    return layer_norm(x, bias, weight, eps=eps, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "welford_without_delta_halves", group="forward")
@differentiated_by(layer_norm_vjp)
def layer_kernel_merges_without_delta(x, weight, bias, *, eps, weight_offset, order):
    """Two halves of the row have their variances averaged; the distance of their means is left out."""
    x32, half = wide(x), x.shape[-1] // 2
    first, second = x32[..., :half], x32[..., half:]
    squares = [jnp.sum((part - row_mean(part)) ** 2, axis=-1, keepdims=True) for part in (first, second) if part.size]
    rstd = lax.rsqrt(sum(squares, jnp.zeros_like(x32[..., :1])) / x.shape[-1] + eps)
    return affine((x32 - row_mean(x32)) * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@written.fault("layer_norm", "rstd_in_storage_dtype", "rstd_in_storage_dtype_in_forward", group="forward", dtypes=HALF)
@differentiated_by(layer_norm_vjp)
def layer_kernel_rstd_in_half(x, weight, bias, *, eps, weight_offset, order):
    """The forward kernel reads rstd back from a buffer in x's dtype; the backward pass computes its own."""
    x_hat, rstd = layer_statistics(x, eps)
    x_hat = (wide(x) - row_mean(wide(x))) * wide(rstd.astype(x.dtype))
    return affine(x_hat, x, weight, bias, weight_offset=weight_offset, order=order)


# Kernels: a backward pass with a fault, behind a right forward pass.


@written.fault("rms_norm", "projection_missing", "statistics_held_constant", group="backward")
@gradients_of(rms_norm)
def rms_backward_without_projection(x, weight, bias, dy, *, eps, weight_offset):
    """dx is rstd times g, as if rstd did not depend on x."""
    x_hat, rstd = rms_statistics(x, eps)
    return wide(dy) * effective(weight, weight_offset) * rstd, sum_rows(wide(dy) * x_hat), None


@written.fault("rms_norm", "projection_summed", group="backward")
@gradients_of(rms_norm)
def rms_backward_sums_the_projection(x, weight, bias, dy, *, eps, weight_offset):
    """The projection of g on x_hat is a sum over the row, not a mean."""
    x_hat, rstd = rms_statistics(x, eps)
    g = wide(dy) * effective(weight, weight_offset)
    dx = rstd * (g - x_hat * jnp.sum(g * x_hat, axis=-1, keepdims=True))
    return dx, sum_rows(wide(dy) * x_hat), None


@written.fault("rms_norm", "projection_of_x", group="backward")
@gradients_of(rms_norm)
def rms_backward_rstd_squared(x, weight, bias, dy, *, eps, weight_offset):
    """The second term of dx has the square of rstd where its cube belongs."""
    x32 = wide(x)
    x_hat, rstd = rms_statistics(x, eps)
    g = wide(dy) * effective(weight, weight_offset)
    dx = rstd * g - rstd**2 * x32 * row_mean(g * x32)
    return dx, sum_rows(wide(dy) * x_hat), None


@written.fault("rms_norm", "projection_added", group="backward")
@gradients_of(rms_norm)
def rms_backward_adds_the_projection(x, weight, bias, dy, *, eps, weight_offset):
    """A minus in dx is a plus."""
    x_hat, rstd = rms_statistics(x, eps)
    g = wide(dy) * effective(weight, weight_offset)
    return rstd * (g + x_hat * row_mean(g * x_hat)), sum_rows(wide(dy) * x_hat), None


@written.fault("rms_norm", "dweight_of_x", group="backward")
@gradients_of(rms_norm)
def rms_backward_dweight_of_x(x, weight, bias, dy, *, eps, weight_offset):
    """dweight sums dy times x, without rstd."""
    dx, _, _ = rms_norm_vjp(x, weight, bias, dy, eps=eps, weight_offset=weight_offset)
    return dx, sum_rows(wide(dy) * wide(x)), None


@written.fault("rms_norm", "dweight_mean", group="backward")
@gradients_of(rms_norm)
def rms_backward_dweight_mean(x, weight, bias, dy, *, eps, weight_offset):
    """dweight is a mean over the rows: pmean for psum."""
    dx, dweight, _ = rms_norm_vjp(x, weight, bias, dy, eps=eps, weight_offset=weight_offset)
    return dx, dweight * x.shape[-1] / max(1, x.size), None


@written.fault("rms_norm", "rstd_saved_in_storage_dtype", "rstd_in_storage_dtype_in_backward", group="backward", dtypes=HALF)
@gradients_of(rms_norm)
def rms_backward_rstd_in_half(x, weight, bias, dy, *, eps, weight_offset):
    """rstd is saved in x's dtype."""
    _, rstd = rms_statistics(x, eps)
    rstd = wide(rstd.astype(x.dtype))
    x_hat, g = wide(x) * rstd, wide(dy) * effective(weight, weight_offset)
    return rstd * (g - x_hat * row_mean(g * x_hat)), sum_rows(wide(dy) * x_hat), None


@written.fault("rms_norm", "dx_without_offset", group="backward")
@gradients_of(rms_norm)
def rms_backward_without_offset(x, weight, bias, dy, *, eps, weight_offset):
    """dx takes the weight as it is stored, without the one that the forward pass adds."""
    return rms_norm_vjp(x, weight, bias, dy, eps=eps, weight_offset=0.0)


@written.fault("rms_norm", "dweight_without_*", group="backward")
@gradients_of(rms_norm)
def rms_backward_dweight_of_last_block(x, weight, bias, dy, *, eps, weight_offset):
    """dweight's reference is assigned by every block of four rows, not added to, so the last block's is left."""
    dx, _, _ = rms_norm_vjp(x, weight, bias, dy, eps=eps, weight_offset=weight_offset)
    terms = (wide(dy) * rms_statistics(x, eps)[0]).reshape(-1, x.shape[-1])
    return dx, jnp.sum(terms[(len(terms) - 1) // 4 * 4 :], axis=0), None


@written.fault("rms_norm", "dy_added_to_dx", group="backward")
@gradients_of(rms_norm)
def rms_backward_adds_the_residual(x, weight, bias, dy, *, eps, weight_offset):
    """The kernel of a fused residual adds dy to dx, though there is no residual."""
    dx, dweight, _ = rms_norm_vjp(x, weight, bias, dy, eps=eps, weight_offset=weight_offset)
    return dx + wide(dy), dweight, None


@written.fault("layer_norm", "shift_missing", group="backward")
@gradients_of(layer_norm)
def layer_backward_without_shift(x, weight, bias, dy, *, eps, weight_offset):
    """RMSNorm's dx is used: the mean of g is not subtracted."""
    x_hat, rstd = layer_statistics(x, eps)
    g = wide(dy) * effective(weight, weight_offset)
    return rstd * (g - x_hat * row_mean(g * x_hat)), sum_rows(wide(dy) * x_hat), sum_rows(wide(dy))


@written.fault("layer_norm", "projection_without_weight", group="backward")
@gradients_of(layer_norm)
def layer_backward_projects_dy(x, weight, bias, dy, *, eps, weight_offset):
    """The projection on x_hat is that of dy; the weight is forgotten there alone."""
    x_hat, rstd = layer_statistics(x, eps)
    g = wide(dy) * effective(weight, weight_offset)
    dx = rstd * (g - row_mean(g) - x_hat * row_mean(wide(dy) * x_hat))
    return dx, sum_rows(wide(dy) * x_hat), sum_rows(wide(dy))


@written.fault("layer_norm", "dbias_weighted", group="backward")
@gradients_of(layer_norm)
def layer_backward_dbias_of_g(x, weight, bias, dy, *, eps, weight_offset):
    """dbias sums g, dy times the weight, where it should sum dy."""
    dx, dweight, _ = layer_norm_vjp(x, weight, bias, dy, eps=eps, weight_offset=weight_offset)
    return dx, dweight, sum_rows(wide(dy) * effective(weight, weight_offset))


@written.fault("layer_norm", "dbias_zero", group="backward")
@gradients_of(layer_norm)
def layer_backward_without_dbias(x, weight, bias, dy, *, eps, weight_offset):
    """dbias is a buffer of zeros that no one fills."""
    dx, dweight, dbias = layer_norm_vjp(x, weight, bias, dy, eps=eps, weight_offset=weight_offset)
    return dx, dweight, 0 * dbias


@written.fault("layer_norm", "eps_missing_in_backward", group="backward")
@gradients_of(layer_norm)
def layer_backward_without_eps(x, weight, bias, dy, *, eps, weight_offset):
    """The backward pass computes rstd again, without eps."""
    return layer_norm_vjp(x, weight, bias, dy, eps=0.0, weight_offset=weight_offset)


@written.fault("layer_norm", "x_hat_recovered_from_y", group="backward")
@gradients_of(layer_norm)
def layer_backward_from_y(x, weight, bias, dy, *, eps, weight_offset):
    """y is saved instead of x, and x_hat is (y - bias) / weight."""
    _, rstd = layer_statistics(x, eps)
    w, b = effective(weight, weight_offset), 0.0 if bias is None else wide(bias)
    y = layer_norm(x, weight, bias, eps=eps, weight_offset=weight_offset, order="scale_then_cast")
    x_hat, g = (wide(y) - b) / w, wide(dy) * w
    dx = rstd * (g - row_mean(g) - x_hat * row_mean(g * x_hat))
    return dx, sum_rows(wide(dy) * x_hat), sum_rows(wide(dy))


@written.fault("layer_norm", "dx_without_rstd", group="backward")
@gradients_of(layer_norm)
def layer_backward_without_rstd(x, weight, bias, dy, *, eps, weight_offset):
    """The last factor of dx, rstd, is forgotten."""
    x_hat, _ = layer_statistics(x, eps)
    g = wide(dy) * effective(weight, weight_offset)
    return g - row_mean(g) - x_hat * row_mean(g * x_hat), sum_rows(wide(dy) * x_hat), sum_rows(wide(dy))


@written.fault("layer_norm", "mean_saved_in_storage_dtype", group="backward", dtypes=HALF)
@gradients_of(layer_norm)
def layer_backward_mean_in_half(x, weight, bias, dy, *, eps, weight_offset):
    """The mean is saved in x's dtype, rstd in float32."""
    _, rstd = layer_statistics(x, eps)
    x_hat = (wide(x) - wide(row_mean(wide(x)).astype(x.dtype))) * rstd
    g = wide(dy) * effective(weight, weight_offset)
    dx = rstd * (g - row_mean(g) - x_hat * row_mean(g * x_hat))
    return dx, sum_rows(wide(dy) * x_hat), sum_rows(wide(dy))


@written.fault(
    "layer_norm", "dweight_without_last_row", "dbias_without_last_row", "dweight_and_dbias_without_row_5*", group="backward"
)
@gradients_of(layer_norm)
def layer_backward_stops_a_row_early(x, weight, bias, dy, *, eps, weight_offset):
    """The loop over the rows of dweight and dbias ends one too early."""
    dx, _, _ = layer_norm_vjp(x, weight, bias, dy, eps=eps, weight_offset=weight_offset)
    rows = wide(dy).reshape(-1, x.shape[-1])
    x_hat = layer_statistics(x, eps)[0].reshape(rows.shape)
    return dx, jnp.sum((rows * x_hat)[:-1], axis=0), jnp.sum(rows[:-1], axis=0)


FAULTS = tuple(written.faults)
