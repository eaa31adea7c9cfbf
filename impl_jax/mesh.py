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


def gathered(a: Array, axis_name: AxisName | None) -> Array:
    """A sequence of which each device has an even part, whole on all of them: [*batch, s / devices, d] to [*batch, s, d]."""
    return a if axis_name is None else lax.all_gather(a, axis_name, axis=a.ndim - 2, tiled=True)


def scattered(a: Array, axis_name: AxisName) -> Array:
    """Of a sequence summed over the devices each one's part, [*batch, s, d] to [*batch, s / devices, d]."""
    return lax.psum_scatter(a, axis_name, scatter_dimension=a.ndim - 2, tiled=True)


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
