"""The journey of a time: the quick cases are judged, then the shape's own; ports are timed in turns; samples are judged."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from random import SystemRandom

import numpy as np

from conformance.judging.compare import compare
from conformance.ops.cases import Names, is_of
from conformance.ops.golden import Golden, compute
from conformance.ops.quick import QUICK
from conformance.ops.shapes import shaped
from conformance.port.launch import Launch
from conformance.port.protocol import Hello, Part, Repeated
from conformance.port.session import NoAnswer, Session
from conformance.port.timing import rolled
from conformance.question.case import Case
from conformance.running.runner import Examination, unsupported
from conformance.tools.speed.figures import Row, compared, figures

Array = np.ndarray
DTYPES = ("float32", "bfloat16")
SHAPES = {"cpu": ("2048x1024",)}
LARGE = ("8192x4096",)  # elsewhere: more than the cache of a GPU holds
SETS = 2  # of inputs, which take turns, their rows shifted by chance
TURNS = 5  # of every port; another one before warms it up, and does not count
SECONDS, FEWEST, MOST = 0.2, 4, 40  # what one turn should take, and how many calls it has
KEPT = 2  # answers of every turn that are judged


@dataclass(slots=True)
class Contender:
    """A port that is timed: its process, and what was found wrong with it in an op and a dtype."""

    session: Session
    seed: int
    faults: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    @property
    def spec(self) -> str:
        """Its name."""
        return self.session.launch.spec

    @property
    def hello(self) -> Hello:
        """What it says of itself."""
        return self.session.hello

    def examine(self, exact: Golden) -> list[str]:
        """What is wrong with it: in the quick cases of a case's op and dtype, once, and in the case itself."""
        kind = exact.case.op, exact.case.dtype
        if kind not in self.faults:
            cases = [case for case in QUICK if (case.op, case.dtype) == kind]
            examined = Examination(self.session, self.seed)
            for case in cases:
                examined.judge(case)
            judged = [verdict for verdict in examined.verdicts if verdict.status != "skip"]
            failed = [verdict for verdict in judged if verdict.status in ("fail", "error")]
            first = f", {failed[0].case.id} first" if failed else ""
            self.faults[kind] = (f"{len(failed)} of {len(judged)} quick cases fail{first}",) if failed else ()
        return [*self.faults[kind], *self._judged(exact)]

    def _judged(self, exact: Golden) -> list[str]:
        try:
            answer = self.session.ask(exact.case, exact.inputs)
        except NoAnswer as none:
            return [f"no answer: {none}"]
        asked = tuple(name for name in exact.case.outputs if name in answer.outputs)
        fault = fault_of(self.spec, exact, answer.outputs, asked)
        overwrote = set(answer.overwrote or ()) - set(self.hello.overwrites)
        return [f"the shape's own answer: {fault}"] * bool(fault) + [f"overwrites {', '.join(sorted(overwrote))}"] * bool(
            overwrote
        )


def cases_of(shapes: Sequence[str], ops: Names, dtypes: Names, ports: Sequence[Hello]) -> tuple[Case, ...]:
    """A case for every op, dtype and shape, in the first dialect that every port has. Raises `ShapeError`."""
    chosen: dict[tuple[str, str, str], Case] = {}
    for shape in shapes:
        for case in shaped(shape):
            if is_of(case, ops, dtypes or DTYPES) and not any(unsupported(case, hello) for hello in ports):
                chosen.setdefault((shape, case.op, case.dtype), case)
    return tuple(chosen.values())


def time_ports(
    launches: Sequence[Launch],
    shapes: Sequence[str],
    ops: Names,
    dtypes: Names,
    seed: int,
    on_case: Callable[[str], None] = lambda id_: None,
) -> list[Row]:
    """Judge and time one port, or two in turns. Raises `PortFailure` where one cannot be started, `ShapeError` for a shape.

    `on_case` is called with the id of each case before it is asked.
    """
    rows = list[Row]()
    with ExitStack() as stack:
        contenders = [Contender(stack.enter_context(Session(launch)), seed) for launch in launches]
        for case in cases_of(shapes, ops, dtypes, [each.hello for each in contenders]):
            on_case(case.id)
            rows += time_case(contenders, case, seed)
    return rows


