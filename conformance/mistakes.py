"""The catalogue: a mistake is the golden with exactly one thing altered.

The altered golden has intervals of its own, made by the same budgets and placements as the true one's. So the catalogue
proves that the kit rejects what people really do, and it is the dictionary of a diagnosis: a port whose numbers lie in the
intervals of an altered golden has made that mistake.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import log2
from typing import Literal, get_args

import ml_dtypes
import numpy as np

from conformance.cases import OPS, Case, Op
from conformance.dialects import Dialect
from conformance.golden import Expected, exact_inputs, expected_outputs, golden
from conformance.rounding import NUMPY_DTYPES, round_to
from conformance.values import NormValues, Pullback, mean, sum_rows

Array = np.ndarray
Backward = Literal["autograd", "formula"]
BACKWARDS: tuple[Backward, ...] = get_args(Backward)


@dataclass(frozen=True)
class Norm:
    """A norm laid open for alteration: the true one, until a field is replaced.

    `centre_statistics` and `centre_values`: whether the row's mean is taken off before it is squared, and off what is scaled.
    `rstd` is a function of the mean square and eps, `scale_dx` one of rstd; `projection` and `shift` scale the two terms that
    dx subtracts.
    """

    case: Case
    x: Array
    dy: Array
    weight: Array
    bias: Array
    eps: float
    offset: float
    centre_statistics: bool
    centre_values: bool
    dialect: Dialect

    row_mean: Callable[[Array], Array] = mean
    mean_square: Callable[[Array], Array] = lambda centred: mean(np.square(centred))
    rstd: Callable[[Array, float], Array] = lambda mean_square, eps: (mean_square + eps) ** -0.5
    effective_weight: Callable[[Array, float], Array] = lambda weight, offset: weight + offset
    effective_bias: Callable[[Array, Array], Array] = lambda bias, w: bias
    backward_weight: Callable[[Array], Array] = lambda w: w
    projection: float = 1.0
    shift: float = 1.0
    scale_dx: Callable[[Array], Array | float] = lambda rstd: 1.0
    multiplicand: Callable[[Array, Array], Array] = lambda x_hat, x: x_hat
    sum_weight_rows: Callable[[Array], Array] = sum_rows
    sum_bias_rows: Callable[[Array], Array] = sum_rows

    def values(self, backward: Backward) -> NormValues:
        """Evaluate it forward, then backward as autograd of that forward, or by the true formula on its rstd and x_hat."""
        row_mean = self.row_mean(self.x)
        centred = self.x - row_mean if self.centre_statistics else self.x
        shifted = self.x - row_mean if self.centre_values else self.x
        mean_square = self.mean_square(centred)
        rstd = np.real(self.rstd(mean_square + 0j, self.eps))
        x_hat = shifted * rstd
        w = self.effective_weight(self.weight, self.offset)
        bias = self.effective_bias(self.bias, w)

        step = 1e-20 * mean_square + 1e-290  # of the complex step that differentiates rstd
        slope = np.imag(self.rstd(mean_square + 1j * step, self.eps)) / step
        divisor = self.mean_square(np.ones_like(centred))  # 1, unless the mistake is in the divisor

        def dx_paths(g: Array) -> tuple[Array, Array, Array]:
            if backward == "autograd":
                through_rstd = -2 * divisor * slope * centred * mean(g * shifted)
            else:
                through_rstd = rstd * x_hat * mean(g * x_hat)
            through_mean = self.shift * mean(rstd * g) if self.centre_values else np.zeros_like(rstd)
            scale = self.scale_dx(rstd)
            return scale * rstd * g, -scale * through_mean, -scale * self.projection * through_rstd

        pullback = Pullback(self.backward_weight(w), dx_paths, self.multiplicand(x_hat, self.x), self.sum_weight_rows)
        return NormValues(
            x=self.x,
            dy=self.dy,
            w=w,
            bias=bias,
            x_hat=x_hat,
            rstd=rstd,
            y=w * x_hat + bias,
            dx=sum(dx_paths(self.dy * pullback.w), np.zeros_like(self.x)),
            dweight=self.sum_weight_rows(self.dy * pullback.multiplicand),
            dbias=self.sum_bias_rows(self.dy),
            centred=self.centre_values,
            pullback=pullback,
        )


@dataclass(frozen=True)
class Mistake:
    """One thing done wrong: an id, the sentence that a report says, and what it alters in which ops."""

    id: str
    sentence: str
    alter: Callable[[Norm], Norm]
    ops: tuple[Op, ...] = OPS

    @cache  # noqa: B019 - the catalogue lives as long as the program
    def outputs(self, case: Case, seed: int = 0, backward: Backward = "autograd") -> dict[str, Expected]:
        """What the case would expect if this were right."""
        x, dy, weight, bias = exact_inputs(golden(case, seed).inputs)
        centred = case.op == "layer_norm"
        true = Norm(case, x, dy, weight, bias, case.eps, case.dialect.weight_offset, centred, centred, case.dialect)
        altered = self.alter(true)
        with np.errstate(all="ignore"):
            return expected_outputs(case, altered.values(backward), altered.dialect)


def _other_order(norm: Norm) -> Norm:
    orders = {"cast_then_scale": "scale_then_cast", "scale_then_cast": "cast_then_scale", "either_order": "either_order"}
    return replace(norm, dialect=replace(norm.dialect, order=orders[norm.dialect.order]))


def _hard_coded(eps: float) -> Mistake:
    return Mistake(f"eps_{eps:g}", f"eps is hard-coded at {eps:g}", lambda norm: replace(norm, eps=eps))


def _divisor(divisor: Callable[[int], float]) -> Callable[[Norm], Norm]:
    """The squares are summed over the n features and divided by another number."""
    return lambda norm: replace(
        norm,
        mean_square=lambda centred: np.sum(np.square(centred), axis=-1, keepdims=True) / divisor(centred.shape[-1]),
    )


def _rounded_in_storage(norm: Norm, a: Array) -> Array:
    """Rounded to x's dtype, as a factor: the slope that a complex step sees is kept, as autograd keeps it."""
    real = np.real(a)
    usual = np.isfinite(real) & (real != 0)
    return np.where(usual, a * (round_to(real, norm.case.dtype) / np.where(usual, real, 1)), a)


