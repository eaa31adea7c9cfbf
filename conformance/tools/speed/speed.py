"""The journey of a time: a port is judged, then timed in turns with another; some answers of the timed calls are judged."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from random import SystemRandom

import numpy as np

from conformance.judging.compare import Verdict, compare
from conformance.ops.golden import Golden, compute
from conformance.ops.quick import QUICK
from conformance.port.launch import Launch
from conformance.port.protocol import Part, Repeated
from conformance.port.session import NoAnswer, Session
from conformance.port.timing import order_of, shuffled
from conformance.question.case import Case
from conformance.running.runner import Examination, judge, unsupported
from conformance.tools.speed.figures import Row, compared, timing_of
from conformance.tools.speed.floor import floor

SETS = 2  # of inputs, which take turns, their rows in another order every time
TURNS = 5  # of every port; one more before them warms it up, and does not count
SECONDS, FEWEST, MOST = 0.2, 4, 40  # what one turn should take, and how many calls it has
KEPT = 2  # answers of every turn that are judged


@dataclass(slots=True)
class Contender:
    """A port that is timed: its verdicts on the quick cases of each op and dtype, and on each case that is timed itself."""

    session: Session
    quick: dict[tuple[str, str], list[Verdict]] = field(default_factory=dict)
    own: dict[Case, Verdict] = field(default_factory=dict)

    def examine(self, golden: Golden, seed: int) -> None:
        """Judge it in a case; before the first one of an op and a dtype, in the quick ones of these."""
        case = golden.case
        if (case.op, case.dtype) not in self.quick:
            examined = Examination(self.session, seed)
            verdicts = [examined.judge(each) for each in QUICK if (each.op, each.dtype) == (case.op, case.dtype)]
            self.quick[case.op, case.dtype] = [verdict for verdict in verdicts if verdict.status != "skip"]
        self.own[case] = judge(self.session, golden)


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
            goldens = [compute(case, seed + number) for number in range(SETS)]
            for each in contenders:
                each.examine(goldens[0], seed)
            rows += _rows(contenders, goldens)
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
        self._session, self._goldens, self._part = contender.session, goldens, part
        self._case = case = goldens[0].case
        self._quick, self._own = contender.quick[case.op, case.dtype], contender.own[case]
        self._turns: list[Repeated] = []
        self._wrong: list[str] = []  # answers of timed calls, in words
        self._reason = self._own.message if self._own.status in ("skip", "error") else ""
        self._n_bytes = floor(goldens[0], part)

    def turn(self) -> None:
        """Time so many calls as take `SECONDS`, and judge some of their answers."""
        if self._reason:
            return
        taken = statistics.median(self._turns[-1].seconds) if self._turns else SECONDS
        calls = max(FEWEST, min(MOST, round(SECONDS / max(taken, 1e-9))))
        chance = SystemRandom()  # a port cannot know which order the rows have, nor which answers are judged
        seeds, kept = [chance.getrandbits(63) for _ in range(calls)], sorted(chance.sample(range(calls), KEPT))
        how = {"part": self._part, "seeds": seeds, "kept": kept, "n_bytes": self._n_bytes}
        try:
            repeated = self._session.repeat(self._case, [each.inputs for each in self._goldens], self._asked(), **how)
        except NoAnswer as none:
            self._reason = str(none)
            return
        self._turns.append(replace(repeated, outputs={}))
        if overwrote := set(repeated.overwrote) - set(self._session.hello.overwrites):
            self._wrong.append(f"overwrites {', '.join(sorted(overwrote))}")
        for number in kept:
            outputs = {n.partition(".")[2]: array for n, array in repeated.outputs.items() if n.startswith(f"{number}.")}
            self._judge(outputs, self._goldens[number % SETS], seeds[number])

    def _judge(self, outputs: dict[str, np.ndarray], golden: Golden, seed: int) -> None:
        shape = self._case.shape
        back = np.argsort(order_of(seed, shape))
        in_order = {name: shuffled(array, back, shape) for name, array in outputs.items()}
        verdict = compare(self._session.launch.spec, golden, in_order, self._asked())
        if verdict.status != "pass":
            self._wrong.append(_words(verdict))

    def _asked(self) -> tuple[str, ...]:
        """The outputs of this part of the case: of both passes in one, those with a cotangent, and the gradients."""
        case, given = self._case, self._goldens[0].inputs
        gradients = tuple(name for name in case.outputs if name not in case.made)
        with_cotangent = tuple(name for name in case.made if f"d{name}" in given)
        return {"forward": case.made, "backward": gradients, "both": with_cotangent + gradients}[self._part]

    def row(self) -> Row:
        """What the turns come to; the first has warmed the port up, and does not count."""
        timing = None if self._reason else timing_of(self._turns[1:], self._n_bytes)
        return Row(self._session.launch.spec, self._case, self._part, tuple(self._faults()), timing, self._reason)

    def _faults(self) -> Iterator[str]:
        """What is wrong, in words; what a port is expected to do wrong is wrong, too."""
        if failing := [verdict for verdict in self._quick if self._fails(verdict)]:
            yield f"{len(failing)} of {len(self._quick)} quick cases fail, such as {failing[0].case.id}: {_words(failing[0])}"
        if self._fails(self._own):
            yield f"wrong in this shape: {_words(self._own)}"
        elif self._wrong:
            yield f"wrong when it is timed, {len(self._wrong)} times: {self._wrong[0]}"

    def _fails(self, verdict: Verdict) -> bool:
        """Whether an output of this part is wrong, or there is none; a backward pass whose y is wrong is wrong."""
        names = verdict.case.made if self._part == "forward" else tuple(verdict.case.outputs)
        wrong = not verdict.outputs or any(not each.passes for each in verdict.outputs if each.output in names)
        return verdict.status not in ("pass", "skip") and wrong


def _words(verdict: Verdict) -> str:
    """Why a verdict is no pass."""
    outside = [f"{each.outside} of {each.size} elements of {each.output}" for each in verdict.outputs if not each.passes]
    return verdict.message or ", ".join(outside)
