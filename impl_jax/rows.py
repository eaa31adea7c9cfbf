"""What the norms share: dtypes, a cast that holds under every compiler, and rows along the last axis."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from impl_jax.mesh import AxisName


def compute_dtype(x: Array) -> jnp.dtype:
    """The dtype of statistics and sums: float32, or float64 for float64."""
    return jnp.promote_types(x.dtype, jnp.float32)


def check_order(order: str) -> None:
    """Raise `ValueError` unless the order is one of the two."""
    if order not in ("cast_then_scale", "scale_then_cast"):
        raise ValueError(f"order is {order!r}; it must be 'cast_then_scale' or 'scale_then_cast'")


def check_rows(x: Array, **parameters: Array | None) -> None:
    """Raise unless x is of floating point (`TypeError`) and every parameter has the shape of one row (`ValueError`)."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x is {x.dtype}; it must be of floating point")
    for name, parameter in parameters.items():
        if parameter is not None and parameter.shape != x.shape[-1:]:
            expected = list(x.shape[-1:])
            raise ValueError(f"{name} has shape {list(parameter.shape)}; with x of shape {list(x.shape)} it must be {expected}")


def output_dtype(order: str, dtype: jnp.dtype, *parameters: Array | None) -> jnp.dtype:
    """y's dtype: the given one, or the promoted one where the weight multiplies last."""
    present = [parameter.dtype for parameter in parameters if parameter is not None]
    return jnp.result_type(dtype, *present) if order == "cast_then_scale" else dtype


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def round_to(x: Array, dtype: jnp.dtype) -> Array:
    """Cast x to dtype and round it there, even where the compiler would rather keep float32.

    XLA may drop a pair of casts (`xla_allow_excess_precision` is on by default): `cast_then_scale` then silently
    becomes `scale_then_cast`. It never drops `reduce_precision`, which however flushes float16's subnormals to zero.
    The derivative is that of a cast.
    """
    if dtype not in (jnp.bfloat16, jnp.float16):
        return x.astype(dtype)
    info = jnp.finfo(dtype)
    rounded = lax.reduce_precision(x, info.nexp, info.nmant)
    if dtype == jnp.float16:
        subnormal = lax.round(x * 2.0**24, lax.RoundingMethod.TO_NEAREST_EVEN) * 2.0**-24
        rounded = jnp.where(jnp.abs(x) < info.tiny, subnormal, rounded)
    return rounded.astype(dtype)


@round_to.defjvp
def _round_to_jvp(dtype: jnp.dtype, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    [x], [dx] = primals, tangents
    return round_to(x, dtype), dx.astype(dtype)


def sum_rows(a: Array, kept: int = 1) -> Array:
    """Sum [*batch, d] over every axis but the last; or, of [*batch, groups, g], but the last two."""
    return jnp.sum(a, axis=tuple(range(a.ndim - kept)))


def groups_of(group_size: int | None, x: Array) -> int:
    """How many groups a row has. Raises `ValueError` for a group that does not divide the last axis."""
    if group_size is None:
        return 1
    if group_size < 1 or x.shape[-1] % group_size:
        raise ValueError(f"group_size is {group_size}; with x of shape {list(x.shape)} it must divide {x.shape[-1]}")
    return x.shape[-1] // group_size


def split(group_size: int | None, axis_name: AxisName | None, x: Array, *parameters: Array | None) -> tuple[Any, ...]:
    """x as [*batch, groups, g] and parameters as [groups, g], whose norm is that of every group; as they are without groups.

    Raises `ValueError` for a group that does not divide the last axis, or one beside an `axis_name`, over which that is split.
    """
    groups = groups_of(group_size, x), group_size
    if group_size is None:
        return x, *parameters
    if axis_name is not None:
        raise ValueError(
            f"group_size is {group_size}; with an axis_name, {axis_name!r}, it must be None: groups are of one part"
        )
    return tuple(each if each is None else each.reshape(*each.shape[:-1], *groups) for each in (x, *parameters))
