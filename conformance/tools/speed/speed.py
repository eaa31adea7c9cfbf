"""The journey of a time: a port is judged, then timed in turns with another; some answers of the timed calls are judged."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
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
    """A port that is timed."""

    session: Session
    seed: int
    _quick: dict[tuple[str, str], list[Verdict]] = field(default_factory=dict)

    @property
    def spec(self) -> str:
        """Its name."""
        return self.session.launch.spec

    def quick(self, case: Case) -> list[Verdict]:
        """The verdicts on the quick cases of a case's op and dtype, which are asked once."""
        kind = case.op, case.dtype
        if kind not in self._quick:
            examined = Examination(self.session, self.seed)
            asked = [examined.judge(each) for each in QUICK if (each.op, each.dtype) == kind]
            self._quick[kind] = [verdict for verdict in asked if verdict.status != "skip"]
        return self._quick[kind]


def time_ports(
    launches: Sequence[Launch], asked: Iterable[Case], seed: int, on_case: Callable[[str], None] = lambda id_: None
) -> list[Row]:
    """Judge and time one port, or two in turns. Raises `PortFailure` where one cannot be started.

    Of the cases `asked`, each op, dtype and shape is timed in the first dialect that every port has. `on_case` is called with
    the id of each before it is asked.
    """
    rows = list[Row]()
    with ExitStack() as stack:
        contenders = [Contender(stack.enter_context(Session(launch)), seed) for launch in launches]
        chosen: dict[tuple[str, str, tuple[int, ...]], Case] = {}
        for case in asked:
            if not any(unsupported(case, each.session.hello) for each in contenders):
                chosen.setdefault((case.op, case.dtype, case.shape), case)
        for case in chosen.values():
            on_case(case.id)
            rows += time_case(contenders, case, seed)
    return rows


def time_case(contenders: Sequence[Contender], case: Case, seed: int) -> list[Row]:
    """The forward pass of a case, and the backward pass alone or, where some port has none apart, the two together."""
    goldens = [compute(case, seed + number) for number in range(SETS)]
    own = {each.spec: judge(each.session, goldens[0]) for each in contenders}
    rows = _time_part(contenders, goldens, "forward", own)
    if not all(each.session.hello.gradients for each in contenders):
        return rows
    backward = _time_part(contenders, goldens, "backward", own)
    return rows + (backward if all(row.timing for row in backward) else _time_part(contenders, goldens, "both", own))


def _time_part(contenders: Sequence[Contender], goldens: list[Golden], part: Part, own: dict[str, Verdict]) -> list[Row]:
    case = goldens[0].case
    turns: dict[str, list[Repeated]] = {each.spec: [] for each in contenders}
    wrong: dict[str, list[str]] = {each.spec: [] for each in contenders}
    reasons: dict[str, str] = {spec: verdict.message for spec, verdict in own.items() if verdict.status in ("skip", "error")}
    for _ in range(TURNS + 1):
        for each in contenders:
            if each.spec in reasons:
                continue
            try:
                turns[each.spec].append(_turn(each, goldens, part, turns[each.spec], wrong[each.spec]))
            except NoAnswer as none:
                reasons[each.spec] = str(none)
    rows = list[Row]()
    for each in contenders:
        faults = tuple(_faults(each.quick(case), own[each.spec], part, wrong[each.spec]))
        if each.spec in reasons:
            rows.append(Row(each.spec, case, part, faults, reason=reasons[each.spec]))
        else:
            rows.append(Row(each.spec, case, part, faults, timing_of(turns[each.spec][1:], floor(goldens[0], part))))
    return compared(rows)


def _turn(contender: Contender, goldens: list[Golden], part: Part, before: list[Repeated], wrong: list[str]) -> Repeated:
    """So many calls as take `SECONDS`; what is wrong with the answers that are judged joins `wrong`. Raises `NoAnswer`."""
    case = goldens[0].case
    taken = statistics.median(before[-1].seconds) if before else SECONDS
    calls = max(FEWEST, min(MOST, round(SECONDS / max(taken, 1e-9))))
    chance = SystemRandom()  # a port cannot know which rows come, nor which answers are judged
    seeds, kept = [chance.getrandbits(63) for _ in range(calls)], sorted(chance.sample(range(calls), KEPT))
    asked = _asked(goldens[0], part)
    how = {"part": part, "seeds": seeds, "kept": kept, "n_bytes": floor(goldens[0], part)}
    repeated = contender.session.repeat(case, [each.inputs for each in goldens], asked, **how)
    overwrote = set(repeated.overwrote) - set(contender.session.hello.overwrites)
    wrong += [f"overwrites {', '.join(sorted(overwrote))}"] * bool(overwrote)
    for number in kept:
        back = np.argsort(order_of(seeds[number], case.shape))
        made = {name.partition(".")[2]: array for name, array in repeated.outputs.items() if name.startswith(f"{number}.")}
        outputs = {name: shuffled(array, back, case.shape) for name, array in made.items()}
        verdict = compare(contender.spec, goldens[number % SETS], outputs, asked)
        wrong += [_words(verdict)] * (verdict.status != "pass")
    repeated.outputs = {}
    return repeated


def _asked(golden: Golden, part: Part) -> tuple[str, ...]:
    """The outputs of a part of a case: of both passes in one, what has a cotangent, and the gradients."""
    made = tuple(name for name in golden.case.made if part == "forward" or f"d{name}" in golden.inputs)
    gradients = tuple(name for name in golden.case.outputs if name not in golden.case.made)
    return {"forward": made, "backward": gradients, "both": made + gradients}[part]


def _faults(quick: Sequence[Verdict], own: Verdict, part: Part, timed: list[str]) -> Iterator[str]:
    """What is wrong with a part of a port, in words; what it is expected to do wrong is wrong, too."""
    failing = [verdict for verdict in quick if _fails(verdict, part)]
    if failing:
        yield f"{len(failing)} of {len(quick)} quick cases fail, such as {failing[0].case.id}: {_words(failing[0])}"
    if _fails(own, part):
        yield f"wrong in this shape: {_words(own)}"
    elif timed:
        yield f"wrong when it is timed, {len(timed)} times: {timed[0]}"


def _fails(verdict: Verdict, part: Part) -> bool:
    """Whether an output of this part is wrong, or there is none; a backward pass whose y is wrong is wrong."""
    names = verdict.case.made if part == "forward" else tuple(verdict.case.outputs)
    wrong = not verdict.outputs or any(not each.passes for each in verdict.outputs if each.output in names)
    return verdict.status not in ("pass", "skip") and wrong


def _words(verdict: Verdict) -> str:
    """Why a verdict is no pass."""
    outside = [f"{each.outside} of {each.size} elements of {each.output}" for each in verdict.outputs if not each.passes]
    return verdict.message or ", ".join(outside)
