"""A norm's float64 numbers, as budgets and placements need them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np

from conformance.rounding import DType, compute_dtype
from reference.rows import sum_rows as sum_rows

Array = np.ndarray


def mean(a: Array) -> Array:
    """The mean over the features; the axis is kept."""
    return np.mean(a, axis=-1, keepdims=True)


Sum = Literal["mean", "squares", "projection", "shift", "dweight", "dbias"]
"""The sums of a norm: over the features those of its statistics and of dx, over the rows those of its parameters' gradients."""


@dataclass(frozen=True)
class Arithmetic:
    """What an implementation computes in.

    `forward` and `backward` are the compute dtypes of the two passes, `sums` the dtypes of sums that are added up one by
    one in a lower precision than that; `one_pass` where the variance is E[x²] − E[x]².
    """

    forward: DType
    backward: DType
    sums: Mapping[Sum, DType] = field(default_factory=lambda: MappingProxyType({}))
    one_pass: bool = False


def honest(storage_dtype: str) -> Arithmetic:
    """Statistics and sums in float32, or in float64 for float64."""
    return Arithmetic(compute_dtype(storage_dtype), compute_dtype(storage_dtype))


@dataclass(frozen=True)
class Pullback:
    """The backward pass as the linear maps it consists of, so that their arguments can be rounded.

    g = dy·`w`; dx is the sum of the three `dx_paths` of g: the direct one, the one through the mean (zeros where nothing is
    centred), and the one through rstd; dweight is `sum_rows` of dy·`multiplicand`.
    """

    w: Array
    dx_paths: Callable[[Array], tuple[Array, Array, Array]]
    multiplicand: Array
    sum_rows: Callable[[Array], Array] = sum_rows


@dataclass(frozen=True)
class NormValues:
    """Everything of one norm; `w` is the effective weight, offset included; `centred` tells LayerNorm from RMSNorm."""

    x: Array
    dy: Array
    w: Array
    bias: Array
    x_hat: Array
    rstd: Array
    y: Array
    dx: Array
    dweight: Array
    dbias: Array
    centred: bool
    pullback: Pullback
    arithmetic: Arithmetic


def true_pullback(w: Array, x_hat: Array, rstd: Array, *, centred: bool) -> Pullback:
    """dx = r·g − r·c1 − r·x_hat·c2, dweight = Σ dy·x_hat."""

    def dx_paths(g: Array) -> tuple[Array, Array, Array]:
        c1 = mean(g) if centred else np.zeros_like(rstd)
        return rstd * g, -rstd * c1, -rstd * x_hat * mean(g * x_hat)

    return Pullback(w, dx_paths, x_hat)
