"""The quick cases: as few, in as few programs, as still reject every mistake that any case rejects, in its op and dtype.

A greedy set cover over the kill matrix: the case comes next that rejects most of what is left, for what it costs. A case of a
program that nothing asked yet costs a compilation more.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from conformance.judging.compare import compare
from conformance.judging.simulation import numbers
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import Mistake
from conformance.ops.cases import CASES
from conformance.ops.golden import golden, on_its_own
from conformance.question.case import Case
from conformance.running.shard import Program, program
from conformance.tools.selftest.selftest import LARGE, TRIED, Kill

Pair = tuple[str, str, str]
"""A mistake, an op and a dtype."""

COMPILATION = 25.0  # what a program costs, in cases that need none


def rejecting(id_: str) -> dict[Pair, set[str]]:
    """The cases that reject a mistake, by op and dtype; by an intermediate only where no output does."""
    (mistake,) = (mistake for mistake in MISTAKES if mistake.id == id_)
    found: dict[Pair, set[str]] = {}
    for case in sorted(TRIED, key=lambda case: case.name in LARGE):
        if case.op not in mistake.ops:
            continue
        pair = id_, case.op, case.dtype
        if not (case.name in LARGE and found.get(pair)) and is_rejected(mistake, case):
            found.setdefault(pair, set()).add(case.id)
    return found


def is_rejected(mistake: Mistake, case: Case) -> bool:
    """Whether a case rejects the numbers of a mistake; by an intermediate where the catalogue says that only one shows it."""
    right, wrong = golden(case), numbers(mistake, case)
    if mistake.needs_taps_in(case.op, case.dtype):
        return compare("", right, wrong, tuple(case.outputs)).status != "pass"
    return any(
        wrong[name].dtype != expected.dtype or not np.all(expected.admits(wrong[name].astype(np.float64)))
        for name, expected in on_its_own(case, right.outputs, wrong).items()
    )


def matrix(jobs: int = os.cpu_count() or 1, on_step: Callable[[], None] = lambda: None) -> dict[Pair, set[str]]:
    """`rejecting`, of all mistakes, in `jobs` processes; `on_step` is called for each."""
    found: dict[Pair, set[str]] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for of_one in pool.map(rejecting, [mistake.id for mistake in MISTAKES]):
            found |= of_one
            on_step()
    return found


def cover(found: Mapping[Pair, set[str]], cases: Iterable[Case] = CASES) -> tuple[Case, ...]:
    """Cases that reject every pair, chosen greedily, in their order; one without which nothing is lost is left out again."""
    cases = tuple(cases)
    rejects: dict[str, set[Pair]] = {}
    for pair, ids in found.items():
        for id_ in ids:
            rejects.setdefault(id_, set()).add(pair)
    left, chosen, compiled = set(found), list[Case](), set[Program]()
    while left:
        worth = {
            case: len(rejects.get(case.id, set()) & left) / (1 + COMPILATION * (program(case) not in compiled))
            for case in cases
        }
        best = max(cases, key=lambda case: worth[case])
        chosen.append(best)
        compiled.add(program(best))
        left -= rejects[best.id]
    for case in list(chosen):
        others = [rejects[other.id] for other in chosen if other is not case]
        if rejects[case.id] <= set[Pair]().union(*others):
            chosen.remove(case)
    return tuple(case for case in cases if case in chosen)


def misses(kills: Iterable[Kill], cases: Iterable[Case]) -> list[Kill]:
    """The mistakes, in an op and a dtype, that are seen by the whole suite and rejected by none of these cases."""
    asked: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        asked.setdefault((case.op, case.dtype), []).append(case)
    by_id, missed = {mistake.id: mistake for mistake in MISTAKES}, list[Kill]()
    for kill in kills:
        of_kind = asked.get((kill.op, kill.dtype), [])
        telling = next((case for case in of_kind if is_rejected(by_id[kill.mistake], case)), None)
        if telling:  # the first to be tried on the next mistake, which is likely to be like this one
            of_kind.insert(0, of_kind.pop(of_kind.index(telling)))
        elif kill.seen or kill.taps > 1:
            missed.append(kill)
    return missed
