"""Rows that a sum over the rows lacks, or has twice, found in the numbers by exclusion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from conformance.judging.fitting.found_factor import Unit
from conformance.mistakes.mistake import ALL_NORMS, Mistake
from conformance.numbers.rounding import ulp
from conformance.ops.golden import golden
from conformance.ops.norms.golden import as_the_norm_has_them

Array = np.ndarray
Times = Literal[0, 2]
"""How often the rows are counted."""

NARROWEST = 8  # features, each an equation, without which a range of rows may fit by chance
MOST_RANGES = 8  # that fit one output; where more do, the numbers do not tell which
BLOCKS = tuple(2**k for k in range(1, 13))


@dataclass(frozen=True)
class Rows:
    """Some rows in a row, from the first to before the last, as a function of how many there are; and how often they count."""

    name: str
    words: str
    of: Callable[[int], tuple[int, int]]
    times: Times
    fixed: bool = False  # the same rows, however many there are

    @property
    def id(self) -> str:
        """The end of a mistake's id."""
        return f"{'with_twice' if self.times else 'without'}_{self.name}"


@dataclass(frozen=True)
class Sums:
    """An output that is a sum over rows, how far off each element may be, and the sums over the first rows, none to all."""

    actual: Array
    allowed: Array
    partial: Array

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.partial) - 1

    def explained(self, rows: Rows) -> bool:
        """Whether this is the sum with these rows counted otherwise than once."""
        first, end = rows.of(self.count)
        altered = self.partial[-1] + (rows.times - 1) * (self.partial[end] - self.partial[first])
        return bool(np.all(np.abs(self.actual - altered) <= self.allowed))

    def ranges(self, times: Times) -> list[tuple[int, int]]:
        """The ranges of rows that, counted so often, make this sum; not all rows, and not none."""
        wanted = (self.actual - self.partial[-1]) * (times - 1)  # the sum over the rows of the range
        with np.errstate(over="ignore"):
            j = int(np.argmax(np.abs(wanted) / self.allowed))
        order = np.argsort(self.partial[:, j])
        sorted_ = self.partial[order, j]
        low = np.searchsorted(sorted_, self.partial[:, j] + wanted[j] - self.allowed[j])
        high = np.searchsorted(sorted_, self.partial[:, j] + wanted[j] + self.allowed[j], side="right")
        first = np.repeat(np.arange(len(low)), high - low)
        end = order[np.arange(len(first)) - np.repeat(np.cumsum(high - low) - high, high - low)]
        first, end = first[ordered := first < end], end[ordered]
        fits = np.all(np.abs(self.partial[end] - self.partial[first] - wanted) <= self.allowed, axis=-1)
        return [(int(a), int(b)) for a, b in zip(first[fits], end[fits], strict=True) if b - a < self.count]


def sums(unit: Unit, seed: int) -> Sums | None:
    """What an output is a sum of; none where something is not finite, or the rows are too few or too narrow to tell."""
    case, output = unit
    known = golden(case, seed)
    with np.errstate(all="ignore"):
        _, dy, _ = as_the_norm_has_them(case, known.inputs)
    terms = dy * known.intermediates["x_hat"] if output.output == "dweight" else dy
    terms = terms.reshape(-1, terms.shape[-1])
    if len(terms) < 2 or terms.shape[1] < NARROWEST or not (np.isfinite(terms).all() and np.isfinite(output.actual).all()):
        return None
    expected = known.outputs[output.output]
    lower, upper = expected.interval()
    partial = np.concatenate([np.zeros((1, terms.shape[1])), np.cumsum(terms, axis=0)])
    size = np.maximum(np.abs(output.actual), np.abs(expected.value))
    return Sums(output.actual, (upper - lower) / 2 + ulp(size, expected.dtype), partial)


@dataclass(frozen=True)
class Summed:
    """The sums of a group that fail, and those that pass."""

    failing: tuple[Sums, ...]
    passing: tuple[Sums, ...]


def summed(failing: Sequence[Unit], passing: Sequence[Unit], seed: int) -> Summed:
    """The sums of a group, as far as they tell anything."""
    told = (tuple(each for unit in units if (each := sums(unit, seed))) for units in (failing, passing))
    return Summed(*told)


def candidates(group: Summed) -> list[Rows]:
    """The rules that some sum suggests, the plainest first: where the rows differ in number, a rule that says so."""
    rules: dict[str, Rows] = {}
    for each in group.failing:
        for times in (0, 2):
            ranges = each.ranges(times)
            for first, end in ranges if len(ranges) <= MOST_RANGES else ():
                rules |= {rows.id: rows for rows in _rules(first, end, each.count, times)}
    several = len({each.count for each in group.failing}) > 1
    return sorted(rules.values(), key=lambda rows: several and rows.fixed)


def explains(rows: Rows, group: Summed) -> bool:
    """Whether a rule explains every sum of a group, those that pass too."""
    return bool(group.failing) and all(each.explained(rows) for each in (*group.failing, *group.passing))


def _rules(first: int, end: int, count: int, times: Times) -> list[Rows]:
    """The rules by which a range of so many rows may have come about."""
    found = [_fixed(first, end, times)]
    if end == count:
        found.append(Rows(f"rows_from_{first}", f"the rows from {first} on", lambda rows: (min(first, rows), rows), times))
        found += [_past(block, times) for block in BLOCKS if first == count // block * block]
        found.append(_last(count - first, times))
    if first == 0:
        kept = count - end
        words = "all rows but the last" if kept == 1 else f"all rows but the last {kept}"
        found.append(Rows(f"all_but_last_{kept}_rows", words, lambda rows: (0, max(0, rows - kept)), times))
    return found


def _fixed(first: int, end: int, times: Times) -> Rows:
    single = end == first + 1
    name = f"row_{first}" if single else f"rows_{first}_to_{end - 1}"
    words = f"row {first}" if single else f"rows {first} to {end - 1}"
    return Rows(name, words, lambda rows: (min(first, rows), min(end, rows)), times, fixed=True)


def _past(block: int, times: Times) -> Rows:
    words = f"the rows past the last multiple of {block}"
    return Rows(f"rows_past_{block}", words, lambda rows: (rows // block * block, rows), times)


def _last(few: int, times: Times) -> Rows:
    words = "the last row" if few == 1 else f"the last {few} rows"
    return Rows(f"last_{few}_rows", words, lambda rows: (max(0, rows - few), rows), times)


def as_mistake(rows: Rows, outputs: tuple[str, ...]) -> Mistake:
    """The golden with these rows left out of its sums over the rows, or counted twice."""

    def counted(terms: Array) -> Array:
        terms = terms.reshape(-1, terms.shape[-1])
        some = slice(*rows.of(len(terms)))
        return np.concatenate([terms, terms[some]]) if rows.times else np.delete(terms, some, axis=0)

    sums = {"dweight": "weight_rows", "dbias": "bias_rows"}
    one = len(outputs) == 1
    lacks, has = ("lacks", "has") if one else ("lack", "have")
    said = f"{has} {rows.words} twice" if rows.times else f"{lacks} {rows.words}"
    return Mistake(
        f"{'_and_'.join(outputs)}_{rows.id}",
        f"{' and '.join(outputs)} {said} (rows are counted from 0)",
        {sums[output]: counted for output in outputs},
        "A sum over the rows is off by just those.",
        "found in the numbers",
        ALL_NORMS,
        found=True,
    )
