"""Random cases until the time is up; of every failure unlike the others, smaller cases until none fails."""

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf, prod

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import Flaky
from hypothesis.strategies import SearchStrategy

from conformance.judging.compare import Verdict, agrees
from conformance.judging.diagnose import diagnose
from conformance.judging.diagnosis import Diagnosis
from conformance.judging.hypotheses import if_made, if_right
from conformance.ops.answerable import has_answer
from conformance.ops.cases import Names
from conformance.ops.golden import compute
from conformance.ops.norms.cases import NormCase
from conformance.port.launch import Launch
from conformance.port.process import PortFailure
from conformance.port.protocol import Hello, first_match
from conformance.port.session import Session
from conformance.running.runner import judge
from conformance.tools.fuzzing.random_cases import cases, questions

CASES_SEED = 0  # the seed of the cases' inputs, which differ by name already
BATCH = 200  # cases that hypothesis remembers at a time; it would remember all of an endless search
LONGEST_SHRINK = 120.0  # seconds
WITNESSES = 40  # more cases that are asked once one has failed, so that mistakes which look alike in it can be told apart
MOST = 8  # failures unlike one another that are kept

Signature = tuple[str, str, str, tuple[str, ...]]
"""How a case fails, where no known mistake says it: op, status, message, and the outputs that fail: y, or gradients alone."""


@dataclass(frozen=True, slots=True)
class Found:
    """A failure: the verdict on the smallest case that shows it, and whether it still does when asked again.

    `witnesses` are verdicts on other cases of the same question, failed or passed; `diagnosis` is the mistake that they and
    the case bear out, if there is one. `count` is how many random cases failed in this way.
    """

    verdict: Verdict
    again: bool
    witnesses: tuple[Verdict, ...]
    diagnosis: Diagnosis | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Search:
    """What became of a search: how many cases of each op and dtype were judged, how many were skipped, what was found.

    `failure` is set, and `hello` is not, where the port could not be run at all.
    """

    launch: Launch
    hello: Hello | None
    judged: Counter[tuple[str, str]]
    skipped: int
    seconds: float
    found: tuple[Found, ...] = ()
    failure: str = ""


class _TimeIsUp(BaseException):
    """Ends a search from within; not an `Exception`, which hypothesis would take for a failure of the port's."""


class _CaseFails(Exception):
    """Tells hypothesis that a case fails."""


def fuzz(
    launch: Launch,
    *,
    seconds: float,
    seed: int = 0,
    op: Names = (),
    dtype: Names = (),
    most: int = MOST,
) -> Search:
    """Ask a port random cases for some seconds, or until `most` failures unlike one another are found.

    Each is made smaller, which may take as long again after the time is up. The cases follow from the seed and from what
    the port claims to have; `op` and `dtype` limit them.
    """
    with Session(launch, patience=inf) as session, tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        try:
            hello = session.hello
        except PortFailure as failure:
            return Search(launch, None, Counter(), 0, 0.0, failure=str(failure))
        fuzzer = _Fuzzer(session, seconds)
        set_hypothesis_home_dir(folder)  # not the working directory, which is the user's
        try:
            asked = questions(hello, op, dtype)
            if asked:
                fuzzer.search(cases(asked, groups=hello.groups), seed, most)
            return fuzzer.outcome()
        finally:
            set_hypothesis_home_dir(None)


@dataclass
class _Failure:
    """A failure as it is met: what was found of it, and the signatures of all cases that were seen to be it."""

    found: Found
    signatures: set[Signature]
    count: int = field(default=1)


