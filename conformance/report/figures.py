"""What is drawn of a report: histograms, maps and bars, as plain geometry for a template to put into SVG."""

import math
from dataclasses import dataclass

from conformance.ops.block.taps import TAP
from conformance.report import words
from conformance.report.counting import count_of
from conformance.report.report import CaseEntry, Cause, Errors, OutputEntry, Report
from conformance.report.spread import BEYOND, LETTERS, PASSES, SCALES

SLOT, HEIGHT = 26, 96  # of a histogram: the width of a class, and the height of the tallest bar
CELL = 12  # the side of a map's cell
BAR = 160  # the length of the longest bar

SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

LEVELS = (0, PASSES, PASSES + 2, PASSES + 5, PASSES + 10, BEYOND - 1, BEYOND)
"""The last class of each level that a map tells apart: exact; passes; up to 4, 32, 1024, 2²⁹ tolerances; beyond."""
LEVEL_NAMES = ("exact", "passes", "up to 4", "up to 32", "up to 1024", "more than 1024", "NaN or beyond all")
INSETS = (5.0, 4.5, 3.0, 2.25, 1.5, 0.75, 0.0)  # what is left free around a cell's mark, so that size says what colour says
LEVEL_KEYS = tuple(zip(LEVEL_NAMES, INSETS, strict=True))


@dataclass(frozen=True, slots=True)
class Bar:
    """A class of errors: how many elements are of it, and where its bar stands."""

    x: float
    height: float
    count: int
    label: str
    passes: bool


@dataclass(frozen=True, slots=True)
class Histogram:
    """The classes of an output's errors; what is left of `limit` passes."""

    bars: tuple[Bar, ...]
    width: float
    limit: float
    said: str


@dataclass(frozen=True, slots=True)
class Map:
    """Where an output's errors sit: for each level the path of its cells' marks, and where the worst element is."""

    paths: tuple[tuple[int, str], ...]
    width: int
    height: int
    worst: tuple[float, float] | None
    said: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a block: its error as it has grown so far, as words and as a bar, and how far off it is by itself."""

    name: str
    growth: str
    length: float
    ratio: str
    passes: bool


def label(class_: int) -> str:
    """A class by the scale that admits it, as a person writes it."""
    if class_ == BEYOND:
        return "more"
    scale = SCALES[class_]
    if scale < 1:
        return f"1/{1 / scale:.0f}" if scale else "0"
    return f"{scale:.0f}" if scale < 10_000 else f"2{str(class_ - PASSES).translate(SUPERSCRIPT)}"


def histogram(errors: Errors) -> Histogram:
    """Bars as tall as the count's logarithm: one element in a million is to be seen."""
    shown = max(len(errors.counts), PASSES + 2)
    counts = [*errors.counts, *[0] * (shown - len(errors.counts))]
    tallest = math.log1p(max(counts))
    bars = tuple(
        Bar(
            class_ * SLOT,
            round(HEIGHT * math.log1p(count) / tallest, 1) if count else 0,
            count,
            label(class_),
            class_ <= PASSES,
        )
        for class_, count in enumerate(counts)
    )
    passing, size = sum(counts[: PASSES + 1]), sum(counts)
    furthest = len(errors.counts) - 1
    reach = (
        "some further off than any scale admits, or NaN" if furthest == BEYOND else f"the furthest by up to {label(furthest)}"
    )
    said = f"{passing} of {count_of(size, 'element')} lie in their intervals; {reach}"
    return Histogram(bars, shown * SLOT, (PASSES + 1) * SLOT, said)


def heat_map(output: OutputEntry, errors: Errors) -> Map | None:
    """The map of an output; None where it has no elements."""
    if not errors.map:
        return None
    marks: dict[int, list[str]] = {}
    for row, line in enumerate(errors.map):
        for column, letter in enumerate(line):
            level = next(level for level, last in enumerate(LEVELS) if LETTERS.index(letter) <= last)
            inset, side = INSETS[level], CELL - 2 * INSETS[level]
            corner = f"M{column * CELL + inset:g} {row * CELL + inset:g}"
            marks.setdefault(level, []).append(f"{corner}h{side:g}v{side:g}h-{side:g}z")
    rows, columns = len(errors.map), len(errors.map[0])
    wrong = sum(len(paths) for level, paths in marks.items() if level > 1)
    each = "" if errors.pooled == (1, 1) else f", each the worst of up to {errors.pooled[0]} by {errors.pooled[1]} elements"
    extent = f"{count_of(rows, 'row')} by {count_of(columns, 'column')}"
    said = f"{extent}{each}; {wrong} of {rows * columns} hold an element outside its interval"
    paths = tuple((level, "".join(marks[level])) for level in sorted(marks))
    return Map(paths, columns * CELL, rows * CELL, _place(output, errors), said)


def _place(output: OutputEntry, errors: Errors) -> tuple[float, float] | None:
    """The centre of the worst element's cell."""
    if output.worst is None or len(output.worst.index) != len(output.shape) or not output.shape:
        return None
    row = 0
    for index, size in zip(output.worst.index[:-1], output.shape[:-1], strict=True):
        row = row * size + index
    column = output.worst.index[-1]
    return (column // errors.pooled[1] + 0.5) * CELL, (row // errors.pooled[0] + 0.5) * CELL


def through(report: Report, cause: Cause) -> CaseEntry | None:
    """A case in which a cause is followed through a block: its example, or else the first that parts at a stage."""
    cases = (report.entries[cause.port, case] for case in (cause.example, *cause.cases))
    return next((case for case in cases if any(not tap.passes for tap in case.taps)), None)


def stages(example: CaseEntry) -> tuple[Stage, ...]:
    """The stages of a block in data-flow order, as the console has them."""
    grown, taps = words.growth(example), {tap.output.removeprefix(TAP): tap for tap in example.taps}
    largest = max((math.log2(1 + error) for error in grown.values() if math.isfinite(error)), default=0.0) or 1.0
    return tuple(
        Stage(
            name,
            f"{error:.2g}",
            round(BAR * math.log2(1 + error) / largest, 1) if math.isfinite(error) else BAR,
            words.ratio(taps[name].ratio),
            taps[name].passes,
        )
        for name, error in grown.items()
    )
