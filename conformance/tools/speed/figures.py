"""What the times of many calls come to: medians and quartiles, a share of the rate of a copy, and why they may be none."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from conformance.port.protocol import Part, Repeated
from conformance.question.case import Case


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, and the quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of two figures at least."""
        lower, median, upper = statistics.quantiles(values, method="inclusive")
        return cls(median, lower, upper)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a port took for one part of a case.

    seconds, cpu_seconds
        Of a call, with what was put off until its result was read.
    bytes_per_second
        The bytes that it must move at least, over the median.
    of_copy
        The same as a share of the rate at which as many bytes were copied, in the same process and turns.
    errors
        Why the figures are none, in words.
    by_turn
        The median of every turn, by which two ports are compared.
    """

    seconds: Spread
    cpu_seconds: Spread
    bytes_per_second: float
    of_copy: float
    errors: tuple[str, ...]
    by_turn: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One port, one case and one part of it. `timing` is None where there is none, for the `reason`.

    `faults` says why the port does not conform; empty where it does. `ratio` is its time over the other port's, in turns.
    """

    port: str
    case: Case
    part: Part
    faults: tuple[str, ...]
    timing: Timing | None = None
    reason: str = ""
    ratio: Spread | None = None

    @property
    def counts(self) -> bool:
        """Whether its figures may be compared with another's."""
        return self.timing is not None and not self.faults and not self.timing.errors


def timing_of(turns: Sequence[Repeated], n_bytes: int) -> Timing:
    """What a port's turns come to, of calls that must move so many bytes."""
    called, copy = _spread(turns, "seconds"), _spread(turns, "copy_seconds")
    put_off = max(0.0, _spread(turns, "read_seconds").lower - _spread(turns, "plain_read_seconds").upper)
    seconds = Spread(called.median + put_off, called.lower + put_off, called.upper + put_off)
    fastest = min(each for turn in turns for each in turn.copy_seconds)
    errors = list[str]()
    if put_off > called.median:
        errors.append(
            f"a call returns after {called.median * 1e3:.3g} ms, and its result is computed when it is read, in "
            f"{put_off * 1e3:.3g} ms (a port of lazy tensors overrides `finish`)"
        )
    if seconds.median < fastest:
        errors.append(
            f"{n_bytes / seconds.median / 1e9:.3g} GB/s at least is more than the fastest copy of the same turns, "
            f"{n_bytes / fastest / 1e9:.3g} GB/s: an error of the measurement, or work that is not done"
        )
    by_turn = tuple(statistics.median(turn.seconds) + put_off for turn in turns)
    rate, of_copy = n_bytes / seconds.median, copy.median / seconds.median
    return Timing(seconds, _spread(turns, "cpu_seconds"), rate, of_copy, tuple(errors), by_turn)


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows of one case and part; the first with its time over the second's in the same turns, if both count."""
    timings = [row.timing for row in rows if row.timing and row.counts]
    if len(timings) < 2:
        return list(rows)
    ratios = [ours / theirs for ours, theirs in zip(timings[0].by_turn, timings[1].by_turn, strict=True)]
    return [replace(rows[0], ratio=Spread.of(ratios)), *rows[1:]]


def _spread(turns: Sequence[Repeated], name: str) -> Spread:
    return Spread.of(each for turn in turns for each in getattr(turn, name))
