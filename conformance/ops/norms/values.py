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


def mean(a: Array, axes: Axes = FEATURES, group: int | None = None) -> Array:
    """The mean over the features, or over other axes, which are kept; or for every feature that over its group, like `a`.

    That of nothing is zero.
    """
    if group is not None:
        return joined(mean(split(a, group)), group)
    return np.mean(a, axis=axes, keepdims=True) if a.size else np.sum(a, axis=axes, keepdims=True)


def split(a: Array, group: int) -> Array:
    """[*batch, d] as [*batch, groups, g]."""
    return a.reshape(*a.shape[:-1], a.shape[-1] // group, group)


def joined(a: Array, group: int) -> Array:
    """[*batch, groups, g], or one number a group, [*batch, groups, 1], as [*batch, d]."""
    whole = np.broadcast_to(a, (*a.shape[:-1], group))
    return whole.reshape(*a.shape[:-2], a.shape[-2] * group)


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
    centred), and the one through rstd; dweight is `sum_rows` of dy·`multiplicand`, where a mistake may have another `dy`.
    """

    w: Array
    dx_paths: Callable[[Array], tuple[Array, Array, Array]]
    multiplicand: Array
    sum_rows: Callable[[Array], Array] = sum_rows
    dy: Array | None = None


@dataclass(frozen=True)
class Running:
    """BatchNorm's running statistics after a batch, those before it, and the share of the new: m, and for the variance m·c."""

    mean: Array
    var: Array
    old_mean: Array
    old_var: Array
    share: float
    var_share: float


@dataclass(frozen=True)
class Made:
    """An output that is made of one of the norm's own, element by element; what multiplies that may be off by a `doubt`."""

    of: Callable[[Array], Array]
    doubt: Callable[[Array], Array | float] = lambda q: 0.0

    def size(self, q: Array) -> Array:
        """How far it may be off when it is made of an exact q, in units of v: by one rounding, and by the doubt."""
        return np.abs(self.of(q)) + self.doubt(q)


@dataclass(frozen=True)
class Stage:
    """What stands before a norm or after it, and is done element by element: a sum with a residual, a product with a gate.

    made
        The outputs that are made of the norm's dx, if it stands before; of its y, if it stands after.
    doubt
        How far off what the norm is given may be, in units of v: x, or dy. None where that is exact in a storage dtype.
    exact
        The outputs that depend on nothing of the norm.
    first
        What is added to dx, where autograd may begin with it.
    """

    made: Mapping[str, Made]
    doubt: Array | None = None
    exact: Mapping[str, Array] = field(default_factory=lambda: MappingProxyType({}))
    first: Array | None = None

    def outputs(self, q: Array) -> dict[str, Array]:
        """All of its outputs, exactly, made of the norm's exact q."""
        return {**{name: each.of(q) for name, each in self.made.items()}, **self.exact}


@dataclass(frozen=True)
class NormValues:
    """Everything of one norm; `w` is the effective weight, offset included; `centred` tells RMSNorm from the others.

    `axes` are those that the statistics are taken over. `given` is the mean where they are not taken but given, as BatchNorm's
    are in evaluation; `running` is what becomes of them in training. `group`: so many features have statistics of their own, if
    not the whole row. Where something stands `before` the norm or `after` it, x is what the norm reads, dx its gradient through
    the norm alone, y what the norm makes and dy the gradient of that.
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
    group: int | None = None
    before: Stage | None = None
    after: Stage | None = None

    def output(self, name: str) -> Array:
        """An output by its name, exactly."""
        for stage, q in ((self.before, self.dx), (self.after, self.y)):
            if stage and name in (outputs := stage.outputs(q)):
                return outputs[name]
        return getattr(self, name)

    @property
    def reads_storage(self) -> bool:
        """Whether what the norm reads is exact in a storage dtype, and carries no error of its own."""
        return self.before is None or self.before.doubt is None

    def mean(self, a: Array) -> Array:
        """The mean over the axes of the statistics, which are kept, or over every group."""
        return mean(a, self.axes, self.group)

    @property
    def count(self) -> int:
        """Of how many elements a statistic is; none where it is given."""
        return 0 if self.given is not None else self.group or prod(self.x.shape[axis] for axis in self.axes)

    @property
    def dy_of_weight(self) -> Array:
        """What multiplies x_hat in dweight: dy."""
        return self.dy if self.pullback.dy is None else self.pullback.dy

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
    w: Array,
    x_hat: Array,
    rstd: Array,
    *,
    centred: bool,
    axes: Axes = FEATURES,
    group: int | None = None,
    given: bool = False,
) -> Pullback:
    """dx = r·g − r·c1 − r·x_hat·c2, dweight = Σ dy·x_hat; where the statistics are given, dx = r·g."""

    def dx_paths(g: Array) -> tuple[Array, Array, Array]:
        none = np.zeros_like(g)
        if given:
            return rstd * g, none, none
        c1 = mean(g, axes, group) if centred else none
        return rstd * g, -rstd * c1, -rstd * x_hat * mean(g * x_hat, axes, group)

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
    group: int | None = None,
) -> tuple[NormValues, dict[str, Array]]:
    """The exact values of RMSNorm, or of LayerNorm if it is centred, and its intermediates by name."""
    if centred:
        y, mean, rstd, x_hat = reference.layer_norm(x, weight, bias, eps=eps, weight_offset=offset, group_size=group)
        dx, dweight, dbias = reference.layer_norm_vjp(dy, x, weight, bias, eps=eps, weight_offset=offset, group_size=group)
        intermediates = {"mean": mean, "rstd": rstd, "x_hat": x_hat}
    else:
        y, rstd, x_hat = reference.rms_norm(x, weight, eps=eps, weight_offset=offset, group_size=group)
        dx, dweight = reference.rms_norm_vjp(dy, x, weight, eps=eps, weight_offset=offset, group_size=group)
        bias = dbias = np.zeros_like(weight)
        intermediates = {"rstd": rstd, "x_hat": x_hat}
    assert dweight is not None  # both were given
    assert dbias is not None
    w = weight + offset
    rstd = rstd if group is None else np.repeat(rstd, group, axis=-1)  # one a feature
    pullback = true_pullback(w, x_hat, rstd, centred=centred, group=group)
    norm = NormValues(x, dy, w, bias, x_hat, rstd, y, dx, dweight, dbias, centred, pullback, arithmetic, group=group)
    return norm, intermediates
