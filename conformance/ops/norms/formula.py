"""A norm's formula: every step of the golden under a name of its own, so that one of them can be altered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from conformance.numbers.rounding import Rounding, RoundingMode, round_to, significant_bits
from conformance.ops.norms.cases import NormCase
from conformance.ops.norms.quantising import Quantising
from conformance.ops.norms.stages import Added, Gated, around
from conformance.ops.norms.steps import NOTHING, Batch, Paths, Precision, Step, Steps
from conformance.ops.norms.values import (
    FEATURES,
    Arithmetic,
    Axes,
    NormValues,
    Pullback,
    Running,
    Stage,
    Sum,
    joined,
    split,
)
from conformance.ops.op import Backward
from conformance.question.dialects import Dialect

Array = np.ndarray
MANY = 1e100  # a slope this steep is a root's at zero


def _squares(s: Steps) -> tuple[Array, Array]:
    return np.square(s.centred), 2 * s.centred


def _unchanged(s: Steps) -> Steps:
    return s


def _projected(s: Steps) -> Array:
    return s.g * s.x_hat


@dataclass(frozen=True)
class Formula:
    """A norm's formula, step by step: the true one, until a field is replaced.

    A field is a number, a choice, or a function of the steps so far. `rounded` says which steps are rounded,
    `arithmetic` says in which precision sums are added up, and what noise all else has. Evaluated exactly, a sum
    of low precision has its exact value, and wide intervals around it.
    """

    case: NormCase
    seed: int
    x: Array
    dy: Array
    weight: Array
    bias: Array
    dialect: Dialect
    eps: float
    offset: float
    centre_statistics: bool
    centre_values: bool
    arithmetic: Arithmetic
    batch: Batch | None = None
    added: Added | None = None
    quantising: Quantising | None = None
    gated: Gated | None = None

    # the statistics
    read: Callable[[Array], Array] = lambda x: x
    axes: Axes = FEATURES
    group: int | None = None  # so many features together have statistics of their own; None: the whole row
    sums: Mapping[Sum, Callable[[Array], Array]] = field(default_factory=lambda: NOTHING)  # if otherwise taken
    summed: Callable[[Array], Array] = lambda x: x  # what is averaged for the mean
    mean_divisor: Callable[[int], float] = float
    divisor: Callable[[int], float] = float
    squares: Callable[[Steps], tuple[Array, Array]] = _squares  # what is averaged, and its derivative
    of_rows: Callable[[Array], Array] = lambda statistic: statistic  # which row's statistic a row is given
    row_eps: Callable[[float, Steps], Array | float] = lambda eps, s: eps
    rstd: Callable[[Array, Array | float], Array] = lambda mean_square, eps: (mean_square + eps) ** -0.5

    # weight, bias, y
    parameters: Callable[[Array, Array, float], tuple[Array, Array]] = lambda weight, bias, offset: (weight + offset, bias)
    written: Callable[[Array], Array | float] = lambda x: 1.0  # 0 where y is never written

    # the gradients
    saved: Callable[[Steps], Steps] = _unchanged
    cotangent: Callable[[Array], Array] = lambda dy: dy
    backward_weight: Callable[[Steps], Array] = lambda s: s.w
    projected: Callable[[Steps], Array] = _projected
    shift: Callable[[Steps], Array] = lambda s: s.g
    paths: Callable[[Steps, Array, Array, Array], Paths] = lambda s, direct, through_mean, through_rstd: (
        direct,
        through_mean,
        through_rstd,
    )
    multiplicand: Callable[[Steps], Array] = lambda s: s.x_hat
    bias_terms: Callable[[Steps], Array] = lambda s: s.dy
    weight_rows: Callable[[Array], Array] = lambda terms: terms
    bias_rows: Callable[[Array], Array] = lambda terms: terms

    # precision and dtypes
    rounded: Mapping[Step, Precision] = field(default_factory=lambda: NOTHING)
    output_dtypes: Callable[[dict[str, str]], dict[str, str]] = lambda dtypes: dtypes
    output_modes: Mapping[str, RoundingMode] = field(default_factory=lambda: NOTHING)  # of the last rounding, if not to nearest
    factors: Mapping[str, float] = field(default_factory=lambda: NOTHING)  # of an output, before its last rounding
    noisy: bool = False  # evaluated as an implementation would, rounding errors and all, not exactly
    sequence: Callable[[int], Array] | None = None  # the order in which k terms are added up one by one; None: pairwise

    @property
    def before(self) -> Added | Gated | None:
        """What stands before the norm."""
        return around(self.added, self.gated)[0]

    @property
    def after(self) -> Gated | None:
        """What stands after it."""
        return around(self.added, self.gated)[1]

    @property
    def input(self) -> Array:
        """What is normalised: x, or what stands before the norm makes of it, [*batch, d]."""
        return self.before.input(self.x) if self.before else self.x

    def evaluate(self, backward: Backward) -> NormValues:
        """Evaluate it forward, then backward as autograd of that forward, or by the true formula on what was saved.

        In the precision of x, dy, weight and bias: float64 is exact enough to be a golden, float32 is what a port does.
        """
        forward, running, slope, gradient = self._forward()
        by_formula = backward == "formula" or self.saved is not _unchanged or self.projected is not _projected
        dy = self.cotangent(self.dy)
        dz, dz_of_weight = self.after.cotangents(dy, forward.y) if self.after else (dy, dy)
        s = replace(self.saved(forward), dy=dz)
        features, axes, none = self._count(s.x), self._axes(s.x), np.zeros_like(s.x)
        given = self.batch is not None and not self.batch.training

        def dx_paths(g: Array) -> Paths:
            b = replace(s, g=g)
            if given:
                return self.paths(b, s.rstd * g, none, none)
            if by_formula:
                through_rstd = -s.rstd * s.x_hat * self._sum("projection", self.projected(b)) / features
            else:
                through_rstd = slope * self._sum("projection", g * s.shifted) / self.divisor(features) * gradient
            through_mean = none
            if self.centre_values:
                count = features if by_formula else self.mean_divisor(features)
                through_mean = -s.rstd * self._sum("shift", self.shift(b)) / count + np.zeros_like(g)
            return self.paths(b, s.rstd * g, through_mean, through_rstd)

        s = replace(s, g=s.dy * self.backward_weight(s))
        db = self._sum_rows("dbias", self.bias_rows(self.bias_terms(s)))

        def parameter_gradients(terms: Array) -> tuple[Array, Array]:
            dw = self._sum_rows("dweight", self.weight_rows(terms))
            dweight, dbias = self._through_parameters(dw, db) if backward == "autograd" else (dw, db)
            return self._rounded("dweight", dweight), self._rounded("dbias", dbias)

        multiplicand = self.multiplicand(s) + np.zeros_like(s.x)
        dweight, dbias = parameter_gradients(self._rounded("dy_x_hat", dz_of_weight * multiplicand))
        written = self.written(s.x)
        return NormValues(
            x=s.x,
            dy=s.dy,
            w=forward.w * written,
            bias=forward.b * written,
            x_hat=forward.x_hat,
            rstd=forward.rstd,
            y=forward.y,
            dx=sum(dx_paths(s.g), np.zeros_like(self.x)),
            dweight=dweight,
            dbias=dbias,
            centred=self.centre_values,
            pullback=Pullback(
                self.backward_weight(s), dx_paths, multiplicand, lambda terms: parameter_gradients(terms)[0], dz_of_weight
            ),
            arithmetic=self.arithmetic,
            axes=axes,
            given=forward.row_mean if given else None,
            running=running,
            group=self._group(s.x),
            before=self.before.before(self.x) if self.before else None,
            after=self._stored(self.after.after(dy)) if self.after else None,
        )

    def _stored(self, stage: Stage) -> Stage:
        """What stands after the norm, with y rounded as the formula says."""
        y = stage.made["y"]
        return replace(stage, made={**stage.made, "y": replace(y, of=lambda z: self._rounded("y", y.of(z)))})

    def _forward(self) -> tuple[Steps, Running | None, Array, Array]:
        """The steps, the running statistics after them, d rstd / d mean square, and n times d mean square / d x."""
        x = self._rounded("x", self.read(self.input))
        n, none = self._count(x), np.zeros_like(x)
        batch_mean = self._rounded("mean", self.of_rows(self._sum("mean", self.summed(x)) / self.mean_divisor(n)))
        given = self.batch if self.batch and not self.batch.training else None
        row_mean = given.mean if given else batch_mean
        centred = self._rounded("centred", x - row_mean) if self.centre_statistics else x
        shifted = self._rounded("centred", x - row_mean) if self.centre_values else x
        s = Steps(x, self.dy, row_mean, centred, shifted, none, none, none, none, none, none, none)

        squares, gradient = self.squares(s)
        mean_square = self._sum("squares", self._rounded("squares", squares)) / self.divisor(n)
        if self.arithmetic.one_pass and self.noisy:
            mean_square = self._sum("squares", np.square(x)) / n - np.square(row_mean)
        mean_square = self._rounded("mean_square", self.of_rows(mean_square))
        running = None
        if self.batch and self.batch.updates:
            mean, var = (self.batch.statistic(each, x.shape[-1]) for each in (batch_mean, mean_square))
            running = self.batch.running(mean, var, max(1, x.size // x.shape[-1]), self.eps)
        mean_square = given.var if given else mean_square
        eps = self.row_eps(self.eps, s)
        rstd = self._rounded("rstd", np.real(self.rstd(mean_square.astype(np.complex128), eps)).astype(x.dtype))
        x_hat = self._rounded("x_hat", shifted * rstd)

        w, b = self.parameters(self._rounded("weight", self.weight), self.bias, self.offset)
        w, b = self._rounded("weight", w), self._rounded("bias", b + np.zeros_like(w))
        b = b + self.added.after(self.added.residual) if self.added else b
        y = self._rounded("normed", (w * x_hat + b) * self.written(x))
        y = y if self.after else self._rounded("y", y)

        step = 1e-20 * mean_square.astype(np.float64) + 1e-290  # of the complex step that differentiates rstd
        slope = np.imag(self.rstd(mean_square + 1j * step, eps)) / step
        slope = np.where(np.abs(slope) > MANY, -np.inf, slope).astype(x.dtype)
        s = replace(s, mean_square=mean_square, rstd=rstd, x_hat=x_hat, w=w, b=b, y=y)
        return s, running, slope, gradient

    def _through_parameters(self, dw: Array, db: Array) -> tuple[Array, Array]:
        """The gradients of w and b, as autograd carries them on to weight and bias."""
        step = 1e-30j
        w_of_weight, b_of_weight = self.parameters(self.weight + step, self.bias + 0j, self.offset)
        w_of_bias, b_of_bias = self.parameters(self.weight + 0j, self.bias + step, self.offset)
        slopes = [np.imag(a + np.zeros_like(dw)) / 1e-30 for a in (w_of_weight, b_of_weight, w_of_bias, b_of_bias)]
        (ww, bw, wb, bb), dtype = slopes, dw.dtype
        return _times(dw, ww, db, bw).astype(dtype), _times(dw, wb, db, bb).astype(dtype)

    def _count(self, x: Array) -> int:
        return self._group(x) or max(1, int(np.prod([x.shape[axis] for axis in self._axes(x)])))

    def _group(self, x: Array) -> int | None:
        return self.group if self._axes(x) == FEATURES else None

    def _axes(self, x: Array) -> Axes:
        return tuple(axis for axis in self.axes if axis >= -x.ndim) or FEATURES

    def _rounded(self, step: Step, a: Array) -> Array:
        return self._round(a, self.rounded[step]) if step in self.rounded else a

    def _round(self, a: Array, precision: Precision) -> Array:
        exact = a.astype(np.float64)
        if isinstance(precision, int):
            return significant_bits(exact, precision).astype(a.dtype)
        rounding = precision if isinstance(precision, Rounding) else Rounding(precision)
        dtype = self.case.dtype if rounding.dtype == "storage" else rounding.dtype
        return round_to(exact, dtype, rounding.mode).astype(a.dtype)

    def _sum(self, name: Sum, terms: Array) -> Array:
        """The sum over the axes of the statistics, which are kept, or for every feature that over its group."""
        if group := self._group(terms):
            return joined(replace(self, group=None)._sum(name, split(terms, group)), group)
        if name in self.sums:
            return self.sums[name](terms)
        axes = self._axes(terms)
        if not self.noisy:
            return np.sum(terms, axis=axes, keepdims=True)
        moved = np.moveaxis(terms, axes, range(len(axes)))
        summed, kept = moved.shape[: len(axes)], moved.shape[len(axes) :]
        return np.expand_dims(self._add_up(name, moved.reshape(prod(summed), *kept)), axes)

    def _sum_rows(self, name: Sum, terms: Array) -> Array:
        return self._add_up(name, terms.reshape(-1, terms.shape[-1]))

    def _add_up(self, name: Sum, terms: Array) -> Array:
        """The sum over the first axis: pairwise, one by one, or one by one with an accumulator of low precision."""
        accumulator = self.arithmetic.sums.get(name) if self.noisy else None
        if self.sequence is None and accumulator is None:
            return np.sum(terms, axis=0)
        terms = terms if self.sequence is None else terms[self.sequence(len(terms))]
        total = np.zeros(terms.shape[1:], terms.dtype)
        for term in terms:
            total = total + term if accumulator is None else self._round(total + term, accumulator)
        return total


def _times(a: Array, slope_a: Array, b: Array, slope_b: Array) -> Array:
    """a·slope_a + b·slope_b, where a slope of zero keeps even a NaN out."""
    return np.where(slope_a == 0, 0, a * slope_a) + np.where(slope_b == 0, 0, b * slope_b)