def time_case(contenders: Sequence[Contender], case: Case, seed: int) -> list[Row]:
    """Both parts of one case: the forward pass, and the backward pass alone, or the two together where it cannot be parted."""
    goldens = [compute(case, seed + number) for number in range(SETS)]
    faults = {each.spec: each.examine(goldens[0]) for each in contenders}
    rows = _time_part(contenders, goldens, "forward", faults)
    if len(case.outputs) > len(case.made) and all(each.hello.gradients for each in contenders):
        backward = _time_part(contenders, goldens, "backward", faults)
        rows += backward if all(row.timing for row in backward) else _time_part(contenders, goldens, "both", faults)
    return rows


def _time_part(contenders: Sequence[Contender], goldens: list[Golden], part: Part, faults: dict[str, list[str]]) -> list[Row]:
    turns: dict[str, list[Repeated]] = {each.spec: [] for each in contenders}
    found = {spec: list(of_port) for spec, of_port in faults.items()}
    reasons: dict[str, str] = {}
    for _ in range(TURNS + 1):
        for each in contenders:
            if each.spec in reasons:
                continue
            try:
                repeated, wrong = _turn(each, goldens, part, turns[each.spec])
            except NoAnswer as none:
                reasons[each.spec] = str(none)
                continue
            turns[each.spec].append(repeated)
            found[each.spec] += wrong
    case = goldens[0].case
    timings = {spec: figures(of_port[1:], goldens[0], part) for spec, of_port in turns.items() if spec not in reasons}
    rows = (
        Row(spec, case, part, tuple(dict.fromkeys(found[spec])), timings.get(spec), reasons.get(spec, "")) for spec in turns
    )
    return compared(list(rows))


def _turn(contender: Contender, goldens: list[Golden], part: Part, before: list[Repeated]) -> tuple[Repeated, list[str]]:
    """So many calls as take `SECONDS`, and what is wrong with the answers that are judged. Raises `NoAnswer`."""
    case, spec = goldens[0].case, contender.spec
    taken = statistics.median(before[-1].seconds) if before else SECONDS
    calls = max(FEWEST, min(MOST, round(SECONDS / max(taken, 1e-9))))
    chance = SystemRandom()  # the port is told neither the rows nor the answers, and cannot know them
    kept = sorted(chance.sample(range(calls), KEPT))
    shifts = [chance.randrange(prod(case.shape[:-1])) for _ in range(calls)]
    repeated = contender.session.repeat(case, [each.inputs for each in goldens], part, shifts, kept)
    overwrote = repeated.overwrote - set(contender.hello.overwrites)
    wrong = [f"a timed call overwrites {', '.join(sorted(overwrote))}"] * bool(overwrote)
    for number in kept:
        made = {name.partition(".")[2]: array for name, array in repeated.outputs.items() if name.startswith(f"{number}.")}
        back = {name: rolled(array, -shifts[number], case.shape) for name, array in made.items()}
        golden = goldens[number % len(goldens)]
        asked = {"forward": case.made, "both": tuple(case.outputs)}.get(part, tuple(case.outputs)[len(case.made) :])
        fault = fault_of(spec, golden, back, asked)
        wrong += [f"a timed {part} call answers wrong: {fault}"] * bool(fault)
    return replace(repeated, outputs={}), wrong


def fault_of(spec: str, golden: Golden, outputs: dict[str, Array], asked: tuple[str, ...]) -> str:
    """What is wrong with some outputs, in words; empty if nothing is."""
    verdict = compare(spec, golden, outputs, asked)
    if verdict.status == "pass":
        return ""
    outside = [f"{each.outside} of {each.elements} elements of {each.output}" for each in verdict.outputs if not each.passes]
    return verdict.message or ", ".join(outside)