def _padded_width(n: int) -> float:
    return 2.0 ** np.ceil(log2(n))


def _without_last_row(a: Array) -> Array:
    return a.reshape(-1, a.shape[-1])[:-1].sum(axis=0)


def _first_batch(a: Array) -> Array:
    return sum_rows(a[(slice(0, 1),) * (a.ndim - 2)])


def _mean_rows(a: Array) -> Array:
    return sum_rows(a) / max(1, a.size // a.shape[-1])


RMS: tuple[Op, ...] = ("rms_norm",)
LAYER: tuple[Op, ...] = ("layer_norm",)

MISTAKES = (
    # eps
    Mistake(
        "eps_outside_root",
        "eps is added to the root, not under it",
        lambda norm: replace(norm, rstd=lambda mean_square, eps: 1 / (mean_square**0.5 + eps)),
    ),
    Mistake("eps_missing", "eps is left out", lambda norm: replace(norm, eps=0.0)),
    Mistake("eps_twice", "eps is added twice", lambda norm: replace(norm, eps=2 * norm.eps)),
    Mistake("eps_squared", "eps is squared before it is added", lambda norm: replace(norm, eps=norm.eps**2)),
    Mistake(
        "eps_in_the_sum",
        "eps joins the sum of squares, before it is divided by the width",
        lambda norm: replace(norm, eps=norm.eps / norm.x.shape[-1]),
    ),
    Mistake(
        "eps_clamps",
        "eps is the least that the mean square may be, not added to it",
        lambda norm: replace(norm, rstd=lambda ms, eps: np.where(np.real(ms) > eps, ms, eps) ** -0.5),
    ),
    _hard_coded(1e-5),
    _hard_coded(1e-6),
    _hard_coded(1e-8),
    _hard_coded(1e-12),
    Mistake(
        "eps_of_storage_dtype",
        "eps is the machine epsilon of x's dtype",
        lambda norm: replace(norm, eps=float(ml_dtypes.finfo(NUMPY_DTYPES[norm.case.dtype]).eps)),
    ),
    Mistake(
        "eps_of_float32",
        "eps is the machine epsilon of float32",
        lambda norm: replace(norm, eps=float(np.finfo(np.float32).eps)),
    ),
    Mistake(
        "eps_in_storage_dtype",
        "eps is rounded to x's dtype, where it may be zero",
        lambda norm: replace(norm, eps=float(round_to(np.array(norm.eps), norm.case.dtype))),
    ),
    # statistics
    Mistake("divides_by_n_minus_1", "the mean square is divided by n - 1", _divisor(lambda n: n - 1)),
    Mistake("sum_for_mean", "the squares are summed and not divided by the width", _divisor(lambda n: 1.0)),
    Mistake("padded_width", "the width is padded to a power of two in the divisor", _divisor(_padded_width)),
    Mistake(
        "variance_for_mean_square",
        "the mean is taken off before squaring: a variance where a mean square belongs",
        lambda norm: replace(norm, centre_statistics=True),
        RMS,
    ),
    Mistake(
        "layer_norm_for_rms_norm",
        "the row is centred: this is LayerNorm",
        lambda norm: replace(norm, centre_statistics=True, centre_values=True),
        RMS,
    ),
    Mistake(
        "not_centred",
        "the row is not centred: this is RMSNorm",
        lambda norm: replace(norm, centre_statistics=False, centre_values=False),
        LAYER,
    ),
    Mistake(
        "mean_square_for_variance",
        "the mean is not taken off before squaring",
        lambda norm: replace(norm, centre_statistics=False),
        LAYER,
    ),
    Mistake(
        "mean_left_in_values",
        "the mean is not taken off what is scaled",
        lambda norm: replace(norm, centre_values=False),
        LAYER,
    ),
    Mistake(
        "statistics_over_all_rows",
        "the statistics are taken over all rows together",
        lambda norm: replace(
            norm,
            row_mean=lambda x: np.sum(x, keepdims=True) / max(1, x.size),
            mean_square=lambda centred: np.sum(np.square(centred), keepdims=True) / max(1, centred.size),
        ),
    ),
    Mistake(
        "divides_by_mean_square",
        "the root is missing: the row is divided by its mean square",
        lambda norm: replace(norm, rstd=lambda ms, eps: 1 / (ms + eps)),
    ),
    Mistake(
        "multiplies_by_root",
        "the row is multiplied by the root, not divided",
        lambda norm: replace(norm, rstd=lambda ms, eps: (ms + eps) ** 0.5),
    ),
    Mistake(
        "squares_in_float16",
        "the squares are taken in float16, where they overflow",
        lambda norm: replace(norm, mean_square=lambda centred: mean(round_to(np.square(centred), "float16"))),
    ),
    Mistake(
        "squares_in_storage_dtype",
        "the squares are rounded to x's dtype",
        lambda norm: replace(norm, mean_square=lambda centred: mean(_rounded_in_storage(norm, np.square(centred)))),
    ),
    Mistake(
        "rstd_in_storage_dtype",
        "rstd is rounded to x's dtype",
        lambda norm: replace(norm, rstd=lambda ms, eps: _rounded_in_storage(norm, (ms + eps) ** -0.5)),
    ),
    # weight and bias
    Mistake("other_order", "the cast stands on the other side of the weight", _other_order),
    Mistake(
        "weight_missing", "the weight is left out", lambda norm: replace(norm, effective_weight=lambda w, _: np.ones_like(w))
    ),
    Mistake(
        "weight_twice", "the weight is applied twice", lambda norm: replace(norm, effective_weight=lambda w, o: (w + o) ** 2)
    ),
    Mistake("offset_missing", "one is not added to the weight", lambda norm: replace(norm, offset=0.0)),
    Mistake("offset_unasked", "one is added to a weight that is stored whole", lambda norm: replace(norm, offset=1.0)),
    Mistake("offset_twice", "one is added to the weight twice", lambda norm: replace(norm, offset=2 * norm.offset)),
    Mistake(
        "weight_in_storage_dtype",
        "one plus weight, or a float32 weight, is rounded to x's dtype before it multiplies",
        lambda norm: replace(norm, effective_weight=lambda w, o: _rounded_in_storage(norm, w + o)),
    ),
    Mistake("bias_missing", "the bias is left out", lambda norm: replace(norm, effective_bias=lambda bias, w: 0 * bias), LAYER),
    Mistake(
        "bias_scaled",
        "the bias is added before the weight multiplies",
        lambda norm: replace(norm, effective_bias=lambda bias, w: w * bias),
        LAYER,
    ),
    # gradients
    Mistake("projection_missing", "dx lacks the projection on x_hat", lambda norm: replace(norm, projection=0.0)),
    Mistake("projection_twice", "dx subtracts the projection on x_hat twice", lambda norm: replace(norm, projection=2.0)),
    Mistake("shift_missing", "dx lacks the mean of g", lambda norm: replace(norm, shift=0.0), LAYER),
    Mistake("shift_twice", "dx subtracts the mean of g twice", lambda norm: replace(norm, shift=2.0), LAYER),
    Mistake(
        "statistics_held_constant",
        "dx treats the statistics as constants: it is only rstd·g",
        lambda norm: replace(norm, projection=0.0, shift=0.0),
    ),
    Mistake("dx_without_weight", "dx leaves the weight out", lambda norm: replace(norm, backward_weight=np.ones_like)),
    Mistake("dx_without_rstd", "dx is not multiplied by rstd", lambda norm: replace(norm, scale_dx=lambda rstd: 1 / rstd)),
    Mistake("dx_twice", "dx is accumulated twice", lambda norm: replace(norm, scale_dx=lambda rstd: 2.0)),
    Mistake(
        "dweight_of_x",
        "dweight sums dy·x, not dy·x_hat",
        lambda norm: replace(norm, multiplicand=lambda x_hat, x: x),
    ),
    Mistake(
        "dweight_zero",
        "dweight is not computed",
        lambda norm: replace(norm, sum_weight_rows=lambda terms: 0 * sum_rows(terms)),
    ),
    Mistake(
        "dweight_mean",
        "dweight is a mean over the rows, not a sum",
        lambda norm: replace(norm, sum_weight_rows=_mean_rows),
    ),
    Mistake(
        "dweight_without_last_row",
        "dweight leaves out the last row",
        lambda norm: replace(norm, sum_weight_rows=_without_last_row),
    ),
    Mistake(
        "dweight_of_first_batch",
        "dweight is summed over the rows of the first batch entry only",
        lambda norm: replace(norm, sum_weight_rows=_first_batch),
    ),
    Mistake(
        "dbias_mean",
        "dbias is a mean over the rows, not a sum",
        lambda norm: replace(norm, sum_bias_rows=_mean_rows),
        LAYER,
    ),
    Mistake(
        "dbias_weighted",
        "dbias sums g, not dy",
        lambda norm: replace(norm, sum_bias_rows=lambda dy: sum_rows(dy * (norm.weight + norm.offset))),
        LAYER,
    ),
    Mistake(
        "dbias_without_last_row",
        "dbias leaves out the last row",
        lambda norm: replace(norm, sum_bias_rows=_without_last_row),
        LAYER,
    ),
)
