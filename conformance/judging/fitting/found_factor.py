"""A factor that an output is off by, found in the numbers: a constant, or the same simple function of every case."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np

from conformance.judging.compare import OutputVerdict
from conformance.mistakes.mistake import ALL_NORMS, Mistake, Of
from conformance.numbers.rounding import ulp
from conformance.ops.golden import golden
from conformance.ops.norms.cases import NormCase

Array = np.ndarray
Unit = tuple[NormCase, OutputVerdict]
"""One output of one case."""

NEARLY_ONE = 5e-4  # how far off a factor must be that is printed with four digits
FEWEST = 12  # elements that a factor must be seen in
LARGEST = 10_000  # elements of an output that is looked at
TRIED = 6  # failing outputs that are held against the golden's intervals times a factor
SHARE = 0.98  # of an output's elements that a factor must explain
ROUNDINGS = 4.0  # how often the root of the sum of squares of all last roundings a sum of them may be
DIVISORS = (*range(2, 17), 32, 64, 128, 256, 512, 1024)
PLAIN = (1.0, *(size for divisor in DIVISORS for size in (float(divisor), 1 / divisor)))


@dataclass(frozen=True)
class Factor:
    """A factor as a function of the case, its name in an id, and what it makes of an output, in words before and after."""

    id: str
    words: str
    of: Callable[[NormCase], float]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """The factor that an output is off by, and how far off that may be, relative: infinite where the output tells nothing.

    `fits` is whether that one factor explains nearly all of its elements.
    """

    factor: float
    doubt: float
    size: int
    fits: bool

    def agrees(self, factor: float) -> bool:
        """Whether this may be the factor."""
        if self.doubt == np.inf:
            return True
        return self.fits and abs(self.factor - factor) <= self.doubt * max(abs(self.factor), abs(factor))


def _times(id_: str, name: str, of: Callable[[NormCase], float], note: str) -> tuple[Factor, Factor]:
    """A factor and its inverse."""
    return (
        Factor(f"times_{id_}", f"{name} times", of, note),
        Factor(f"over_{id_}", f"1/{name} of", lambda case: 1 / of(case), note),
    )


def _width(case: NormCase) -> int:
    return case.shape[-1]


def _rows(case: NormCase) -> int:
    return max(1, prod(case.shape[:-1]))


def _unbiased(case: NormCase) -> float:
    return _width(case) / (_width(case) - 1) if _width(case) > 1 else np.inf


def _first_axis(case: NormCase) -> int:
    return case.shape[0] or 1


FEATURES, ROWS, FIRST_AXIS = " for n features", " for R rows", " for a first axis of B"
OF_THE_CASE: tuple[Factor, ...] = (
    Factor("times_n_over_n_minus_1", "n/(n - 1) times", _unbiased, FEATURES),
    Factor("times_n_minus_1_over_n", "(n - 1)/n times", lambda case: 1 / _unbiased(case), FEATURES),
    *_times("rows", "R", _rows, ROWS),
    *_times("n", "n", _width, FEATURES),
    *_times("root_of_n", "sqrt(n)", lambda case: sqrt(_width(case)), FEATURES),
    *_times("root_of_rows", "sqrt(R)", lambda case: sqrt(_rows(case)), ROWS),
    *_times("first_axis", "B", _first_axis, FIRST_AXIS),
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
    """The factor by least squares, every element weighted by what honest arithmetic may make of it.

    Its errors may all have one sign, as those of a row's rstd have. The last rounding is to either side; where the factor
    multiplies what is rounded already, there are two.
    """
    case, output = unit
    expected = golden(case, seed).outputs[output.output]
    nothing = Measured(1.0, np.inf, 0, False)
    if output.actual.size > LARGEST:
        return nothing
    lower, upper = expected.interval()
    with np.errstate(all="ignore"):
        usable = np.isfinite(output.actual) & np.isfinite(upper - lower) & (expected.value != 0)
        actual, value, half_width = output.actual[usable], expected.value[usable], (upper - lower)[usable] / 2
        noise = half_width + ulp(value, expected.dtype)
        signal = value / noise
        square = float(np.sum(np.square(signal)))
        if not square:
            return nothing
        factor = float(np.sum(actual / noise * signal)) / square
        doubt = float(np.sum(half_width / noise * np.abs(signal))) / square + ROUNDINGS / sqrt(square)
        allowed = abs(factor) * (half_width + doubt * np.abs(value)) + 1.5 * ulp(factor * value, expected.dtype)
        fits = float(np.mean(np.abs(actual - factor * value) <= allowed)) >= SHARE
    return Measured(factor, doubt, value.size, fits)


@dataclass(frozen=True)
class Scaled:
    """One output in the cases of a group, those first in which it fails, and the factors that it is off by."""

    units: tuple[Unit, ...]
    measured: tuple[Measured, ...]
    failing: int
    seed: int

    @property
    def surest(self) -> Measured:
        """The factor that is known best."""
        return min(self.measured, key=lambda each: each.doubt)

    def admits(self, factor: Factor) -> bool:
        """Whether a few of the failing outputs are, but for a few elements, the golden's times a factor, rounded."""
        few = self.units[: self.failing : -(-self.failing // TRIED)]
        return all(_share(unit, factor.of(unit[0]), self.seed) >= SHARE for unit in few)


def _share(unit: Unit, factor: float, seed: int) -> float:
    """Of an output's elements those that lie in the golden's own intervals times a factor."""
    case, output = unit
    if output.actual.size > LARGEST:
        return 1.0
    return float(np.mean(golden(case, seed).outputs[output.output].times(factor).admits(output.actual)))


def scaled(failing: Sequence[Unit], passing: Sequence[Unit], seed: int) -> Scaled | None:
    """The factors of a group; none where some failing output is not off by a factor, or too little is seen of it."""
    measured = [measure(unit, seed) for unit in failing]
    if not all(each.agrees(each.factor) for each in measured) or sum(each.size for each in measured) < FEWEST:
        return None
    measured += [measure(unit, seed) for unit in passing]
    return Scaled((*failing, *passing), tuple(measured), len(failing), seed)


def candidates(group: Scaled) -> list[Factor]:
    """The factors that a group may have, the likeliest first: a plain number, a function of the case, any number.

    Zero is none: what is never computed has an entry of its own in the catalogue.
    """
    surest = group.surest
    if abs(surest.factor) <= surest.doubt:
        return []
    plain = [k for size in PLAIN for k in (size, -size) if surest.agrees(k)]
    other = () if plain or abs(surest.factor - 1) < NEARLY_ONE else (surest.factor,)
    return [*map(constant, plain), *OF_THE_CASE, *map(constant, other)]


def explains(factor: Factor, group: Scaled) -> bool:
    """Whether a factor is that of every output of a group, and is not one everywhere."""
    pairs = [(each, factor.of(case)) for (case, _), each in zip(group.units, group.measured, strict=True)]
    if all(each.agrees(1.0) for each in group.measured):
        return False
    return all(each.agrees(k) for each, k in pairs if np.isfinite(k)) and group.admits(factor)


def as_mistake(factor: Factor, outputs: tuple[str, ...]) -> Mistake:
    """The golden with these outputs so many times as large."""
    is_, it = ("is", "it") if len(outputs) == 1 else ("are", "they")
    return Mistake(
        f"{'_and_'.join(outputs)}_{factor.id}",
        f"{' and '.join(outputs)} {is_} {factor.words} what {it} should be{factor.note}",
        {f"factors.{output}": Of(lambda norm: factor.of(norm.case)) for output in outputs},
        "All elements are off by one factor.",
        "found in the numbers",
        ALL_NORMS,
        found=True,
    )
