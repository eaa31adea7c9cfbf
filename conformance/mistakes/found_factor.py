"""A factor that an output is off by, found in the numbers: a constant, or the same simple function of every case."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt

import numpy as np

from conformance.compare import OutputVerdict
from conformance.golden import golden
from conformance.mistakes.mistake import ALL_NORMS, Mistake
from conformance.norms.anatomy import Norm
from conformance.norms.cases import NormCase
from conformance.rounding import ulp

Array = np.ndarray
Unit = tuple[NormCase, OutputVerdict]
"""One output of one case."""

FEWEST = 12  # elements that a factor must be seen in
LARGEST = 10_000  # elements of an output that is looked at
SHARE = 0.98  # of an output's elements that a factor must explain
ERRORS = 4.0  # standard errors that a measured factor may be off
DIVISORS = (*range(2, 17), 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Factor:
    """A factor as a function of the case, its name in an id, and what it makes of an output, in words."""

    id: str
    words: str
    of: Callable[[NormCase], float]


@dataclass(frozen=True, slots=True)
class Measured:
    """The factor that an output is off by, and its standard error: infinite where the output tells nothing.

    `fits` is whether that one factor explains nearly all of its elements.
    """

    factor: float
    error: float
    size: int
    fits: bool

    def agrees(self, factor: float) -> bool:
        """Whether this may be the factor."""
        if self.error == np.inf:
            return True
        return self.fits and abs(self.factor - factor) <= ERRORS * self.error + 1e-13 * abs(factor)


def _times(id_: str, name: str, of: Callable[[NormCase], float]) -> tuple[Factor, Factor]:
    """A factor and its inverse."""
    return (
        Factor(f"times_{id_}", f"{name} times", of),
        Factor(f"over_{id_}", f"1/{name} of", lambda case: 1 / of(case)),
    )


def _width(case: NormCase) -> int:
    return case.shape[-1]


def _rows(case: NormCase) -> int:
    return max(1, prod(case.shape[:-1]))


def _unbiased(case: NormCase) -> float:
    return _width(case) / (_width(case) - 1) if _width(case) > 1 else np.inf


OF_THE_CASE: tuple[Factor, ...] = (
    Factor("times_n_over_n_minus_1", "n/(n - 1) times", _unbiased),
    Factor("times_n_minus_1_over_n", "(n - 1)/n times", lambda case: 1 / _unbiased(case)),
    *_times("rows", "rows", _rows),
    *_times("n", "n", _width),
    *_times("root_of_n", "sqrt(n)", lambda case: sqrt(_width(case))),
    *_times("root_of_rows", "sqrt(rows)", lambda case: sqrt(_rows(case))),
    *_times("batch", "the first axis", lambda case: case.shape[0] or 1),
)


def constant(k: float) -> Factor:
    """The same factor in every case."""
    size = abs(k)
    sign, minus = ("-", "minus_") if k < 0 else ("", "")
    for divisor in DIVISORS:
        if size == 1 / divisor:
            return Factor(f"times_{minus}{size:g}", f"{sign}1/{divisor} of", lambda case: k)
    return Factor(f"times_{minus}{size:.4g}", f"{sign}{size:.4g} times", lambda case: k)


def measure(unit: Unit, seed: int) -> Measured:
    """The factor by least squares, every element weighted by what honest arithmetic may make of it."""
    case, output = unit
    expected = golden(case, seed).outputs[output.output]
    nothing = Measured(1.0, np.inf, 0, False)
    if output.actual.size > LARGEST:
        return nothing
    lower, upper = expected.interval()
    value, actual = np.broadcast_to(expected.value, output.actual.shape), output.actual
    with np.errstate(all="ignore"):
        half_width = (upper - lower) / 2
        noise = half_width + ulp(value, expected.dtype)
        usable = np.isfinite(actual) & np.isfinite(value) & np.isfinite(noise) & (value != 0)
        value, actual, half_width, noise = value[usable], actual[usable], half_width[usable], noise[usable]
        square = float(np.sum(np.square(value / noise)))
        if not square:
            return nothing
        factor = float(np.sum(actual / noise * (value / noise))) / square
        error = 1 / sqrt(square)
        allowed = abs(factor) * half_width + ulp(factor * value, expected.dtype) + ERRORS * error * np.abs(value)
        fits = float(np.mean(np.abs(actual - factor * value) <= allowed)) >= SHARE
    return Measured(factor, error, value.size, fits)


def candidates(measured: Sequence[Measured], cases: Sequence[NormCase]) -> list[Factor]:
    """The factors that all outputs of a group agree with, the likeliest first: a plain number, a function, any number."""
    telling = [each for each in measured if each.error < np.inf]
    if sum(each.size for each in telling) < FEWEST:
        return []
    weights = np.array([each.error**-2 for each in telling])
    mean = float(np.average([each.factor for each in telling], weights=weights))
    error = float(np.sum(weights)) ** -0.5
    plain = [k for d in DIVISORS for size in (d, 1 / d) for k in (size, -size) if abs(k - mean) <= ERRORS * error]
    likely = [*map(constant, plain), *OF_THE_CASE]
    if min(abs(mean), abs(mean - 1)) > ERRORS * error:
        likely.append(constant(mean))
    if abs(mean + 1) <= ERRORS * error:
        likely.insert(0, constant(-1.0))
    return [factor for factor in likely if all_agree(factor, measured, cases)]


def all_agree(factor: Factor, measured: Sequence[Measured], cases: Sequence[NormCase]) -> bool:
    """Whether a factor is that of every output, and of some of them not one."""
    factors = [factor.of(case) for case in cases]
    told = [not one.agrees(1.0) for one in measured]
    return any(told) and all(one.agrees(k) for one, k in zip(measured, factors, strict=True) if np.isfinite(k))


def as_mistake(factor: Factor, outputs: tuple[str, ...]) -> Mistake:
    """The golden with these outputs so many times as large."""

    def alter(norm: Norm) -> Norm:
        return replace(norm, factors={**norm.factors, **dict.fromkeys(outputs, factor.of(norm.case))})

    verb = "is" if len(outputs) == 1 else "are"
    return Mistake(
        f"{'_and_'.join(outputs)}_{factor.id}",
        f"{' and '.join(outputs)} {verb} {factor.words} what {'it' if len(outputs) == 1 else 'they'} should be",
        alter,
        "All elements are off by one factor.",
        "found in the numbers",
        ALL_NORMS,
    )
