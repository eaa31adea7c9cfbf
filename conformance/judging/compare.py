"""outputs x golden -> Verdict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from conformance.numbers.expected import Expected, root_mean_square
from conformance.numbers.rounding import FORMATS, ulp
from conformance.ops.block.taps import TAP
from conformance.ops.golden import Golden, lay_open, on_its_own
from conformance.question.answer import malformed
from conformance.question.case import Case
from conformance.question.collectives import Collectives

Array = np.ndarray
Status = Literal["pass", "fail", "expected", "skip", "error"]

FINEST, COARSEST = 2.0**-4, 2.0**100  # error ratios that are told from zero, and from infinity
HALVINGS = 2  # of the gap, where a ratio is searched for and is known within a power of two
ABOVE_ONE = float(np.nextafter(1.0, 2.0))  # the least ratio of what does not pass


MAPPED = 2**22  # elements of an output whose intervals are kept, to map its errors: larger ones would fill the memory


@dataclass(frozen=True, slots=True)
class Element:
    """The element of an output that is furthest off: where it is, what was expected and what came."""

    index: tuple[int, ...]
    expected: float
    lower: float
    upper: float
    actual: float


@dataclass(frozen=True, slots=True)
class OutputVerdict:
    """One output of one case: the `expected_dtype` and the `dtype` that came, and how its numbers compare.

    `outside` of `size` elements are outside their own intervals; `together` says whether all their errors together are small
    enough (a block's outputs have a bound on their root mean square). `ratio` is the smallest scale of the tolerance that
    admits every element, in units of the tolerance: 1 still passes; infinite where no noise explains the output (a NaN, say).
    `worst` is set where a value does not pass. `actual` is what the port returned, in float64, and `expected` what it is held
    against, kept where a value does not pass, unless it is very large. `growth`, of an intermediate, is its error against the
    golden's own value, as it has grown on the way there: root mean square, relative, in units of the storage dtype's roundoff.
    """

    output: str
    expected_dtype: str
    dtype: str
    ratio: float
    outside: int
    size: int
    worst: Element | None
    actual: Array = field(repr=False, compare=False)
    growth: float | None = None
    expected: Expected | None = field(default=None, repr=False, compare=False)
    together: bool = True

    @property
    def passes(self) -> bool:
        """Whether the dtype is the right one, every element admitted, and all of them together."""
        return self.dtype == self.expected_dtype and not self.outside and self.together


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one case: pass; fail; skip (the port says it lacks this); error (there was nothing to judge);
    expected (it failed, as the port said it would).

    `message` says why it was skipped, is expected to fail, or what went wrong, `detail` where (the port's own stack trace).
    `taps` are the intermediates that the port exports, in data-flow order, each judged on the values it was made from.
    `ranks` is on how many processes the case was asked, `collectives` what one of them said to the others, if it counts that.
    """

    port: str
    case: Case
    status: Status
    outputs: tuple[OutputVerdict, ...] = ()
    message: str = ""
    detail: str = ""
    taps: tuple[OutputVerdict, ...] = ()
    ranks: int = 1
    collectives: Collectives | None = None

    @property
    def ratio(self) -> float:
        """The largest error ratio over the outputs."""
        return max((output.ratio for output in self.judged), default=0.0)

    @property
    def failed(self) -> bool:
        """Whether it counts against the port."""
        return self.status in ("fail", "error")

    @property
    def judged(self) -> tuple[OutputVerdict, ...]:
        """Everything that was judged: the outputs, then the taps."""
        return self.outputs + self.taps

    @property
    def parts_at(self) -> OutputVerdict | None:
        """The first tap in data-flow order that does not pass: the stage at fault."""
        return next((tap for tap in self.taps if not tap.passes), None)


def compare(port: str, golden: Golden, outputs: dict[str, Array], asked: tuple[str, ...]) -> Verdict:
    """Judge a port's outputs: their names and shapes first, then their dtypes and every element."""
    problem = malformed(golden.case, outputs, asked) or malformed_taps(golden, outputs)
    if problem:
        return Verdict(port, golden.case, "error", message=problem)
    expected = on_its_own(golden.case, golden.outputs, outputs)
    verdicts = tuple(compare_output(name, expected[name], outputs[name]) for name in asked)
    wrong = [verdict for verdict in verdicts if verdict.dtype != verdict.expected_dtype]
    message = "; ".join(f"{verdict.output} is {verdict.dtype}; expected {verdict.expected_dtype}" for verdict in wrong)
    taps = compare_taps(golden, {name.removeprefix(TAP): tap for name, tap in outputs.items() if name.startswith(TAP)})
    status = "pass" if all(verdict.passes for verdict in verdicts + taps) else "fail"
    return Verdict(port, golden.case, status, verdicts, message, taps=taps)


def compare_taps(golden: Golden, taps: dict[str, Array]) -> tuple[OutputVerdict, ...]:
    """Judge the intermediates that a port exports, in data-flow order."""
    if not taps:
        return ()
    u, verdicts = FORMATS[golden.case.dtype].unit_roundoff, list[OutputVerdict]()
    for name, expected in lay_open(golden.case, golden.seed).true_taps(taps).items():
        growth = _relative(taps[name].astype(np.float64), golden.intermediates[name]) / u
        verdicts.append(replace(compare_output(TAP + name, expected, taps[name]), growth=growth))
    return tuple(verdicts)


def _relative(actual: Array, exact: Array) -> float:
    """The root mean square of the error, relative to that of the values."""
    with np.errstate(all="ignore"):
        return float(np.sqrt(np.mean(np.square(actual - exact)) / np.mean(np.square(exact))))


def compare_output(name: str, expected: Expected, actual: Array) -> OutputVerdict:
    """Judge one output of the right shape: lower <= actual <= upper, or NaN where the golden is NaN; and its dtype."""
    dtype, actual = actual.dtype.name, actual.astype(np.float64)
    noiseless = _admitted(expected, actual, 0.0)  # as most are in half precision; what is admitted then always is
    within = np.ones(actual.shape, bool) if noiseless else expected.within(actual)
    together = noiseless or expected.admits_together(actual)
    outside = int(np.size(within) - np.count_nonzero(within))
    passes = together and not outside
    ratio = float("inf") if dtype != expected.dtype else 0.0 if noiseless else _noisy_ratio(expected, actual, passes=passes)
    worst = None if passes else _worst(expected, actual, within)
    kept = None if passes or actual.size > MAPPED else expected
    return OutputVerdict(
        name, expected.dtype, dtype, ratio, outside, actual.size, worst, actual, expected=kept, together=together
    )


def agrees(verdict: Verdict, expected: Mapping[str, Expected]) -> bool:
    """Whether everything that a verdict is about lies in these intervals, instead of those it was judged by."""
    return all(admits(expected[output.output], output) for output in verdict.outputs)


def admits(expected: Expected, output: OutputVerdict) -> bool:
    """Whether an output has the dtype and lies in the intervals expected here, instead of those it was judged by."""
    return output.dtype == expected.dtype and bool(np.all(expected.admits(output.actual)))


def error_ratio(expected: Expected, actual: Array) -> float:
    """The smallest scale of the tolerance that admits every element; float64 numbers.

    With one placement an interval grows in proportion to the scale, which is then known at once. With several it is searched
    for, within a quarter of it.
    """
    if _admitted(expected, actual, 0.0):
        return 0.0
    return _noisy_ratio(expected, actual, passes=_admitted(expected, actual, 1.0))


def _admitted(expected: Expected, actual: Array, scale: float) -> bool:
    return bool(np.all(expected.admits(actual, scale)))


def _noisy_ratio(expected: Expected, actual: Array, *, passes: bool) -> float:
    """The error ratio of what is not admitted without noise, given whether it is with as much as there may be."""
    if np.any(np.isnan(actual) != np.isnan(expected.value)):
        return float("inf")
    likely = _likely_ratio(expected, actual)
    if len(expected.placements) == 1 and expected.mode == "nearest_even":
        return float(np.clip(likely, FINEST, 1.0)) if passes else max(likely, ABOVE_ONE)
    first, last = int(np.log2(FINEST)), int(np.log2(COARSEST))
    power = _least(lambda power: _admitted(expected, actual, 2.0**power), first, last, _power(likely))
    if power is None:
        return float("inf")
    low, high = 2.0 ** (power - 1), 2.0**power
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _admitted(expected, actual, middle) else (middle, high)
    return high


def _likely_ratio(expected: Expected, actual: Array) -> float:
    """The largest error in units of the first placement's noise; half a unit in the last place is due to the last rounding."""
    with np.errstate(all="ignore"):
        lower, upper = expected.placements[0](2.0)
        largest = FORMATS[expected.dtype].largest
        finite = np.clip(actual, -largest, largest)  # an infinity lies just beyond it
        error, half_ulp = np.abs(finite - expected.value), ulp(finite, expected.dtype) / 2
        beyond = error + np.where(np.isinf(actual), half_ulp, -half_ulp)
        ratio = float(np.fmax.reduce(np.where(beyond > 0, beyond / ((upper - lower) / 4), 0.0), axis=None, initial=0.0))
        if expected.rms < float("inf"):
            ratio = max(ratio, root_mean_square(np.square(actual - expected.value), expected.value) / expected.rms)
    return ratio if ratio <= COARSEST else float("inf")


def _power(ratio: float) -> int:
    """The power of two that a ratio lies below, as an exponent; zero for an infinite one, which says nothing."""
    return int(np.ceil(np.log2(max(ratio, FINEST)))) if np.isfinite(ratio) else 0


def _least(holds: Callable[[int], bool], first: int, last: int, likely: int) -> int | None:
    """The least integer from first to last for which something holds that holds for all larger ones too; None if for none.

    A likely one is tried first, then those one, three, seven ... away from it.
    """
    low, high, tried, step = first - 1, last + 1, likely, 1
    while high - low > 1:
        if holds(tried):
            high = tried
        else:
            low = tried
        if first <= low and high <= last:
            tried = (low + high) // 2
        else:
            tried = max(high - step, first) if high <= last else min(low + step, last)
            step *= 2
    return high if high <= last else None


def _worst(expected: Expected, actual: Array, within: Array) -> Element:
    """The element furthest outside its interval, counted in widths of the interval; a wrong NaN comes first.

    Where every element is inside, the one that comes nearest to an end.
    """
    lower, upper = expected.interval()
    suspects = np.isfinite(actual) if np.all(within) else ~within
    with np.errstate(all="ignore"):
        distance = np.maximum(lower - actual, actual - upper)
        unit = np.maximum(upper - lower, np.spacing(np.abs(expected.value)))
        excess = np.where(suspects, np.nan_to_num(distance / unit, nan=np.inf, posinf=np.inf), -np.inf)
    index = np.unravel_index(int(np.argmax(excess)), excess.shape)
    at = tuple(int(i) for i in index)
    return Element(at, *(float(array[index]) for array in (expected.value, lower, upper, actual)))


def malformed_taps(golden: Golden, outputs: dict[str, Array]) -> str:
    """What keeps the exported intermediates from being judged, in words; empty if nothing does."""
    for name, tap in outputs.items():
        exact = golden.intermediates.get(name.removeprefix(TAP))
        if name.startswith(TAP) and exact is None:
            return f"{name}: a {golden.case.op} has no such intermediate: there are {', '.join(golden.intermediates)}"
        if name.startswith(TAP) and exact is not None and tap.shape != exact.shape:
            return f"{name} has shape {list(tap.shape)}; expected {list(exact.shape)}"
    return ""
