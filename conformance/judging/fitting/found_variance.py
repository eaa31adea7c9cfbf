"""A variance in one pass, found in the numbers: each row has one of its own, off by what E[x²] − E[x]² loses of the mean.

How much a row's variance loses depends on the order of its sums, which nobody knows: so it is read off y, row by row.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from conformance.judging.fitting.found_eps import LARGEST, line_of_y
from conformance.judging.fitting.found_factor import Unit
from conformance.mistakes.mistake import Mistake, Of
from conformance.mistakes.norms import arithmetic
from conformance.numbers.rounding import FORMATS, ulp
from conformance.ops.golden import golden
from conformance.ops.norms.anatomy import Norm, true_norm

Array = np.ndarray

SHARE = 0.9  # of the rows that are off must be off by no more than one pass explains; noise may tip the others
ONE_PASS = next(mistake for mistake in arithmetic.MISTAKES if mistake.id == "one_pass_variance")


@dataclass(frozen=True, slots=True)
class Read:
    """What y says of each row's variance in one case: how far it is off, and whether it is off, and by too much, at all.

    Where a row says nothing, its variance is taken for right.
    """

    off_by: Array
    is_off: Array
    is_beyond: Array


def found(units: Iterable[Unit], seed: int) -> Mistake | None:
    """The catalogue's mistake with the variances of a port's own rows; None where one pass does not explain them.

    `units` are the failing y of LayerNorm, in any dtype and dialect.
    """
    read = {case.id: _read((case, output), seed) for case, output in units if 0 < output.actual.size <= LARGEST}
    off = sum(int(np.sum(each.is_off)) for each in read.values())
    beyond = sum(int(np.sum(each.is_beyond)) for each in read.values())
    if not off or beyond > (1 - SHARE) * off:
        return None
    return replace(ONE_PASS, change={"rstd": Of(partial(_rstd, {id_: each.off_by for id_, each in read.items()}))}, found=True)


def _read(unit: Unit, seed: int) -> Read:
    r"""The errors of the rows' variances, from the scales s of their rstd, and the bound on them.

    $$ \delta = (v + \mathrm{eps}) (1/s^2 - 1), \qquad |\delta| \le n\, u\, E[x^2] $$
    """
    case, output = unit
    norm, known = true_norm(case, seed), golden(case, seed).intermediates
    with np.errstate(all="ignore"):
        scale, doubt = _scale(unit, seed)
        with_eps = known["rstd"] ** -2.0
        off_by = with_eps / np.square(scale) - with_eps
        doubtful = np.abs(with_eps / np.square(np.maximum(scale - doubt, 0.0)) - with_eps - off_by)
        mean_of_squares = np.mean(np.square(norm.input), axis=norm.axes, keepdims=True)
        bound = case.shape[-1] * FORMATS[case.dtype].compute.unit_roundoff * mean_of_squares
        tells = np.isfinite(scale) & (scale > doubt)
        is_negative = np.isnan(output.actual).all(axis=norm.axes, keepdims=True) & (with_eps < bound)
        is_off = (tells & (np.abs(off_by) > doubtful)) | is_negative
        is_beyond = is_off & ~is_negative & (np.abs(off_by) > bound + doubtful)
    return Read(np.where(is_off & ~is_beyond, off_by, 0.0), is_off, is_beyond)  # NaN where it is negative


def _scale(unit: Unit, seed: int) -> tuple[Array, Array]:
    """The scale of rstd in every row, and how far off it may be: each element bounds it, and it lies between all bounds.

    An element may be off by its last rounding, by that of x_hat where the weight multiplies last, and by honest noise. Where
    the bounds contradict each other the row tells nothing, and the scale is NaN.
    """
    case, output = unit
    norm, expected = true_norm(case, seed), golden(case, seed).outputs[output.output]
    line = line_of_y(norm, seed)
    roundings = 1.5 if case.dialect.order == "cast_then_scale" else 0.5  # ulps
    lower, upper = expected.interval()
    noise = (upper - lower) / 2 + roundings * ulp(output.actual, expected.dtype)
    at = (output.actual - line.fixed) / line.slope
    off = np.abs(noise / line.slope)
    least = np.fmax.reduce(at - off, axis=norm.axes, keepdims=True)
    most = np.fmin.reduce(at + off, axis=norm.axes, keepdims=True)
    return np.where(least <= most, (least + most) / 2, np.nan), (most - least) / 2


def _rstd(off_by: Mapping[str, Array], norm: Norm) -> Callable[[Array, Array | float], Array]:
    by = off_by.get(norm.case.id)
    return norm.rstd if by is None else lambda mean_square, eps: (mean_square + by + eps) ** -0.5
