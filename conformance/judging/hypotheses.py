"""What is expected of a case's outputs under a hypothesis: that nothing is wrong, or that a mistake was made."""

from collections.abc import Mapping

import numpy as np

from conformance.judging.compare import OutputVerdict, Verdict
from conformance.mistakes.mistake import Mistake
from conformance.numbers.expected import Expected
from conformance.numbers.rounding import store, ulp
from conformance.ops.block.taps import TAP
from conformance.ops.golden import golden, lay_open, on_its_own
from conformance.ops.table import OPS

Array = np.ndarray
Outputs = Mapping[str, Expected]

NEAR = 32.0  # times the error that honest arithmetic may have; a mistake rarely magnifies it by more
CLOSE = 8.0  # times the width of the truth's intervals; those of a mistake are rarely so much wider
MOST_FAR = 0.9  # of the elements; a mistake that has so many wrong explains nothing
ROUGH = 2.0, NEAR  # times the truth's own tolerance, where a mistake's is not worth its cost


def if_right(verdict: Verdict, seed: int) -> Outputs:
    """What is expected of a case's outputs, its intermediates included, if nothing is wrong."""
    case, right = verdict.case, golden(verdict.case, seed)
    if not verdict.taps:
        return on_its_own(case, right.outputs, _returned(verdict))
    return right.outputs | _as_taps(lay_open(case, seed).true_taps(_exported(verdict)))


def if_made(mistake: Mistake, verdict: Verdict, right: Outputs, seed: int, *, rough: bool = False) -> list[Outputs]:
    """What is expected of a case's outputs if a mistake was made, for every way to write its passes.

    `right` is what is expected if nothing is wrong. Some ops' intervals cost many times what their values do: if `rough`,
    theirs are as wide as those of the truth, times some factors, each of which counts as a way.
    """
    case = verdict.case
    if not OPS[case.op].costly:
        ways = [mistake.outputs(case, seed, backward) for backward in mistake.backwards(case, seed)]
        return [on_its_own(case, way, _returned(verdict)) for way in (*ways, *mistake.in_orders(case, seed))]
    taps = dict(right) | (_as_taps(mistake.taps(case, seed, _exported(verdict))) if verdict.taps else {})
    if rough:
        values = mistake.values(case, seed)
        return [taps | {name: _roughly(values[name], right[name], factor) for name in values} for factor in ROUGH]
    return [taps | _near_outputs(mistake, verdict, right, seed)]


def _roughly(value: Array, right: Expected, factor: float) -> Expected:
    """Intervals of an output that a mistake moves; one that it hardly moves is what it is without it."""
    lower, upper = right.interval()
    with np.errstate(invalid="ignore"):
        moved = ~(np.abs(value - right.value) <= (upper - lower) / 2) & ~(np.isnan(value) & np.isnan(right.value))
    return _around(value, right, factor) if moved.any() else right


def _around(value: Array, right: Expected, factor: float) -> Expected:
    lower, upper = right.interval()
    return Expected.around(value, factor * (upper - lower) / 2, right.dtype)


def _near_outputs(mistake: Mistake, verdict: Verdict, right: Outputs, seed: int) -> dict[str, Expected]:
    """A costly op's outputs; those nowhere near keep the mistake's value, with no room around it."""
    values = mistake.values(verdict.case, seed)
    far = [each.output for each in verdict.outputs if _is_far(each, values[each.output], right[each.output].rms)]
    own = mistake.outputs(verdict.case, seed) if len(far) < len(verdict.outputs) else {}
    return {name: _around(values[name], right[name], 0.0) if name in far else own[name] for name in values}


def _is_far(output: OutputVerdict, value: Array, rms: float) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.sqrt(np.mean(np.square(output.actual - value))) > NEAR * rms)


def comes_near(made: Expected, right: Expected, actual: Array) -> bool:
    """Whether more than a few elements are near enough to what a mistake makes of them to be worth its intervals."""
    lower, upper = right.interval()
    with np.errstate(all="ignore"):
        far = np.abs(actual - made.value) > CLOSE * np.maximum(upper - lower, ulp(made.value, made.dtype))
    return bool(np.count_nonzero(far) <= MOST_FAR * far.size)


def _returned(verdict: Verdict) -> dict[str, Array]:
    return {output.output: output.actual for output in verdict.outputs}


def _exported(verdict: Verdict) -> dict[str, Array]:
    return {tap.output.removeprefix(TAP): store(tap.actual, tap.dtype) for tap in verdict.taps}


def _as_taps(expected: Outputs) -> dict[str, Expected]:
    return {TAP + name: each for name, each in expected.items()}
