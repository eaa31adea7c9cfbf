"""What the norms need inside `jax.shard_map`: means of rows that are split, and cotangents of what is whole."""

from collections.abc import Hashable

import jax
import jax.numpy as jnp
from jax import Array, lax

AxisName = Hashable
"""The name of a mesh axis, or a tuple of several."""


def row_mean(a: Array, axis_name: AxisName | None = None) -> Array:
    """The mean over the last axis, which is kept: [*batch, d] to [*batch, 1].

    With an `axis_name` the last axis is split over that axis of a mesh, in parts of one width, whose means are averaged.
    """
    mean = jnp.mean(a, axis=-1, keepdims=True)  # *batch 1
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def cotangent(of: Array, a: Array) -> Array:
    """`a` as the cotangent of an array: summed over the mesh axes over which the array is whole, then rounded to its dtype.

    Autodiff does so by itself; a backward pass of our own has to, where `jax.shard_map` checks (`check_vma`): each device has
    the gradient of its part. Nothing is summed outside of it, nor where it does not check, and sums there itself.
    """
    return summed(of, a).astype(of.dtype)


def summed(of: Array, a: Array) -> Array:
    """The same, before it is rounded."""
    split = jax.typeof(a).manual_axis_type.varying - jax.typeof(of).manual_axis_type.varying
    return lax.psum(a, tuple(sorted(split, key=str))) if split else a
