"""The report as data, and nothing but data: what is written as JSON, and what every page is rendered from (docs/report.md)."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from conformance.judging.compare import Element, Status
from conformance.numbers.rounding import DType
from conformance.ops.table import OpName
from conformance.port.protocol import Hello
from conformance.question.collectives import Collectives

FORMAT = 3

CONFORMS, FAILS, NOT_RUN = 0, 1, 3
"""Exit statuses; 2 is wrong usage."""
OFFLINE = "offline"  # the mode of outputs that were computed elsewhere


@dataclass(frozen=True, slots=True)
class Settings:
    """What repeats a run.

    `cases` is the file that the cases are from, `shape` the one shape that was asked for; both are empty if the cases are the
    kit's own. `quick` says that the quick ones alone were asked, `ranks` on how many processes each was. `asked` counts the
    cases that every port is asked, by all shards together, and `digest` is theirs: two reports with the same one are about the
    same questions.
    """

    seed: int
    device: str
    mode: str
    cases: str = ""
    asked: int = 0
    digest: str = ""
    shard: int = 1
    shards: int = 1
    shape: str = ""
    quick: bool = False
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class PortEntry:
    """A port: its spec, what names it on the command line, and what it says of itself; or why it could not be run."""

    port: str
    argument: str
    hello: Hello | None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A port's verdicts for one op and dtype: how many of each status, and the largest error ratio.

    Of what is not expected to fail, that is, where there is any.
    """

    port: str
    op: OpName
    dtype: DType
    statuses: dict[Status, int]
    ratio: float

    def count(self, *statuses: Status) -> int:
        """The number of verdicts that have one of these statuses."""
        return sum(self.statuses.get(status, 0) for status in statuses)

    @property
    def judged(self) -> int:
        """The number of verdicts that are not skips."""
        return sum(self.statuses.values()) - self.count("skip")

    @property
    def conforms(self) -> bool:
        """Whether everything judged passed, or did as expected."""
        return not self.count("fail", "error")


@dataclass(frozen=True, slots=True)
class Errors:
    """The errors of an output's elements by their classes (`conformance.report.spread`): how many are of each, and where.

    `counts` begins with the first class. `map` holds a string for every row of the output as a matrix (its last axis across),
    a letter for the class of every element, pooled: a letter stands for at most `pooled` rows and columns, and for the worst.
    """

    counts: tuple[int, ...]
    map: tuple[str, ...]
    pooled: tuple[int, int]


@dataclass(frozen=True, slots=True)
class OutputEntry:
    """One output or intermediate of one case, as an `OutputVerdict` has it; `errors` where one is outside."""

    output: str
    expected_dtype: str
    dtype: str
    shape: tuple[int, ...]
    ratio: float
    outside: int
    size: int
    worst: Element | None
    growth: float | None
    errors: Errors | None
    together: bool
    places: tuple[str, ...] = ()

    @property
    def is_off(self) -> bool:
        """Whether the values are wrong: an element is outside its interval, or all together are too far off."""
        return self.outside > 0 or not self.together

    @property
    def passes(self) -> bool:
        """Whether the dtype is the right one, every element admitted, and all of them together."""
        return self.dtype == self.expected_dtype and not self.is_off


@dataclass(frozen=True, slots=True)
class CollectivesEntry:
    """The collectives that a rank ran for its answer, and the least that the split needs."""

    run: Collectives
    least: Collectives


@dataclass(frozen=True, slots=True)
class CaseEntry:
    """What became of one case: `conformance.judging.compare.Verdict`, and of the case what a reader needs.

    `fixture`: it is among the committed golden fixtures, a small case. `parts_at` names in words the stage at fault of a block,
    and `traits` say what the case is like. `collectives` are those of a rank; None where they are not counted.
    """

    port: str
    case: str
    op: OpName
    dtype: DType
    shape: tuple[int, ...]
    exposes: str
    fixture: bool
    status: Status
    message: str
    detail: str
    parts_at: str
    outputs: tuple[OutputEntry, ...]
    taps: tuple[OutputEntry, ...]
    traits: tuple[str, ...] = ()
    collectives: CollectivesEntry | None = None

    @property
    def judged(self) -> tuple[OutputEntry, ...]:
        """Everything that was judged: the outputs, then the taps."""
        return self.outputs + self.taps

    @property
    def ratio(self) -> float:
        """The largest error ratio of all that was judged."""
        return max((output.ratio for output in self.judged), default=0.0)