class _Fuzzer:
    """One search: the port, the time left, and what was seen."""

    def __init__(self, session: Session, seconds: float) -> None:
        self._session = session
        self._seconds, self._began = seconds, time.monotonic()
        self._end = self._until = self._began + seconds
        self._judged: Counter[tuple[str, str]] = Counter()
        self._skipped = 0
        self._known: list[_Failure] = []
        self._failing: list[Verdict] = []  # the same failure, from the case that showed it first to the smallest

    def search(self, strategy: SearchStrategy[NormCase], seed: int, most: int) -> None:
        """Ask batch after batch until the time is up, or there are enough failures; make each small and know it again."""
        batch = 0
        while len(self._known) < most and time.monotonic() < self._end:
            with suppress(_TimeIsUp):
                _explore(strategy, self._ask, (seed << 32) + batch, BATCH)
            batch += 1
            if self._failing:
                self._known.append(self._find())
                self._failing, self._until = [], self._end

    def outcome(self) -> Search:
        """What was seen."""
        seconds = time.monotonic() - self._began
        found = tuple(replace(known.found, count=known.count) for known in self._known)
        session = self._session
        return Search(session.launch, session.hello, self._judged, self._skipped, seconds, found)

    def _ask(self, case: NormCase) -> None:
        """Raises `_CaseFails` where the case fails, in the way of the one that is being made small, and of no known one."""
        if time.monotonic() > self._until:
            raise _TimeIsUp
        verdict = self._verdict(case)
        if verdict is None or verdict.status == "skip":
            self._skipped += 1
            return
        self._judged[case.op, case.dtype] += 1
        if verdict.status == "pass" or (self._failing and verdict.status != self._failing[0].status):
            return
        if any(case.id == known.found.verdict.case.id for known in self._known):
            return  # two cases of one id cannot be kept in one file
        if known := self._recognised(verdict):
            known.count += not self._failing
            return
        if not self._failing:
            self._until = time.monotonic() + min(self._seconds, LONGEST_SHRINK)
        self._failing.append(verdict)
        raise _CaseFails

    def _recognised(self, verdict: Verdict) -> _Failure | None:
        """The known failure that this is: its mistake explains the verdict or, where none is known, it fails alike."""
        for known in self._known:
            diagnosis = known.found.diagnosis
            if _signature(verdict) in known.signatures if diagnosis is None else _explains(diagnosis, verdict):
                return known
        return None

    def _verdict(self, case: NormCase) -> Verdict | None:
        """The verdict on a case; None where it has no answer, or the port says that it fails, or may fail."""
        hello = self._session.hello
        if first_match(case.id, hello.expected | hello.may_fail) is not None:
            return None
        golden = compute(case, CASES_SEED)
        if not has_answer(case, golden):
            return None
        return judge(self._session, golden)

    def _find(self) -> _Failure:
        smallest = self._failing[-1]  # hypothesis goes on only to smaller ones, and ends with the smallest
        assert isinstance(smallest.case, NormCase)
        repeated = self._verdict(smallest.case)
        again = repeated is not None and repeated.status == smallest.status
        witnesses = self._witnesses(smallest.case) if smallest.status == "fail" else ()
        found = Found(smallest, again, witnesses, _borne_out(smallest, witnesses))
        failed = [verdict for verdict in (*self._failing, *witnesses) if verdict.status == smallest.status]
        return _Failure(found, set(map(_signature, failed)))

    def _witnesses(self, case: NormCase) -> tuple[Verdict, ...]:
        verdicts: dict[str, Verdict] = {}

        def ask(other: NormCase) -> None:
            if other.id != case.id and (verdict := self._verdict(other)):
                verdicts[other.id] = verdict

        _explore(cases([(case.op, case.dtype, case.dialect)], groups=case.group_size is not None), ask, CASES_SEED, WITNESSES)
        return tuple(verdicts.values())


def _signature(verdict: Verdict) -> Signature:
    failing = tuple(output.output for output in verdict.judged if not output.passes)
    message = re.sub(r"\d+", "N", verdict.message)  # shapes and addresses differ from case to case
    return verdict.case.op, verdict.status, message, ("y",) if "y" in failing else failing


def _borne_out(verdict: Verdict, witnesses: tuple[Verdict, ...]) -> Diagnosis | None:
    """The mistake that explains a failure and agrees with all its witnesses: so small a case agrees with many not made."""
    told = tuple(each for each in (verdict, *witnesses) if _has_elements(each))
    diagnoses = diagnose(told, CASES_SEED) if len(told) > 1 else ()
    return next((each for each in diagnoses[:1] if each.agreeing == each.judged), None)


def _explains(diagnosis: Diagnosis, verdict: Verdict) -> bool:
    """Whether the mistake is all that is wrong with another case."""
    if verdict.status != "fail" or not diagnosis.mistake.can_be_made_in(verdict.case.op) or not _has_elements(verdict):
        return False
    ways = if_made(diagnosis.mistake, verdict, if_right(verdict, CASES_SEED), CASES_SEED)
    return any(agrees(verdict, expected) for expected in ways)


def _has_elements(verdict: Verdict) -> bool:
    return prod(verdict.case.shape) > 0


def _explore(strategy: SearchStrategy[NormCase], ask: Callable[[NormCase], None], seed: int, count: int) -> None:
    """One batch of cases, and smaller ones than the first on which `ask` raises `_CaseFails`."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
        verbosity=Verbosity.quiet,
        print_blob=False,
        report_multiple_bugs=False,
    )
    @hypothesis.given(strategy)
    def batch(case: NormCase) -> None:
        ask(case)

    with suppress(_CaseFails, Flaky):  # a flaky port fails once, and passes when it is asked again
        batch()
