"""A norm's float64 numbers, as budgets and placements need them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Literal

import numpy as np

import reference
from conformance.numbers.rounding import FORMATS, DType
from reference.rows import sum_rows as sum_rows

Array = np.ndarray


Axes = tuple[int, ...]
FEATURES: Axes = (-1,)


def mean(a: Array, axes: Axes = FEATURES) -> Array:
    """The mean over the features, or over other axes; they are kept. That of nothing is zero."""
    return np.mean(a, axis=axes, keepdims=True) if a.size else np.sum(a, axis=axes, keepdims=True)


def by_feature(statistic: Array, d: int) -> Array:
    """A statistic without the axes that were kept, [d]; one of other axes than BatchNorm's, for a mistake, as its mean."""
    return np.broadcast_to(np.mean(statistic, axis=batch_axes(statistic)), (d,))


def batch_axes(x: Array) -> Axes:
    """Every axis but that of the features."""
    return tuple(range(-x.ndim, -1))


Sum = Literal["mean", "squares", "projection", "shift", "dweight", "dbias"]
"""The sums of a norm: over the features (BatchNorm: the rows) those of its statistics and of dx, over the rows those of its
parameters' gradients."""


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
    compute_dtype = FORMATS[storage_dtype].compute_dtype
    return Arithmetic(compute_dtype, compute_dtype)


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
class Running:
    """BatchNorm's running statistics after a batch, those before it, and the share of the new: m, and for the variance m·c."""

    mean: Array
    var: Array
    old_mean: Array
    old_var: Array
    share: float
    var_share: float


Passed = Callable[[Array, Array], tuple[Array, Array]]
"""ds and dresidual_out, the gradients of a sum and of its copy that is returned -> dx and dresidual."""


def both_summands(ds: Array, dresidual_out: Array) -> tuple[Array, Array]:
    """A sum passes its gradient on to both summands whole."""
    return ds + dresidual_out, ds + dresidual_out


@dataclass(frozen=True)
class Summed:
    """What a norm of a sum returns besides: the sum as it was before any rounding, and what becomes of the gradients.

    `stored`: whether the norm reads the sum as it is stored, and so without an error.
    """

    residual_out: Array
    dresidual_out: Array
    stored: bool
    passed: Passed = both_summands


@dataclass(frozen=True)
class NormValues:
    """Everything of one norm; `w` is the effective weight, offset included; `centred` tells RMSNorm from the others.

    `axes` are those that the statistics are taken over. `given` is the mean where they are not taken but given, as BatchNorm's
    are in evaluation; `running` is what becomes of them in training. Where a residual was added, x is the sum that the norm
    reads, dx its gradient through the norm alone, and `summed` all else.
    """

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
    axes: Axes = FEATURES
    given: Array | None = None
    running: Running | None = None
    summed: Summed | None = None

    def output(self, name: str) -> Array:
        """An output by its name, exactly."""
        if self.summed and name in ("dx", "dresidual"):
            return self.summed.passed(self.dx, self.summed.dresidual_out)[name == "dresidual"]
        return self.summed.residual_out if self.summed and name == "residual_out" else getattr(self, name)

    @property
    def reads_storage(self) -> bool:
        """Whether what the norm reads is exact in a storage dtype, and no sum that carries an error of its own."""
        return self.summed is None or self.summed.stored

    def mean(self, a: Array) -> Array:
        """The mean over the axes of the statistics; they are kept."""
        return mean(a, self.axes)

    @property
    def count(self) -> int:
        """Of how many elements a statistic is; none where it is given."""
        return 0 if self.given is not None else prod(self.x.shape[axis] for axis in self.axes)

    @property
    def running_mean(self) -> Array:
        """BatchNorm's running mean after the batch."""
        assert self.running
        return self.running.mean

    @property
    def running_var(self) -> Array:
        """BatchNorm's running variance after the batch."""
        assert self.running
        return self.running.var


def true_pullback(
    w: Array, x_hat: Array, rstd: Array, *, centred: bool, axes: Axes = FEATURES, given: bool = False
) -> Pullback:
    """dx = r·g − r·c1 − r·x_hat·c2, dweight = Σ dy·x_hat; where the statistics are given, dx = r·g."""

    def dx_paths(g: Array) -> tuple[Array, Array, Array]:
        none = np.zeros_like(g)
        if given:
            return rstd * g, none, none
        c1 = mean(g, axes) if centred else none
        return rstd * g, -rstd * c1, -rstd * x_hat * mean(g * x_hat, axes)

    return Pullback(w, dx_paths, x_hat)


def row_norm_values(
    x: Array,
    dy: Array,
    weight: Array,
    bias: Array,
    *,
    centred: bool,
    eps: float,
    offset: float,
    arithmetic: Arithmetic,
) -> tuple[NormValues, dict[str, Array]]:
    """The exact values of RMSNorm, or of LayerNorm if it is centred, and its intermediates by name."""
    if centred:
        y, mean, rstd, x_hat = reference.layer_norm(x, weight, bias, eps=eps, weight_offset=offset)
        dx, dweight, dbias = reference.layer_norm_vjp(dy, x, weight, bias, eps=eps, weight_offset=offset)
        intermediates = {"mean": mean, "rstd": rstd, "x_hat": x_hat}
    else:
        y, rstd, x_hat = reference.rms_norm(x, weight, eps=eps, weight_offset=offset)
        dx, dweight = reference.rms_norm_vjp(dy, x, weight, eps=eps, weight_offset=offset)
        bias = dbias = np.zeros_like(weight)
        intermediates = {"rstd": rstd, "x_hat": x_hat}
    assert dweight is not None  # both were given
    assert dbias is not None
    w = weight + offset
    pullback = true_pullback(w, x_hat, rstd, centred=centred)
    return NormValues(x, dy, w, bias, x_hat, rstd, y, dx, dweight, dbias, centred, pullback, arithmetic), intermediates
