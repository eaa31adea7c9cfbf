"""Verdicts -> the mistakes that explain them, or none."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np

from conformance.anatomy import BACKWARDS
from conformance.compare import OutputVerdict, Verdict, admits, error_ratio
from conformance.golden import Expected
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import Mistake, both
from conformance.rounding import unit_roundoff

SCREENED = 6  # failing outputs on which every mistake is tried; those that explain none of them are dropped
LARGE = 1_000  # elements beyond which a case is asked only whether the mistake found explains it too
FEW = 0.05  # the share of failing outputs that are too few to tell a mistake from a coincidence
FILLS = 2.0**-6  # of a mistake whose size is known by a bound alone: the share of the bound that its errors must reach

Unit = tuple[Verdict, OutputVerdict]
"""One output of one case, which a mistake explains or does not."""


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


def diagnose(verdicts: tuple[Verdict, ...], seed: int) -> tuple[Diagnosis, ...]:
    """The fewest known mistakes that explain what fails, the one that explains most first.

    `verdicts` are those of one port and one op, judged with `seed`. Failures that no mistake explains appear in none.
    """
    judged = [verdict for verdict in verdicts if verdict.outputs]
    failing = [
        (verdict, output) for verdict in judged if verdict.status == "fail" for output in verdict.outputs if not output.passes
    ]
    diagnoses: list[Diagnosis] = []
    left = failing
    while len(left) > FEW * len(failing):
        found = [diagnosis.mistake for diagnosis in diagnoses]
        ranked = _ranked(MISTAKES, left, judged, seed)
        if not ranked:  # two at once may leave numbers that neither has alone
            ranked = _ranked((both(first, second) for first in found[:2] for second in MISTAKES), left, judged, seed)
        if not ranked:
            break
        best = ranked[0]
        explained = [unit for unit in left if _explains(best, unit, seed)]
        if len(explained) <= FEW * len(failing):
            break
        others = [other for other in ranked[1:] if all(other.exact(verdict.case) for verdict, _ in left)]
        runner_up = (others[0], sum(_explains(others[0], unit, seed) for unit in _small(left))) if others else None
        diagnoses.append(_diagnosis(best, explained, len(failing), judged, runner_up, seed))
        done = {(verdict.case.id, output.output) for verdict, output in explained}
        left = [unit for unit in left if (unit[0].case.id, unit[1].output) not in done]
    return tuple(diagnoses)


def _ranked(mistakes: Iterable[Mistake], failing: list[Unit], judged: list[Verdict], seed: int) -> list[Mistake]:
    """The mistakes that explain some of what fails, best first.

    The best explains most failing outputs net of the passing ones that it contradicts; of two such, the one that says
    more: whose intervals are narrower.
    """
    failing = _small(failing) or failing
    few = _spread(failing)
    passing = [(verdict, output) for verdict in judged for output in verdict.outputs if output.passes]
    passing = _small(passing)
    scores: dict[Mistake, tuple[int, float]] = {}
    for mistake in mistakes:
        if any(_explains(mistake, unit, seed) for unit in few):
            explained = [unit for unit in failing if _explains(mistake, unit, seed)]
            if len(explained) < len(failing) / 2 and not all(mistake.exact(verdict.case) for verdict, _ in explained):
                continue  # wide intervals hold something of everything
            contradicted = sum(not _explains(mistake, unit, seed, fills=False) for unit in passing)
            scores[mistake] = len(explained) - contradicted, -_width(mistake, explained, seed)
    return sorted(scores, key=lambda mistake: scores[mistake], reverse=True)


def _small(units: list[Unit]) -> list[Unit]:
    return [unit for unit in units if prod(unit[0].case.shape) <= LARGE]


def _spread(failing: list[Unit]) -> list[Unit]:
    """A few failing outputs as unlike one another as possible."""
    spread: dict[tuple[str, str], Unit] = {}
    for verdict, output in failing:
        spread.setdefault((verdict.case.name, output.output), (verdict, output))
    units = list(spread.values())
    step = max(1, len(units) // SCREENED)
    return (units[::step] + units + failing)[:SCREENED]


def _explains(mistake: Mistake, unit: Unit, seed: int, *, fills: bool = True) -> bool:
    """Whether an output's numbers are those of the mistake, whichever way its backward pass was written."""
    return any(_made(mistake, expected, unit, fills) for expected in _alternatives(mistake, unit, seed))


def _alternatives(mistake: Mistake, unit: Unit, seed: int) -> list[Expected]:
    verdict, output = unit
    if verdict.case.op not in mistake.ops:
        return []
    backwards = BACKWARDS if output.output != "y" else BACKWARDS[:1]
    return [mistake.outputs(verdict.case, seed, backward)[output.output] for backward in backwards]


def _made(mistake: Mistake, expected: Expected, unit: Unit, fills: bool) -> bool:
    """Within the intervals; and, where they are wide because nothing but a bound is known, not far within."""
    verdict, output = unit
    if not admits(expected, output):
        return False
    if not fills or mistake.exact(verdict.case):
        return True
    return error_ratio(expected, output.actual) >= FILLS


def _width(mistake: Mistake, explained: list[Unit], seed: int) -> float:
    """How much the mistake's intervals leave open, in bits of an element, over what it explains."""
    bits = 0.0
    for verdict, output in explained:
        for expected in _alternatives(mistake, (verdict, output), seed):
            if admits(expected, output):
                lower, upper = expected.interval()
                with np.errstate(all="ignore"):
                    ulps = (upper - lower) / (2 * unit_roundoff(expected.dtype) * np.maximum(np.abs(lower), np.abs(upper)))
                bits += float(np.sum(np.log2(1 + np.nan_to_num(ulps))))
                break
    return bits


def _diagnosis(
    mistake: Mistake,
    explained: list[Unit],
    failing: int,
    judged: list[Verdict],
    runner_up: tuple[Mistake, int] | None,
    seed: int,
) -> Diagnosis:
    agreeing = sum(
        all(_explains(mistake, (verdict, output), seed, fills=False) for output in verdict.outputs) for verdict in judged
    )
    residual = max(
        min(error_ratio(expected, unit[1].actual) for expected in _alternatives(mistake, unit, seed)) for unit in explained
    )
    verdicts = tuple({verdict.case.id: verdict for verdict, _ in explained}.values())
    return Diagnosis(mistake, verdicts, len(explained), failing, agreeing, len(judged), residual, runner_up)
