"""The journey: case -> inputs -> golden -> port(inputs) -> outputs -> compare -> verdict."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod

from conformance.judging.compare import Verdict, compare
from conformance.judging.ranks import on_every_rank
from conformance.ops.golden import Golden, compute, golden, on_its_own
from conformance.port.launch import Launch
from conformance.port.process import Family, PortFailure
from conformance.port.protocol import Hello, first_match
from conformance.port.session import NOT_ASKED, NoAnswer, Session, asked_of
from conformance.question.case import Case, split_over_ranks
from conformance.running.shard import program
from reference import FEATURES

NO_OP = "no op "  # how the reason begins that a port lacks an op
KEPT_SIZE = 2**22  # elements of x in a case whose golden is kept: a larger one would fill the memory
CASES_OF_A_PROCESS = 50  # fewer are not worth a process of their own


@dataclass(frozen=True, slots=True)
class PortRun:
    """What became of one port: what it said of itself, and a verdict for every case.

    `failure` is set, and `hello` is not, where the port could not be run at all. `argument` names it on the command line of
    the kit, where that is not its spec.
    """

    spec: str
    hello: Hello | None
    verdicts: tuple[Verdict, ...]
    failure: str = ""
    argument: str = ""


Group = tuple[tuple[int, Case], ...]
"""Cases that share compiled code, each with its place among all that are asked."""
Part = tuple[list[int], Future[PortRun]]
"""What one process does: the places of the cases that it has taken, and what becomes of them."""


def run_ports(
    launches: Sequence[Launch],
    cases: Iterable[Case],
    *,
    seed: int = 0,
    jobs: int = 1,
    on_verdict: Callable[[Verdict], None] = lambda verdict: None,
) -> tuple[PortRun, ...]:
    """Run every port over all cases, the ports side by side.

    A port with many cases is run as up to `jobs` processes, which share them. `on_verdict` is called from the ports' threads
    as verdicts come in.
    """
    asked = tuple(cases)
    workers = max(1, min(jobs, len(asked) // CASES_OF_A_PROCESS))
    processes = Family()
    with ThreadPoolExecutor(max_workers=max(1, len(launches) * workers)) as pool:
        runs: list[list[Part]] = []
        for launch in launches:
            left, parts = _groups(asked), list[Part]()
            for _ in range(workers):
                taken: list[int] = []
                part = pool.submit(run_port, launch, _drained(left, taken), seed, on_verdict, processes)
                parts.append((taken, part))
            runs.append(parts)
        try:
            return tuple(_joined([(taken, part.result()) for taken, part in parts]) for parts in runs)
        except BaseException:  # an interrupt, above all: the pool waits for its threads, and they for their ports
            processes.end()
            raise


def _groups(cases: tuple[Case, ...]) -> deque[Group]:
    """The cases by program; the last ones, which take a compiler longest, come first."""
    programs: dict[tuple[str, int, str], list[tuple[int, Case]]] = {}
    for place, case in enumerate(cases):
        programs.setdefault(program(case), []).append((place, case))
    return deque(map(tuple, reversed(programs.values())))


def _drained(groups: deque[Group], taken: list[int]) -> Iterator[Case]:
    """The cases of one group after another, until no other process has left one; their places are `taken`."""
    while groups:
        with suppress(IndexError):  # another process was faster
            for place, case in groups.popleft():
                taken.append(place)
                yield case


def _joined(parts: list[tuple[list[int], PortRun]]) -> PortRun:
    """One port's parts as one run in the order of the cases; it failed to start if any of them did."""
    first = parts[0][1]
    for _, part in parts:
        if part.failure:
            return part
    placed = [pair for taken, part in parts for pair in zip(taken, part.verdicts, strict=True)]
    return replace(first, verdicts=tuple(verdict for _, verdict in sorted(placed, key=lambda pair: pair[0])))


def run_port(
    launch: Launch,
    cases: Iterable[Case],
    seed: int = 0,
    on_verdict: Callable[[Verdict], None] = lambda verdict: None,
    family: Family | None = None,
) -> PortRun:
    """Ask one port every case it claims to support; restart it where it fails."""
    with Session(launch, family) as session:
        try:
            hello = session.hello
        except PortFailure as failure:
            return PortRun(launch.spec, None, (), str(failure), launch.argument)
        examined = Examination(session, seed)
        for case in cases:
            on_verdict(examined.judge(case))
    return PortRun(launch.spec, hello, tuple(examined.verdicts), argument=launch.argument)


