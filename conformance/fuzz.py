"""Random cases until one fails, then smaller ones until none does."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import Flaky
from hypothesis.strategies import SearchStrategy

from conformance.answerable import has_answer
from conformance.cases import Names
from conformance.compare import Verdict
from conformance.golden import compute
from conformance.norms.cases import NormCase
from conformance.process import PortFailure, RunningPort
from conformance.protocol import Hello, first_match
from conformance.random_cases import cases, questions
from conformance.runner import judge
from conformance.session import Session

CASES_SEED = 0  # the seed of the cases' inputs, which differ by name already
BATCH = 200  # cases that hypothesis remembers at a time; it would remember all of an endless search
LONGEST_SHRINK = 120.0  # seconds
WITNESSES = 40  # more cases that are asked once one has failed, so that mistakes which look alike in it can be told apart


@dataclass(frozen=True, slots=True)
class Found:
    """A failure: the verdict on the smallest case that shows it, and whether it still does when asked again.

    `witnesses` are verdicts on other cases of the same question, failed or passed, for a diagnosis.
    """

    verdict: Verdict
    again: bool
    witnesses: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Search:
    """What became of a search: how many cases of each op and dtype were judged, how many were skipped, what was found.

    `failure` is set, and `hello` is not, where the port could not be run at all.
    """

    spec: str
    hello: Hello | None
    judged: Counter[tuple[str, str]]
    skipped: int
    seconds: float
    found: Found | None = None
    failure: str = ""


class _TimeIsUp(BaseException):
    """Ends a search from within; not an `Exception`, which hypothesis would take for a failure of the port's."""


class _CaseFails(Exception):
    """Tells hypothesis that a case fails."""


def fuzz(
    spec: str,
    start: Callable[[], RunningPort],
    *,
    seconds: float,
    seed: int = 0,
    op: Names = (),
    dtype: Names = (),
    timeout: float = 120.0,
) -> Search:
    """Ask a port random cases for some seconds; spend as long again, at most, on making the first that fails smaller.

    The cases follow from the seed and from what the port claims to have; `op` and `dtype` limit them.
    """
    with Session(start, timeout, patience=inf) as session, tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        try:
            hello = session.hello
        except PortFailure as failure:
            return Search(spec, None, Counter(), 0, 0.0, failure=str(failure))
        fuzzer = _Fuzzer(spec, session, seconds)
        set_hypothesis_home_dir(folder)  # not the working directory, which is the user's
        try:
            asked = questions(hello, op, dtype)
            if asked:
                fuzzer.search(cases(asked), seed)
            return fuzzer.outcome()
        finally:
            set_hypothesis_home_dir(None)


class _Fuzzer:
    """One search: the port, the time left, and what was seen."""

    def __init__(self, spec: str, session: Session, seconds: float) -> None:
        self._spec, self._session = spec, session
        self._seconds, self._began = seconds, time.monotonic()
        self._until = self._began + seconds
        self._judged: Counter[tuple[str, str]] = Counter()
        self._skipped = 0
        self._failures: list[Verdict] = []

    def search(self, strategy: SearchStrategy[NormCase], seed: int) -> None:
        """Ask batch after batch until one holds a failure, or the time is up."""
        batch = 0
        try:
            while not self._failures:
                _explore(strategy, self._ask, (seed << 32) + batch, BATCH)
                batch += 1
        except _TimeIsUp:
            pass

    def outcome(self) -> Search:
        """What was seen; the smallest failure is asked once more."""
        found = self._find() if self._failures else None
        seconds = time.monotonic() - self._began
        return Search(self._spec, self._session.hello, self._judged, self._skipped, seconds, found)

    def _ask(self, case: NormCase) -> None:
        """Raises `_CaseFails` where the case fails in the way of the first that did."""
        if time.monotonic() > self._until:
            raise _TimeIsUp
        verdict = self._verdict(case)
        if verdict is None or verdict.status == "skip":
            self._skipped += 1
            return
        self._judged[case.op, case.dtype] += 1
        if verdict.status == "pass" or (self._failures and verdict.status != self._failures[0].status):
            return
        if not self._failures:
            self._until = time.monotonic() + min(self._seconds, LONGEST_SHRINK)
        self._failures.append(verdict)
        raise _CaseFails

    def _verdict(self, case: NormCase) -> Verdict | None:
        """The verdict on a case; None where it has no answer, or the port says that it fails, or may fail."""
        hello = self._session.hello
        if first_match(case.id, hello.expected | hello.may_fail) is not None:
            return None
        golden = compute(case, CASES_SEED)
        if not has_answer(golden):
            return None
        return judge(self._session, self._spec, golden)

    def _find(self) -> Found:
        smallest = self._failures[-1]  # hypothesis goes on only to smaller ones, and ends with the smallest
        assert isinstance(smallest.case, NormCase)
        repeated = self._verdict(smallest.case)
        again = repeated is not None and repeated.status == smallest.status
        witnesses = self._witnesses(smallest.case) if smallest.status == "fail" else ()
        return Found(smallest, again, witnesses)

    def _witnesses(self, case: NormCase) -> tuple[Verdict, ...]:
        verdicts: dict[str, Verdict] = {}

        def ask(other: NormCase) -> None:
            if other.id != case.id and (verdict := self._verdict(other)):
                verdicts[other.id] = verdict

        _explore(cases([(case.op, case.dtype, case.dialect)]), ask, CASES_SEED, WITNESSES)
        return tuple(verdicts.values())


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
