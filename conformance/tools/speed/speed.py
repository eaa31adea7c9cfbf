"""The journey of a time: a port is judged, then timed in turns with another; some answers of the timed calls are judged."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from random import SystemRandom

import numpy as np

from conformance.judging.compare import Verdict
from conformance.ops.golden import Golden, compute, on_its_own
from conformance.ops.quick import QUICK
from conformance.port.launch import Launch
from conformance.port.protocol import Part, Repeated
from conformance.port.session import NoAnswer, Session
from conformance.port.timing import order_of, shuffled
from conformance.question.answer import malformed
from conformance.question.case import Case
from conformance.report.counting import count_of
from conformance.running.runner import Examination, unsupported
from conformance.tools.speed.figures import Row, compared, timing_of
from conformance.tools.speed.floor import floor

SETS = 2  # of inputs, which take turns, their rows in another order every time
TURNS = 5  # of every port; one more before them warms it up, and does not count
SECONDS, FEWEST, MOST = 0.2, 4, 40  # what one turn should take, and how many calls it has


@dataclass(slots=True)
class Contender:
    """A port that is timed, and its verdicts on the quick cases of each op and dtype."""

    session: Session
    verdicts: dict[tuple[str, str], list[Verdict]] = field(default_factory=dict)

    def examine(self, case: Case, seed: int) -> None:
        """Judge it in the quick cases of a case's op and dtype, once."""
        kind = case.op, case.dtype
        if kind not in self.verdicts:
            examined = Examination(self.session, seed)
            self.verdicts[kind] = [examined.judge(each) for each in QUICK if (each.op, each.dtype) == kind]


def time_ports(
    launches: Sequence[Launch], asked: Iterable[Case], seed: int, on_case: Callable[[str], None] = lambda id_: None
) -> list[Row]:
    """Judge and time one port, or two in turns. Raises `PortFailure` where one cannot be started.

    Of the cases `asked`, each op, dtype and shape is timed in the first dialect that every port has. `on_case` is called with
    the id of each before it is asked.
    """
    rows = list[Row]()
    with ExitStack() as stack:
        contenders = [Contender(stack.enter_context(Session(launch))) for launch in launches]
        chosen: dict[tuple[str, str, tuple[int, ...]], Case] = {}
        for case in asked:
            if not any(unsupported(case, each.session.hello) for each in contenders):
                chosen.setdefault((case.op, case.dtype, case.shape), case)
        for case in chosen.values():
            on_case(case.id)
            for each in contenders:
                each.examine(case, seed)
            rows += _rows(contenders, [compute(case, seed + number) for number in range(SETS)])
    return rows


def _rows(contenders: Sequence[Contender], goldens: list[Golden]) -> list[Row]:
    """The forward pass of a case, and the backward pass alone or, where a port has none apart, the two together."""
    forward = _in_turns(contenders, goldens, "forward")
    if not all(each.session.hello.gradients for each in contenders):
        return forward
    backward = _in_turns(contenders, goldens, "backward")
    return forward + (backward if all(row.timing for row in backward) else _in_turns(contenders, goldens, "both"))


def _in_turns(contenders: Sequence[Contender], goldens: list[Golden], part: Part) -> list[Row]:
    trials = [Trial(each, goldens, part) for each in contenders]
    for _ in range(1 + TURNS):
        for trial in trials:
            trial.turn()
    return compared([trial.row() for trial in trials])


class Trial:
    """The turns of one port in one part of a case, as long as it answers."""

    def __init__(self, contender: Contender, goldens: list[Golden], part: Part) -> None:
        self._session, self._goldens = contender.session, goldens
        self._part: Part = part
        self._case = goldens[0].case
        self._verdicts = contender.verdicts[self._case.op, self._case.dtype]
        self._turns: list[Repeated] = []
        self._wrong: list[str] = []  # of timed calls, in words
        self._reason = ""
        self._n_bytes = floor(goldens[0], part)

    def turn(self) -> None:
        """Time so many calls as take `SECONDS`, and judge the answer of one."""
        if self._reason:
            return
        taken = statistics.median(self._turns[-1].seconds) if self._turns else SECONDS
        calls = max(FEWEST, min(MOST, round(SECONDS / max(taken, 1e-9))))
        chance = SystemRandom()  # a port cannot know which order the rows have, nor which answer is judged
        seeds, kept = [chance.getrandbits(63) for _ in range(calls)], chance.randrange(calls)
        asked, inputs = _outputs_of(self._case, self._part), [golden.inputs for golden in self._goldens]
        how = {"part": self._part, "seeds": seeds, "kept": kept, "n_bytes": self._n_bytes}
        try:
            repeated = self._session.repeat(self._case, inputs, asked, **how)
        except NoAnswer as none:
            self._reason = str(none)
            return
        self._turns.append(replace(repeated, outputs={}))
        if overwrote := set(repeated.overwrote) - set(self._session.hello.overwrites):
            self._wrong.append(f"overwrites {', '.join(sorted(overwrote))}")
        shape = self._case.shape
        back = np.argsort(order_of(seeds[kept], shape))
        outputs = {name: shuffled(array, back, shape) for name, array in repeated.outputs.items()}
        if wrong := ", ".join(_wrong(self._goldens[kept % SETS], outputs, asked)):
            self._wrong.append(wrong)

    def row(self) -> Row:
        """What the turns come to; the first has warmed the port up, and does not count."""
        timing = None if self._reason else timing_of(self._turns[1:], self._n_bytes)
        return Row(self._session.launch.spec, self._case, self._part, tuple(self._faults()), timing, self._reason)

    def _faults(self) -> Iterator[str]:
        """What is wrong, in words; what a port is expected to do wrong is wrong, too."""
        judged = [verdict for verdict in self._verdicts if verdict.status != "skip"]
        if failing := [verdict for verdict in judged if _fails(verdict, self._part)]:
            first = failing[0]
            yield f"{len(failing)} of {len(judged)} quick cases fail, such as {first.case.id}: {_words(first)}"
        if self._wrong:
            yield f"wrong when it is timed, {count_of(len(self._wrong), 'time')}: {self._wrong[0]}"


def _outputs_of(case: Case, part: Part) -> tuple[str, ...]:
    """The outputs by which a part of a case is judged; of both passes in one, the gradients."""
    return case.made if part == "forward" else tuple(name for name in case.outputs if name not in case.made)


def _fails(verdict: Verdict, part: Part) -> bool:
    """Whether an output of this part is wrong, or there is none."""
    outputs = [each for each in verdict.outputs if each.output in _outputs_of(verdict.case, part)]
    return verdict.status not in ("pass", "skip") and not (outputs and all(each.passes for each in outputs))


def _words(verdict: Verdict) -> str:
    """Why a verdict is no pass."""
    outside = [_outside(each.outside, each.size, each.output) for each in verdict.outputs if not each.passes]
    return verdict.message or ", ".join(outside)


def _wrong(golden: Golden, outputs: dict[str, np.ndarray], asked: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with outputs, which may be too large to ask by how much."""
    if problem := malformed(golden.case, outputs, asked):
        yield problem
        return
    expected = on_its_own(golden.case, golden.outputs, outputs)
    for name in asked:
        actual = outputs[name].astype(np.float64)
        outside = int(np.count_nonzero(~expected[name].within(actual)))
        if outputs[name].dtype.name != expected[name].dtype:
            yield f"{name} is {outputs[name].dtype.name}; expected {expected[name].dtype}"
        elif outside:
            yield _outside(outside, actual.size, name)


def _outside(outside: int, size: int, name: str) -> str:
    return f"{outside} of {size} elements of {name}"
