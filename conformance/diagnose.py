"""Verdicts -> the mistake that explains them, or none."""

from dataclasses import dataclass
from math import prod

from conformance.compare import Verdict, agrees
from conformance.mistakes import BACKWARDS, MISTAKES, Mistake

SCREENED = 6  # failing cases on which every mistake is tried; those that explain none of them are dropped
LARGE = 1_000  # elements beyond which a case is asked only whether the mistake found explains it too


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A mistake, and how well it explains a port's numbers for one op.

    `explained` are the failing verdicts that lie within the mistake's own intervals; `agreeing` of `judged` counts all
    verdicts so, passing ones included: a mistake really made agrees wherever it makes a difference, and where it makes none.
    """

    mistake: Mistake
    explained: tuple[Verdict, ...]
    agreeing: int
    judged: int


def diagnose(verdicts: tuple[Verdict, ...], seed: int) -> tuple[Diagnosis, ...]:
    """The fewest known mistakes that explain what fails, the one that explains most first.

    `verdicts` are those of one port and one op, judged with `seed`. Failures that no mistake explains appear in none.
    """
    judged = [verdict for verdict in verdicts if verdict.outputs]
    failing = [verdict for verdict in judged if verdict.status == "fail" and any(output.outside for output in verdict.outputs)]
    diagnoses: list[Diagnosis] = []
    while True:
        small_failing, small_judged = _small(failing), _small(judged)
        candidates = [_explain(mistake, small_failing, small_judged, seed) for mistake in _candidates(small_failing, seed)]
        if not candidates:
            return tuple(diagnoses)
        best = max(candidates, key=lambda diagnosis: (len(diagnosis.explained), diagnosis.agreeing))
        diagnoses.append(_explain(best.mistake, failing, judged, seed))
        explained = {verdict.case.id for verdict in diagnoses[-1].explained}
        failing = [verdict for verdict in failing if verdict.case.id not in explained]


def _small(verdicts: list[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if prod(verdict.case.shape) <= LARGE]


def _candidates(failing: list[Verdict], seed: int) -> list[Mistake]:
    """The mistakes that explain at least one of a few failing cases, as unlike one another as possible."""
    spread: dict[str, Verdict] = {}
    for verdict in failing:
        spread.setdefault(verdict.case.name, verdict)
    few = (list(spread.values()) + failing)[:SCREENED]
    return [mistake for mistake in MISTAKES if any(_made(mistake, verdict, seed) for verdict in few)]


def _explain(mistake: Mistake, failing: list[Verdict], judged: list[Verdict], seed: int) -> Diagnosis:
    agreeing = {verdict.case.id for verdict in judged if _made(mistake, verdict, seed)}
    explained = tuple(verdict for verdict in failing if verdict.case.id in agreeing)
    return Diagnosis(mistake, explained, len(agreeing), len(judged))


def _made(mistake: Mistake, verdict: Verdict, seed: int) -> bool:
    """Whether a verdict's numbers are those of the mistake, whichever way its backward pass was written."""
    if verdict.case.op not in mistake.ops:
        return False
    return any(agrees(verdict, mistake.outputs(verdict.case, seed, backward)) for backward in BACKWARDS)
