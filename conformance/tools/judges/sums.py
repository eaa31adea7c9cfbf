"""Orders of summation in common use, over the last axis, which is kept, in the dtype of the terms.

A fused multiply-add in float32 is emulated in float64, where the product is exact.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

Array = np.ndarray


def sequential(a: Array) -> Array:
    """From left to right, from zero."""
    return np.cumsum(np.concatenate([np.zeros_like(a[..., :1]), a], axis=-1), axis=-1)[..., -1:]


def backwards(a: Array) -> Array:
    """From right to left."""
    return sequential(a[..., ::-1])


def pairwise(a: Array) -> Array:
    """Fold the last axis in half until one sum is left."""
    while half := a.shape[-1] // 2:
        a = np.concatenate([a[..., :half] + a[..., half : 2 * half], a[..., 2 * half :]], axis=-1)
    return a


def lanes(a: Array, count: int) -> Array:
    """Every `count`-th element into one sum, as SIMD lanes and warps do; then those as a tree."""
    blocks = -(-a.shape[-1] // count)
    padding = [(0, 0)] * (a.ndim - 1) + [(0, blocks * count - a.shape[-1])]
    table = np.pad(a, padding).reshape(*a.shape[:-1], blocks, count)
    return pairwise(np.cumsum(table, axis=-2)[..., -1, :])


def kahan(a: Array) -> Array:
    """Sequential, with what every addition loses carried along (Higham 2002, §4.3)."""
    total = carry = np.zeros_like(a[..., 0])
    for i in range(a.shape[-1]):
        term = a[..., i] + carry
        total, before = total + term, total
        carry = (before - total) + term
    return total[..., None]


def fused(a: Array, b: Array) -> Array:
    """Sequential, each product added without a rounding of its own."""
    total = np.zeros_like(a[..., 0])
    for i in range(a.shape[-1]):
        total = (a[..., i].astype(np.float64) * b[..., i] + total).astype(a.dtype)
    return total[..., None]


SUMS: dict[str, Callable[[Array], Array]] = {
    "sequential": sequential,
    "backwards": backwards,
    "pairwise": pairwise,
    "8 lanes": partial(lanes, count=8),
    "16 lanes": partial(lanes, count=16),
    "32 lanes": partial(lanes, count=32),
    "Kahan": kahan,
    "fused": sequential,  # of products it is `fused`
}