class Examination:
    """The verdicts on one port so far, in the order of the cases.

    `spoilt`: a verdict was changed when the next case was asked, for what the port did after its answer.
    """

    def __init__(self, session: Session, seed: int) -> None:
        self._session, self._seed = session, seed
        self.verdicts: list[Verdict] = []
        self.spoilt = False
        self._last = 0  # the place of the case asked last; those skipped since are not to blame

    def judge(self, case: Case) -> Verdict:
        """The verdict on the next case. Raises `PortFailure` where the port could not be run at all."""
        session = self._session
        if reason := unsupported(case, session.hello):
            verdict = Verdict(session.launch.spec, case, "skip", message=reason)
        elif session.given_up:
            verdict = Verdict(session.launch.spec, case, "error", message=NOT_ASKED)
        else:
            exact = golden(case, self._seed) if prod(case.shape) <= KEPT_SIZE else compute(case, self._seed)
            verdict = as_expected(judge(session, exact), session.hello)
            if session.aftermath:
                self.verdicts[self._last] = _spoilt(self.verdicts[self._last], session.aftermath)
                self.spoilt = True
            self._last = len(self.verdicts)
        self.verdicts.append(verdict)
        return verdict


def judge(session: Session, expected: Golden) -> Verdict:
    """What a port makes of a golden's inputs, whatever it says of itself."""
    case, spec = expected.case, session.launch.spec
    try:
        answer = session.exchange(case, expected.inputs)
    except NoAnswer as none:
        return Verdict(spec, case, none.status, message=str(none), detail=none.detail)
    verdict = compare(spec, expected, answer.outputs, asked_of(case, session.hello))
    verdict = replace(verdict, ranks=session.launch.ranks, collectives=answer.collectives)
    if answer.whole:
        verdict = on_every_rank(verdict, on_its_own(case, expected.outputs, answer.outputs), answer.whole)
    declared = session.hello.overwrites
    return unless_overwritten(verdict, tuple(name for name in answer.overwrote or () if name not in declared))


def _spoilt(verdict: Verdict, aftermath: str) -> Verdict:
    """The verdict on a case where it came out later that its answer was not all the port did."""
    return Verdict(verdict.port, verdict.case, "error", message=f"the port answered, and then {aftermath}")


def unless_overwritten(verdict: Verdict, overwrote: tuple[str, ...]) -> Verdict:
    """The verdict where no input was overwritten undeclared; else a failure that says which were, whatever the outputs are."""
    if not overwrote or verdict.status == "error":
        return verdict
    return replace(verdict, status="fail", message=f"overwrites its input{'s' * (len(overwrote) > 1)} {', '.join(overwrote)}")


def as_expected(verdict: Verdict, hello: Hello) -> Verdict:
    """The verdict in the light of what the port says: a case that is expected to fail must fail, one that may need not."""
    if verdict.status == "skip":
        return verdict
    passes, id_ = verdict.status == "pass", verdict.case.id
    if (reason := first_match(id_, hello.may_fail)) is not None:
        return replace(verdict, status="expected", message=f"may fail, and {'passed' if passes else 'did'}: {reason}")
    if (reason := first_match(id_, hello.expected)) is None:
        return verdict
    if passes:
        return replace(verdict, status="fail", message=f"passes, though it is expected to fail: {reason}")
    return replace(verdict, status="expected", message=reason)


def unsupported(case: Case, hello: Hello) -> str:
    """Why a port need not answer a case, by its own word; empty if it must."""
    if case.op not in hello.ops:
        return NO_OP + case.op
    if case.dtype not in hello.dtypes:
        return f"no dtype {case.dtype}"
    if case.dialect.order not in ("either_order", *hello.orders_of(case.op, case.dtype)):
        return f"no order {case.dialect.order}"
    if case.dialect.sum and case.dialect.sum not in hello.sums:
        return f"no sum {case.dialect.sum}"
    if case.dialect.y and case.dialect.y not in hello.ys:
        return f"no y {case.dialect.y}"
    if "group_size" in case.settings and not hello.groups:
        return "no groups"
    told = case.settings | case.settings.get("config", {})
    if lacks := [name for name in FEATURES if name in told and name not in hello.features]:
        return f"no {lacks[0]}"
    if (split := split_over_ranks(case.layout)) and split not in hello.splits:
        return f"no {split} that are split over ranks"
    if case.weight_offset is not None and case.weight_offset not in hello.weight_offsets:
        return f"no weight offset {case.weight_offset}"
    return ""
