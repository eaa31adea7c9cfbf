"""The journey of a scoreboard: what is listed -> what is at hand -> run, and identified -> a row of scores."""

import shutil
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from conformance.numbers.rounding import DTYPES
from conformance.ops.norms.cases import ROW_NORMS
from conformance.ops.table import OPS
from conformance.port.launch import Launch, Mode
from conformance.port.naming import by_command
from conformance.port.process import PortFailure
from conformance.port.session import Session
from conformance.question.case import Case
from conformance.report.building import build
from conformance.report.report import CaseEntry, Report, Settings
from conformance.running.runner import NO_OP, run_ports
from conformance.tools.scoreboard.identify import identify_port

Direction = Literal["forward", "gradient"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "gradient")
LISTS = ("needs", "programs")


class ScoreboardError(ValueError):
    """A list of ports, or a file of scores, that cannot be read; the text names the field and the fix."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A port to be run: `port` as on the command line, or a program, `exec`; what it needs, modules and files or programs."""

    title: str
    port: str = ""
    exec: str = ""
    mode: Mode = "eager"
    needs: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()

    def launch(self, timeout: float) -> Launch:
        """What it takes to start it, with so many seconds for an answer."""
        launch = by_command(self.exec) if self.exec else Launch(self.port)
        return replace(launch, mode=self.mode, timeout=timeout)

    @property
    def missing(self) -> str:
        """What keeps it from being run here, in words; empty if nothing does."""
        modules = [name for name in self.needs if find_spec(name) is None]
        programs = [name for name in self.programs if not (shutil.which(name) or Path(name).exists())]
        return "; ".join([f"no module {name}" for name in modules] + [f"no program {name}" for name in programs])


@dataclass(frozen=True, slots=True)
class Score:
    """One op in one dtype, forward or gradient: how many cases are right, the largest ratio, and why the others are not.

    The ratio is that of the outputs which are wrong, or of all where none is; `reasons` counts the cases by what is said.
    """

    op: str
    dtype: str
    direction: Direction
    passed: int
    judged: int
    ratio: float
    reasons: dict[str, int]

    @property
    def conforms(self) -> bool:
        """Whether every case judged is as it should be, on record or not."""
        return self.passed == self.judged


@dataclass(frozen=True, slots=True)
class Row:
    """One implementation: its scores; or, where it was not run, why (`absent`)."""

    title: str
    argument: str
    mode: str
    absent: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    dialects: dict[str, tuple[str, ...]] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    not_asked: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scoreboard:
    """The rows, and what repeats them: the version of the kit, the seed, the date, and the machine in general words."""

    rows: tuple[Row, ...]
    conformance: str
    seed: int
    date: str
    machine: str

    @property
    def made(self) -> str:
        """When, where and by what it was made."""
        return f"{self.date}, {self.machine}, norm-conformance {self.conformance}, seed {self.seed}."


