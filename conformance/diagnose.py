"""Verdicts -> the mistakes that explain them, or none."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np

from conformance.block.cases import BlockCase
from conformance.block.taps import TAP
from conformance.compare import OutputVerdict, Verdict, admits, error_ratio
from conformance.dialects import Dialect
from conformance.expected import Expected
from conformance.golden import golden
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import Mistake, both
from conformance.norms.anatomy import BACKWARDS
from conformance.rounding import store, unit_roundoff

SCREENED = 6, 24  # failing outputs on which every mistake is tried: one that explains none is dropped; and where all are, again
LARGE = 1_000  # elements beyond which a case is asked only whether the mistake found explains it too
FEW = 0.05  # the share of failing outputs that are too few to tell a mistake from a coincidence
FILLS = 2.0**-7  # the share of a bound that errors must reach somewhere for the bound to be what explains them
MOST = 0.9  # the share of an output that is nearly all of it
NEAR = 32.0  # times the error that honest arithmetic may have; a mistake rarely magnifies it by more
OUTSIDE = 24.0  # bits of an element that a mistake does not explain

Unit = tuple[Verdict, OutputVerdict]
"""One output of one case, which a mistake explains or does not."""
Path = tuple[str, Dialect]
"""A dtype and a dialect: what a port may have code of its own for."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A mistake, and how well it explains a port's numbers for one op.

    `explained` are the failing verdicts of which some output lies within the mistake's own intervals, by `outputs` of
    their `failing` outputs. `agreeing` of `judged` counts all verdicts, passing ones included, that lie there whole: a
    mistake really made agrees wherever it makes a difference, and where it makes none. `residual` is the largest error
    that is left, in units of the tolerance around the mistake's own values. `runner_up` is what explains most besides.
    """

    mistake: Mistake
    explained: tuple[Verdict, ...]
    outputs: int
    failing: int
    agreeing: int
    judged: int
    residual: float
    runner_up: tuple[Mistake, int] | None


def diagnose(verdicts: tuple[Verdict, ...], seed: int, among: tuple[Mistake, ...] = MISTAKES) -> tuple[Diagnosis, ...]:
    """The fewest known mistakes (`among` some) that explain what fails, the one that explains most first.

    `verdicts` are those of one port and one op, judged with `seed`. Failures that no mistake explains appear in none.
    """
    judged = [verdict for verdict in verdicts if verdict.judged]
    failing = [
        (verdict, output) for verdict in judged if verdict.status == "fail" for output in verdict.judged if not output.passes
    ]
    diagnoses: list[Diagnosis] = []
    left = failing
    while len(left) > FEW * len(failing):
        found = [diagnosis.mistake for diagnosis in diagnoses]
        ranked = _ranked(among, left, judged, seed)
        if not ranked:  # two at once may leave numbers that neither has alone
            known = [mistake for mistake in among if mistake.exact(left[0][0].case)]  # a bound, doubled, holds anything
            pairs = (both(first, second) for first in found[:2] if first in known for second in known)
            ranked = _ranked(pairs, left, judged, seed)
        if not ranked:
            break
        best = ranked[0]
        explained = [unit for unit in left if _explains(best, unit, seed)]
        if len(explained) <= FEW * len(failing):
            break
        others = [other for other in ranked[1:] if all(other.exact(verdict.case) for verdict, _ in left)]
        runner_up = (others[0], sum(_explains(others[0], unit, seed) for unit in filter(_is_small, left))) if others else None
        diagnoses.append(_diagnosis(best, explained, len(failing), judged, runner_up, seed))
        done = {(unit[0].case.id, unit[1].output) for unit in left if _mostly(best, unit, seed)}
        left = [unit for unit in left if (unit[0].case.id, unit[1].output) not in done]
    return tuple(diagnoses)


def _ranked(mistakes: Iterable[Mistake], failing: list[Unit], judged: list[Verdict], seed: int) -> list[Mistake]:
    """The mistakes that explain some of what fails, best first.

    The best explains most failing outputs net of the passing ones that it contradicts, path by path; of two such, it is the
    one to whose knower the numbers take fewer bits to tell, on those paths, then on the others. One that nowhere explains
    more than it contradicts is none.
    """
    small = any(map(_is_small, failing))
    failing = [unit for unit in failing if _is_small(unit) == small]
    units = [(verdict, output) for verdict in judged for output in verdict.judged]
    passing = [unit for unit in units if unit[1].passes and _is_small(unit) == small]
    mistakes, scores = tuple(mistakes), dict[Mistake, tuple[int, float, float]]()
    for count in SCREENED:
        few = _spread(failing, count)
        for mistake in mistakes:
            if mistake in scores or not any(_explains(mistake, unit, seed) for unit in few):
                continue
            if _is_plausible(mistake, failing, seed):
                scores[mistake] = _score(mistake, failing + passing, seed)
        ranked = sorted((mistake for mistake in scores if scores[mistake][0] > 0), key=scores.__getitem__, reverse=True)
        if ranked:
            return ranked
    return []


def _score(mistake: Mistake, units: list[Unit], seed: int) -> tuple[int, float, float]:
    """The failing outputs that a mistake explains less the passing ones that it contradicts, on every path where there are
    more of the first: there it is made. Then the bits that the outputs take, negative: on those paths, and on the others.
    """
    net, bits = Counter[Path](), defaultdict[Path, float](float)
    for unit in units:
        path = unit[0].case.dtype, unit[0].case.dialect
        told, share = _telling(mistake, unit, seed)
        net[path] += (share >= MOST) - unit[1].passes
        bits[path] += told
    made = {path for path in net if net[path] > 0}
    on = sum(bits[path] for path in made)
    return sum(net[path] for path in made), -on, on - sum(bits.values())


def _is_plausible(mistake: Mistake, failing: list[Unit], seed: int) -> bool:
    """Whether a mistake whose errors are known by a bound alone explains most of what fails, and comes near the bound.

    Wide intervals hold something of everything, and small errors of any kind.
    """
    if all(mistake.exact(verdict.case) for verdict, _ in failing):
        return True
    explained = [unit for unit in failing if _mostly(mistake, unit, seed)]
    residuals = [_residual(mistake, unit, seed) for unit in _spread(explained, SCREENED[0])]
    fills = any(residual == 0 or residual >= FILLS for residual in residuals)  # zero: its very numbers
    return fills and len(explained) >= len(failing) / 2


def _is_small(unit: Unit) -> bool:
    return prod(unit[0].case.shape) <= LARGE


def _spread(failing: list[Unit], count: int) -> list[Unit]:
    """So many failing outputs as unlike one another as possible."""
    spread: dict[tuple[str, str], Unit] = {}
    for verdict, output in failing:
        spread.setdefault((verdict.case.name, output.output), (verdict, output))
    units = list(spread.values())
    step = max(1, len(units) // count)
    return (units[::step] + units + failing)[:count]


def _explains(mistake: Mistake, unit: Unit, seed: int) -> bool:
    """Whether an output's numbers are those of the mistake, whichever way its backward pass was written."""
    return any(admits(expected, unit[1]) for expected in _alternatives(mistake, unit, seed))


