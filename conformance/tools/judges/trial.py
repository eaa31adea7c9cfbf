"""The trial: every mistake that can be seen before every judge, and every honest implementation too.

On the kit's cases a judge lets a mistake pass if it passes every output that it asks about, in every case. On its own inputs
the same is asked of those alone.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import Literal

import numpy as np

from conformance.judging.simulation import STYLES, numbers, play
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import Mistake
from conformance.numbers.rounding import DType
from conformance.ops.norms.cases import ROW_NORM_CASES, ROW_NORMS, NormCase, RowNormOp
from conformance.question.dialects import HALF, SINGLE
from conformance.tools.judges.honest import Honest, implementations
from conformance.tools.judges.judge import Judge, Question, questions
from conformance.tools.judges.judges import JUDGES
from conformance.tools.selftest.selftest import LARGE

DTYPES: tuple[DType, ...] = ("float32", "bfloat16", "float16")  # those that the rules are made for
KIT = "norm_conformance"
OURS = tuple(case for case in ROW_NORM_CASES if case.dialect in (*SINGLE, *HALF) and 0 not in case.shape and not case.exact)
"""The kit's cases in the plain dialects, which are those that others' rules are made for."""
SMALL = tuple(case for case in OURS if case.has_fixture)
LAST = tuple(case for case in OURS if case.name in LARGE)
Inputs = Literal["ours", "own"]

Shown = Literal["y", "gradients", ""]
"""By what the kit sees a mistake: by y, by the gradients alone, or not at all."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One mistake in one op and dtype: by what it can be seen, and the judges that let it pass.

    `passed` is on the kit's cases, `own` on their own inputs, for those whose inputs are known. Of a mistake that the kit does
    not see, `seen_by` names the judges that reject it, but none that rejects the exact answer, or an honest one, too.
    """

    mistake: str
    op: RowNormOp
    dtype: DType
    shown: Shown
    passed: tuple[str, ...]
    own: tuple[str, ...]
    seen_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Accused:
    """How many honest outputs a judge has rejected, of so many that it was asked about."""

    judge: str
    dtype: DType
    inputs: Inputs
    rejected: int
    asked: int


def trials(jobs: int = os.cpu_count() or 1, on_step: Callable[[], None] = lambda: None) -> tuple[list[Trial], list[Accused]]:
    """Every mistake of the row norms, and every honest implementation, in `jobs` processes; `on_step` is called for each."""
    found, accused = list[Trial](), list[Accused]()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        honest = [pool.submit(accused_in, op, dtype) for op in ROW_NORMS for dtype in DTYPES]
        for of_one in pool.map(trials_of, [mistake.id for mistake in tried()]):
            found += of_one
            on_step()
        for future in honest:
            accused += future.result()
            on_step()
    return found, _added_up(accused)


def tried() -> list[Mistake]:
    """The mistakes of the row norms."""
    return [mistake for mistake in MISTAKES if any(op in mistake.ops for op in ROW_NORMS)]


def steps() -> int:
    """The number of steps of a trial."""
    return len(tried()) + len(ROW_NORMS) * len(DTYPES)


def trials_of(id_: str) -> list[Trial]:
    """One mistake in every op and dtype."""
    (mistake,) = (mistake for mistake in MISTAKES if mistake.id == id_)
    return [trial(mistake, op, dtype) for op in ROW_NORMS if op in mistake.ops for dtype in DTYPES]


def trial(mistake: Mistake, op: RowNormOp, dtype: DType) -> Trial:
    """One mistake in one op and dtype."""
    cases = [case for case in (*SMALL, *LAST) if (case.op, case.dtype) == (op, dtype)]
    left, shown, beyond = {judge.id for judge in JUDGES}, set[bool](), set[str]()
    for case in cases:
        if not left and False in shown:
            break
        made = numbers(mistake, case)
        for question in questions(case):
            actual = made[question.output]
            if question.is_gradient not in shown and not _kit_passes(question, actual):
                shown.add(question.is_gradient)
            asked = [judge for judge in JUDGES if judge.asks(question) and (judge.id in left or not shown)]
            rejecting = {judge.id for judge in asked if not judge.passes(question, actual)}
            left -= rejecting
            if rejecting and not shown:
                beyond |= rejecting - accusing_the_right(case)[question.output]
    seen: Shown = "y" if False in shown else "gradients" if shown else ""
    own = [judge.id for judge in JUDGES if (asked := _own(judge, op, dtype)) and _passes(judge, mistake, asked)]
    passed = [judge.id for judge in JUDGES if judge.id in left and _is_asked(judge, op, seen)]
    return Trial(mistake.id, op, dtype, seen, tuple(passed) if seen else (), tuple(own), () if seen else tuple(sorted(beyond)))


def _is_asked(judge: Judge, op: str, shown: Shown) -> bool:
    return op in judge.ops and (judge.asks_gradients or shown == "y")


def _own(judge: Judge, op: str, dtype: str) -> list[NormCase]:
    return [case for case in judge.own if (case.op, case.dtype) == (op, dtype)]


def _passes(judge: Judge, mistake: Mistake, cases: Iterable[NormCase]) -> bool:
    """Whether a judge lets a mistake pass in all of some cases."""
    for case in cases:
        made = numbers(mistake, case)
        if any(judge.asks(question) and not judge.passes(question, made[question.output]) for question in questions(case)):
            return False
    return True


def _kit_passes(question: Question, actual: np.ndarray) -> bool:
    return actual.dtype.name == question.dtype and bool(np.all(question.expected.admits(actual.astype(np.float64))))


@cache
def accusing_the_right(case: NormCase) -> dict[str, set[str]]:
    """By output, the judges that reject the exact answer, or an honest one in some style."""
    played = [play(case, 0, style) for style in STYLES]
    return {
        question.output: {
            judge.id
            for judge in JUDGES
            for right in (question.expected.nearest, *(each[question.output] for each in played))
            if judge.asks(question) and not judge.passes(question, right)
        }
        for question in questions(case)
    }


def accused_in(op: RowNormOp, dtype: DType) -> list[Accused]:
    """What every judge makes of every honest implementation, on the kit's small cases and on its own inputs."""
    rejected, asked = Counter[tuple[str, Inputs]](), Counter[tuple[str, Inputs]]()

    def put(judge: str, inputs: Inputs, passes: bool) -> None:
        asked[judge, inputs] += 1
        rejected[judge, inputs] += not passes

    for case in SMALL:
        if (case.op, case.dtype) == (op, dtype):
            for question, actual in _honest_answers(case):
                put(KIT, "ours", _kit_passes(question, actual))
                for judge in JUDGES:
                    if judge.asks(question):
                        put(judge.id, "ours", judge.passes(question, actual))
    for judge in JUDGES:
        for case in _own(judge, op, dtype):
            for question, actual in _honest_answers(case):
                if judge.asks(question):
                    put(judge.id, "own", judge.passes(question, actual))
    return [Accused(judge, dtype, inputs, rejected[judge, inputs], count) for (judge, inputs), count in asked.items()]


def _honest_answers(case: NormCase) -> Iterator[tuple[Question, np.ndarray]]:
    """Every output of every honest implementation of a case."""
    asked = questions(case)
    for norm in honest(case):
        with np.errstate(all="ignore"):
            made = norm.outputs()
        for question in asked:
            yield question, made[question.output]


def honest(case: NormCase) -> list[Honest]:
    """All honest implementations; compensated sums make a NaN of an infinity, and are left out there."""
    norms = implementations(case, questions(case)[0].golden.inputs)
    return [norm for norm in norms if norm.order != "Kahan" or case.x.rows != "inf_row"]


def _added_up(accused: Iterable[Accused]) -> list[Accused]:
    """The counts of one judge, dtype and inputs together."""
    rejected, asked = Counter[tuple[str, DType, Inputs]](), Counter[tuple[str, DType, Inputs]]()
    for each in accused:
        rejected[each.judge, each.dtype, each.inputs] += each.rejected
        asked[each.judge, each.dtype, each.inputs] += each.asked
    return [Accused(*key, rejected[key], count) for key, count in asked.items()]