@dataclass(frozen=True, slots=True)
class Evidence:
    """How well a known mistake agrees with a port's numbers, as `conformance.judging.diagnose.Diagnosis` has it.

    `where` names the outputs that have it, `right` those that pass although it would have changed them. `runner_up` is the
    next best, and explains `runner_up_outputs`; empty where there is none. `dialect`: the mistake is what another dialect does,
    and right there.
    """

    mistake: str
    dialect: bool
    agreeing: int
    judged: int
    outputs: int
    failing: int
    residual: float
    where: tuple[str, ...]
    right: tuple[str, ...]
    runner_up: str
    runner_up_outputs: int


@dataclass(frozen=True, slots=True)
class Cause:
    """What one port did wrong, once, for all the cases that show it.

    `what` is in words; `evidence` is there where a known mistake explains it. `example` is the case for a person to look at,
    `output` what is furthest off in it, or its stage at fault, empty where nothing was judged; `command` repeats it.
    `reproduces`: whether it does not pass when it is asked alone, in a fresh process; None where that was not tried.
    """

    port: str
    what: str
    evidence: Evidence | None
    cases: tuple[str, ...]
    dtypes: tuple[DType, ...]
    example: str
    output: str
    command: str
    reproduces: bool | None = None


@dataclass(frozen=True)
class Report:
    """All of a run: the ports in the order asked, every verdict, and what follows from them."""

    format: int
    conformance: str
    exit_status: int
    settings: Settings
    seconds: float
    ports: tuple[PortEntry, ...]
    matrix: tuple[Cell, ...]
    causes: tuple[Cause, ...]
    verdicts: tuple[CaseEntry, ...] = field(repr=False)

    @cached_property
    def entries(self) -> dict[tuple[str, str], CaseEntry]:
        """The verdicts by port and case."""
        return {(entry.port, entry.case): entry for entry in self.verdicts}

    def example(self, cause: Cause) -> CaseEntry:
        """The case in which a cause is shown."""
        return self.entries[cause.port, cause.example]

    def example_output(self, cause: Cause) -> OutputEntry | None:
        """What is furthest off there; None where nothing was judged."""
        return next((each for each in self.example(cause).judged if each.output == cause.output), None)

    def counts(self) -> dict[Status, int]:
        """How many verdicts there are of each status."""
        return total(self.matrix)

    def reasons(self, status: Status) -> dict[str, dict[str, int]]:
        """Port to the reasons it gave for verdicts of one status, `skip` or `expected`, with the number of cases."""
        reasons: dict[str, dict[str, int]] = {port.port: {} for port in self.ports}
        for entry in self.verdicts:
            if entry.status == status:
                counted = reasons[entry.port]
                counted[entry.message] = counted.get(entry.message, 0) + 1
        return {port: counted for port, counted in reasons.items() if counted}

    def command(self, port: str, case: str) -> str:
        """The command that repeats one verdict."""
        return command(self.settings, next(each.argument for each in self.ports if each.port == port), case)


def total(cells: Iterable[Cell]) -> dict[Status, int]:
    """How many verdicts of each status there are in some cells."""
    counts: dict[Status, int] = {}
    for cell in cells:
        for status, count in cell.statuses.items():
            counts[status] = counts.get(status, 0) + count
    return counts


def command(settings: Settings, argument: str, case: str) -> str:
    """The command that asks a port one case again."""
    options = [f"--cases {shlex.quote(settings.cases)}"] if settings.cases else []
    options += [f"--shape {settings.shape}"] if settings.shape else []
    options += [f"--case '{case}'"]
    options += [f"--seed {settings.seed}"] if settings.seed else []
    options += [f"--ranks {settings.ranks}"] if settings.ranks > 1 else []
    if settings.mode == OFFLINE:
        return " ".join(["conformance judge", argument, *options])
    options += [f"--device {shlex.quote(settings.device)}"] if settings.device != "cpu" else []
    options += [f"--mode {settings.mode}"] if settings.mode != "jit" else []
    return " ".join(["conformance run", argument, *options])
