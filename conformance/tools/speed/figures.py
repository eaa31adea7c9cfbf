"""What the times of many calls come to: medians and quartiles, a share of the rate of a copy, and why they may be none."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from conformance.ops.golden import Golden
from conformance.port.protocol import Part, Repeated
from conformance.question.case import Case
from conformance.tools.speed.floor import floor


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, and the quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of two figures at least."""
        lower, median, upper = statistics.quantiles(values, method="inclusive")
        return cls(median, lower, upper)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a port took for one part of a case.

    seconds, cpu_seconds
        Of a call, what was put off until its result was read included.
    of_copy
        The bytes it must move at least over the time, as a share of the rate of a copy in the same process and turns.
    put_off
        The seconds of a call that pass only when its result is read.
    errors
        Why the figures are none: in words.
    by_turn
        The median of every turn, by which two ports are compared.
    """

    seconds: Spread
    cpu_seconds: Spread
    gigabytes_per_second: float
    of_copy: float
    put_off: float
    errors: tuple[str, ...]
    by_turn: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One port, one case and one part of it. `timing` is None where there is none, for the `reason`.

    `faults` says why the port does not conform; empty where it does.
    """

    port: str
    case: Case
    part: Part
    faults: tuple[str, ...]
    timing: Timing | None = None
    reason: str = ""
    ratio: Spread | None = None

    @property
    def ranks(self) -> bool:
        """Whether its figures may be compared with another's."""
        return self.timing is not None and not self.faults and not self.timing.errors


def figures(turns: Sequence[Repeated], golden: Golden, part: Part) -> Timing:
    """What a port's turns come to."""
    put_off = max(0.0, _of(turns, "first_read_seconds").lower - _of(turns, "next_read_seconds").upper)
    called, copy = _of(turns, "seconds"), _of(turns, "copy_seconds")
    seconds = Spread(*(each + put_off for each in (called.median, called.lower, called.upper)))
    moved, copied = floor(golden, part), 2 * golden.inputs["x"].nbytes
    fastest = copied / min(each for turn in turns for each in turn.copy_seconds)
    rate = moved / seconds.median
    errors = list[str]()
    if put_off > called.median:
        errors.append(f"a call returns after {called.median * 1e3:.3g} ms, and its result is computed when it is read")
    if rate > fastest:
        errors.append(
            f"{rate / 1e9:.3g} GB/s at least is more than the fastest copy of the same turns, {fastest / 1e9:.3g} GB/s: "
            "an error of the measurement, or work that is not done"
        )
    by_turn = tuple(statistics.median(turn.seconds) + put_off for turn in turns)
    return Timing(seconds, _of(turns, "cpu_seconds"), rate / 1e9, rate * copy.median / copied, put_off, tuple(errors), by_turn)


def compared(rows: list[Row]) -> list[Row]:
    """The rows of one case and part, the first with its time over the second's in the same turns, if both may be ranked."""
    first, *others = rows
    if not others or not (first.timing and others[0].timing and first.ranks and others[0].ranks):
        return rows
    ratios = [ours / theirs for ours, theirs in zip(first.timing.by_turn, others[0].timing.by_turn, strict=True)]
    return [replace(first, ratio=Spread.of(ratios)), *others]


def _of(turns: Sequence[Repeated], name: str) -> Spread:
    return Spread.of([each for turn in turns for each in getattr(turn, name)])