def _mostly(mistake: Mistake, unit: Unit, seed: int) -> bool:
    """Whether nearly all of an output's numbers are: where a step is rounded, noise before it may tip one now and then."""
    return _telling(mistake, unit, seed)[1] >= MOST


def _alternatives(mistake: Mistake, unit: Unit, seed: int) -> list[Expected]:
    verdict, output = unit
    if verdict.case.op not in mistake.ops:
        return []
    if isinstance(verdict.case, BlockCase):
        if not output.output.startswith(TAP):
            return [] if _is_far(mistake, unit, seed) else [mistake.outputs(verdict.case, seed)[output.output]]
        taps = {tap.output.removeprefix(TAP): store(tap.actual, tap.dtype) for tap in verdict.taps}
        expected = mistake.taps(verdict.case, seed, taps).get(output.output.removeprefix(TAP))
        return [expected] if expected else []
    backwards = BACKWARDS if output.output != "y" else BACKWARDS[:1]
    return [mistake.outputs(verdict.case, seed, backward)[output.output] for backward in backwards]


def _is_far(mistake: Mistake, unit: Unit, seed: int) -> bool:
    """Whether an output is nowhere near a mistake's: to find its interval costs many times what its value does."""
    verdict, output = unit
    off = output.actual - mistake.values(verdict.case, seed)[output.output]
    allowed = NEAR * golden(verdict.case, seed).outputs[output.output].rms
    with np.errstate(all="ignore"):
        return bool(np.sqrt(np.mean(np.square(off))) > allowed)


def _residual(mistake: Mistake, unit: Unit, seed: int) -> float:
    return min(error_ratio(expected, unit[1].actual) for expected in _alternatives(mistake, unit, seed))


def _telling(mistake: Mistake, unit: Unit, seed: int) -> tuple[float, float]:
    """The bits it takes to tell an output's numbers to one who knows the mistake, and the share that lies in its intervals.

    Inside, it is to be told which of the numbers in the interval it is; outside, all of its digits.
    """
    actual, ways = unit[1].actual, [(np.inf, 0.0)]
    for expected in _alternatives(mistake, unit, seed):
        if expected.dtype == unit[1].dtype:
            lower, upper = expected.interval()
            with np.errstate(all="ignore"):
                ulps = (upper - lower) / (2 * unit_roundoff(expected.dtype) * np.maximum(np.abs(lower), np.abs(upper)))
                inside = (lower <= actual) & (actual <= upper) | np.isnan(actual) & np.isnan(expected.value)
                bits = np.where(inside, np.minimum(np.log2(1 + np.nan_to_num(ulps)), OUTSIDE - 1), OUTSIDE)
            ways.append((float(np.sum(bits)), float(np.mean(inside)) if inside.size else 1.0))
    bits, share = min(ways, key=lambda way: (-way[1], way[0]))
    return min(bits, OUTSIDE * actual.size), share


def _diagnosis(
    mistake: Mistake,
    explained: list[Unit],
    failing: int,
    judged: list[Verdict],
    runner_up: tuple[Mistake, int] | None,
    seed: int,
) -> Diagnosis:
    agreeing = sum(all(_explains(mistake, (verdict, output), seed) for output in verdict.judged) for verdict in judged)
    residual = max(_residual(mistake, unit, seed) for unit in explained)
    verdicts = tuple({verdict.case.id: verdict for verdict, _ in explained}.values())
    return Diagnosis(mistake, verdicts, len(explained), failing, agreeing, len(judged), residual, runner_up)
