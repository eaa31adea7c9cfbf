"""outputs x golden -> Verdict."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from conformance.cases import Case
from conformance.golden import Expected, Golden

Array = np.ndarray
Status = Literal["pass", "fail", "expected", "skip", "error"]

# Error ratios are found by doubling from the first scale, then halving the gap twice: within a quarter of the ratio.
FIRST_SCALE, LAST_SCALE, HALVINGS = 2.0**-4, 2.0**100, 2


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
    """One output of one case.

    `ratio` is the smallest scale of the tolerance that admits every element, in units of the tolerance: 1 still
    passes; infinite where no noise explains the output (a NaN, say). `worst` is set where it does not pass.
    `actual` is what the port returned, in float64.
    """

    output: str
    ratio: float
    outside: int
    size: int
    worst: Element | None
    actual: Array = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one case: pass; fail; skip (the port says it lacks this); error (there was nothing to judge);
    expected (it failed, as the port said it would).

    `message` says why it was skipped, is expected to fail, or what went wrong, `detail` where (the port's own stack trace).
    """

    port: str
    case: Case
    status: Status
    outputs: tuple[OutputVerdict, ...] = ()
    message: str = ""
    detail: str = ""

    @property
    def ratio(self) -> float:
        """The largest error ratio over the outputs."""
        return max((output.ratio for output in self.outputs), default=0.0)


def compare(port: str, golden: Golden, outputs: dict[str, Array], asked: tuple[str, ...]) -> Verdict:
    """Judge a port's outputs: their names, dtypes and shapes first, then every element."""
    problem = malformed(golden.case, outputs, asked)
    if problem:
        return Verdict(port, golden.case, "error", message=problem)
    verdicts = tuple(compare_output(name, golden.outputs[name], outputs[name]) for name in asked)
    status = "fail" if any(verdict.outside for verdict in verdicts) else "pass"
    return Verdict(port, golden.case, status, verdicts)


def compare_output(name: str, expected: Expected, actual: Array) -> OutputVerdict:
    """Judge one output of the right shape and dtype: lower <= actual <= upper, or NaN where the golden is NaN."""
    actual = actual.astype(np.float64)
    admitted = _admits(expected, actual, 1.0)
    outside = int(np.size(admitted) - np.count_nonzero(admitted))
    ratio = _error_ratio(expected, actual)
    worst = _worst(expected, actual, admitted) if outside else None
    return OutputVerdict(name, ratio, outside, actual.size, worst, actual)


def agrees(verdict: Verdict, expected: dict[str, Expected]) -> bool:
    """Whether everything that a verdict is about lies in these intervals, instead of those it was judged by."""
    return all(np.all(_admits(expected[output.output], output.actual, 1.0)) for output in verdict.outputs)


def _admits(expected: Expected, actual: Array, scale: float) -> Array:
    lower, upper = expected.interval(scale)
    return ((lower <= actual) & (actual <= upper)) | (np.isnan(expected.value) & np.isnan(actual))


def _error_ratio(expected: Expected, actual: Array) -> float:
    def admitted(scale: float) -> bool:
        return bool(np.all(_admits(expected, actual, scale)))

    if admitted(0.0):
        return 0.0
    if np.any(np.isnan(actual) != np.isnan(expected.value)):
        return float("inf")
    high = FIRST_SCALE
    while not admitted(high):
        high *= 2
        if high > LAST_SCALE:
            return float("inf")
    low = high / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if admitted(middle) else (middle, high)
    return high


def _worst(expected: Expected, actual: Array, admitted: Array) -> Element:
    """The element furthest outside its interval, counted in widths of the interval; a wrong NaN comes first."""
    lower, upper = expected.interval()
    with np.errstate(all="ignore"):
        distance = np.maximum(lower - actual, actual - upper)
        unit = np.maximum(upper - lower, np.spacing(np.abs(expected.value)))
        excess = np.where(admitted, -np.inf, np.nan_to_num(distance / unit, nan=np.inf, posinf=np.inf))
    index = np.unravel_index(int(np.argmax(excess)), excess.shape)
    at = tuple(int(i) for i in index)
    return Element(at, *(float(array[index]) for array in (expected.value, lower, upper, actual)))


def malformed(case: Case, outputs: dict[str, Array], asked: tuple[str, ...]) -> str:
    """What keeps the outputs from being judged at all, in words; empty if nothing does."""
    for name in asked:
        if name not in outputs:
            returned = ", ".join(sorted(outputs)) or "nothing"
            return f"output {name!r} is missing: the port returned {returned}"
        shape, dtype = outputs[name].shape, outputs[name].dtype.name
        if shape != case.output_shape(name):
            return f"{name} has shape {list(shape)}; expected {list(case.output_shape(name))}"
        if dtype != case.outputs[name]:
            return f"{name} is {dtype}; expected {case.outputs[name]}"
    return ""