def read_list(path: Path) -> tuple[Listed, ...]:
    """The ports that a TOML file lists. Raises `ScoreboardError`."""
    try:
        tables: Any = tomllib.loads(path.read_text(encoding="utf-8")).get("port")
    except OSError as error:
        raise ScoreboardError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScoreboardError(f"{path}: {error}") from None
    if not (tables and isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
        raise ScoreboardError(f"{path}: no [[port]] in it")
    return tuple(_listed(path, number, table) for number, table in enumerate(tables, 1))


def _listed(path: Path, number: int, table: dict[str, Any]) -> Listed:
    where = f"{path}: [[port]] number {number}"
    unknown = table.keys() - Listed.__dataclass_fields__.keys()
    if unknown:
        raise ScoreboardError(f"{where}: no field {min(unknown)!r}; there are {', '.join(Listed.__dataclass_fields__)}")
    for name, value in table.items():
        strings: list[Any] = value if name in LISTS and isinstance(value, list) else [value]
        if (name in LISTS) != isinstance(value, list) or not all(isinstance(each, str) for each in strings):
            raise ScoreboardError(f"{where}: {name} must be a {'list of strings' if name in LISTS else 'string'}")
    if not table.get("title") or bool(table.get("port")) == bool(table.get("exec")):
        raise ScoreboardError(f"{where}: it needs a title, and a port or an exec")
    if table.get("mode", "eager") not in ("jit", "eager"):
        raise ScoreboardError(f"{where}: mode is {table['mode']!r}; it must be jit or eager")
    fields: dict[str, Any] = table | {name: tuple(table.get(name, ())) for name in LISTS}
    return Listed(**fields)


def score_all(
    listed: Iterable[Listed], cases: tuple[Case, ...], *, seed: int, timeout: float, on_row: Callable[[Row], None]
) -> tuple[Row, ...]:
    """A row for every port, one after the other; one that cannot be run costs its own row."""
    rows: list[Row] = []
    for each in listed:
        launch = each.launch(timeout)
        absent = Row(each.title, launch.argument, each.mode, each.missing)
        row = absent if each.missing else score(each.title, launch, cases, seed)
        rows.append(row)
        on_row(row)
    return tuple(rows)


def score(title: str, launch: Launch, cases: tuple[Case, ...], seed: int) -> Row:
    """Run a port over the cases, and ask it for its dialects."""
    report = build(run_ports([launch], cases, seed=seed), Settings(seed, launch.device, launch.mode))
    row, [port] = Row(title, launch.argument, launch.mode), report.ports
    if port.hello is None:
        return replace(row, absent=f"could not be run: {_in_short(port.failure)}")
    skipped = report.reasons("skip").get(launch.spec, {})
    return replace(
        row,
        versions=port.hello.versions,
        dialects=_dialects(launch) if set(port.hello.ops) & set(ROW_NORMS) else {},
        scores=scores(report),
        not_asked={reason: count for reason, count in skipped.items() if not reason.startswith(NO_OP)},
    )


def _in_short(failure: str) -> str:
    """How a port failed, and the last of its last words: a stack trace is no text for a table, and names a machine's paths."""
    first, *others = failure.strip().splitlines() or [""]
    return f"{first.partition(':')[0]}: {others[-1].strip()}" if others else first


def scores(report: Report) -> tuple[Score, ...]:
    """The verdicts on one port by op, dtype and direction; only what was judged."""
    why = {case: cause.what for cause in reversed(report.causes) for case in cause.cases}
    groups: dict[tuple[str, str], list[CaseEntry]] = {}
    for each in report.verdicts:
        if each.status != "skip":
            groups.setdefault((each.op, each.dtype), []).append(each)
    found = [
        _score(direction, groups[op, dtype], why)
        for op in OPS
        for dtype in DTYPES
        if (op, dtype) in groups
        for direction in DIRECTIONS
    ]
    return tuple(each for each in found if each.judged)


def _score(direction: Direction, entries: list[CaseEntry], why: dict[str, str]) -> Score:
    """Forward is the first output with the intermediates; the gradients are the other outputs. No outputs: both fail."""
    has_gradients = any(len(each.outputs) > 1 for each in entries)
    forward = direction == "forward"
    passed, judged, good, bad, reasons = 0, 0, 0.0, 0.0, Counter[str]()
    for each in entries:
        outputs = each.outputs[:1] + each.taps if forward else each.outputs[1:]
        if not outputs and (each.outputs or not (forward or has_gradients)):
            continue
        judged += 1
        wrong = [output for output in outputs if not output.passes]
        if wrong or not outputs or (each.status in ("fail", "error") and each.message):
            said = each.message.strip().partition("\n")[0]  # a table has a line for it, and a field's name is one
            reasons[said or why.get(each.case, "not explained")] += 1
            bad = max([bad, *(output.ratio for output in wrong or outputs)])
        else:
            passed += 1
            good = max([good, *(output.ratio for output in outputs)])
    ratio = good if passed == judged else bad
    return Score(entries[0].op, entries[0].dtype, direction, passed, judged, ratio, dict(sorted(reasons.items())))


def _dialects(launch: Launch) -> dict[str, tuple[str, ...]]:
    """What `conformance identify` finds of every norm in bfloat16, but for eps; what was not asked is left out."""
    try:
        with Session(launch) as session:
            found = identify_port(session, ROW_NORMS, ("bfloat16",))
    except PortFailure:
        return {}
    told = {
        op: tuple(dict.fromkeys(f.found for f in findings[:-1] if f.found != "not asked")) for op, findings in found.items()
    }
    return {op: names for op, names in told.items() if names}
