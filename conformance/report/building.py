"""Runs to a report: diagnosed once, here."""

import hashlib
import math
import re
import shlex
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from math import prod

import conformance
from conformance.judging.compare import OutputVerdict, Verdict
from conformance.judging.diagnose import Diagnosis, diagnose
from conformance.judging.parting import where
from conformance.numbers.rounding import DTYPES
from conformance.ops.block.taps import TAP
from conformance.ops.table import OPS
from conformance.port.session import NOT_ASKED
from conformance.question.case import Case
from conformance.report.counting import count_of
from conformance.report.pattern import places, shape_of, traits
from conformance.report.report import (
    CONFORMS,
    FAILS,
    FORMAT,
    NOT_RUN,
    CaseEntry,
    Cause,
    Cell,
    Evidence,
    OutputEntry,
    PortEntry,
    Report,
    Settings,
    command,
)
from conformance.report.spread import errors
from conformance.running.runner import PortRun

DIAGNOSED = 2**20  # elements of a case that is held against the mistakes: each makes a golden of its own
NAMED = 4  # outputs that are named in one line
NUMBER = re.compile(r"(\b(?:b?float|u?int|[bf]?[fsui]|fp)(?:8|16|32|64)\b)|0x[0-9a-fA-F]+|\d+")
"""A dtype, which tells one message from another; or an address or a number, which does not."""
DIALECT = "speaks another dialect: "

Explained = tuple[str, str, Evidence, tuple[str, ...]]
"""A mistake that a port made: the port, what was done in words, how well it agrees, and the cases that it explains."""


def build(runs: Iterable[PortRun], settings: Settings, seconds: float = 0.0, arguments: dict[str, str] | None = None) -> Report:
    """The report on some runs; `arguments` maps a port to what names it on the command line, where that is not its own name."""
    runs, named = tuple(runs), arguments or {}
    ports = [PortEntry(run.spec, named.get(run.spec, shlex.quote(run.spec)), run.hello, run.failure) for run in runs]
    made: list[Explained] = []
    entries: list[CaseEntry] = []
    for run in runs:
        verdicts = run.verdicts
        for op in OPS:
            try:
                found = diagnose(tuple(verdict for verdict in verdicts if _is_diagnosed(verdict, op)), settings.seed)
                made += [explained(run.spec, diagnosis) for diagnosis in found]
            except Exception as error:  # the verdicts stand, whatever is wrong with the diagnosis
                verdicts = tuple(_undiagnosed(verdict, error) if verdict.case.op == op else verdict for verdict in verdicts)
        entries += map(entry, verdicts)
    return assemble(settings, seconds, ports, entries, made)


def _is_diagnosed(verdict: Verdict, op: str) -> bool:
    return verdict.case.op == op and prod(verdict.case.shape) <= DIAGNOSED


def _undiagnosed(verdict: Verdict, error: Exception) -> Verdict:
    """A verdict whose diagnosis raised: a failing one says so, where it has nothing else to say."""
    if verdict.status != "fail" or verdict.message:
        return verdict
    raised = "".join(traceback.format_exception_only(error)).strip()
    return replace(verdict, message=f"outside the intervals; the diagnosis itself failed, please report it: {raised}")


def digest(cases: Iterable[Case]) -> str:
    """What tells one set of questions from another: their ids and how they are drawn, by this version of the kit."""
    return hashlib.sha256("\n".join([conformance.__version__, *map(repr, cases)]).encode()).hexdigest()[:16]


def entry(verdict: Verdict) -> CaseEntry:
    """A verdict as the report has it."""
    case = verdict.case
    return CaseEntry(
        port=verdict.port,
        case=case.id,
        op=case.op,
        dtype=case.dtype,
        shape=case.shape,
        exposes=case.exposes,
        fixture=case.has_fixture,
        status=verdict.status,
        message=verdict.message,
        detail=verdict.detail,
        parts_at=where(verdict) if verdict.status == "fail" else "",
        outputs=tuple(map(_output, verdict.outputs)),
        taps=tuple(map(_output, verdict.taps)),
        traits=traits(case) if verdict.judged else (),
    )


def _output(output: OutputVerdict) -> OutputEntry:
    return OutputEntry(
        output.output,
        output.expected_dtype,
        output.dtype,
        output.actual.shape,
        output.ratio,
        output.outside,
        output.size,
        output.worst,
        output.growth,
        errors(output.expected, output.actual) if output.expected else None,
        output.together,
        places(output),
    )


def explained(port: str, diagnosis: Diagnosis) -> Explained:
    """A diagnosis as the report has it."""
    mistake, runner_up = diagnosis.mistake, diagnosis.runner_up
    evidence = Evidence(
        mistake.id,
        mistake.dialect,
        diagnosis.agreeing,
        diagnosis.judged,
        diagnosis.outputs,
        diagnosis.failing,
        diagnosis.residual,
        diagnosis.where,
        diagnosis.right,
        runner_up[0].id if runner_up else "",
        runner_up[1] if runner_up else 0,
    )
    what = (DIALECT if mistake.dialect else "") + mistake.sentence
    return port, what, evidence, tuple(verdict.case.id for verdict in diagnosis.explained)


def assemble(
    settings: Settings,
    seconds: float,
    ports: Sequence[PortEntry],
    verdicts: Sequence[CaseEntry],
    made: Sequence[Explained],
) -> Report:
    """The report that follows from what the ports are, what became of their cases, and the mistakes they made."""
    matrix = _matrix(ports, verdicts)
    causes = _causes(settings, ports, verdicts, made)
    status = _exit_status(settings, ports, matrix)
    return Report(
        FORMAT,
        conformance.__version__,
        status,
        settings,
        round(seconds, 3),
        tuple(ports),
        tuple(matrix),
        tuple(causes),
        tuple(verdicts),
    )


def _matrix(ports: Sequence[PortEntry], verdicts: Iterable[CaseEntry]) -> list[Cell]:
    """A cell for every port, op and dtype that was asked for, in the order of the tables."""
    groups: dict[tuple[str, str, str], list[CaseEntry]] = {}
    for each in verdicts:
        groups.setdefault((each.port, each.op, each.dtype), []).append(each)
    return [
        Cell(
            port.port,
            op,
            dtype,
            dict(Counter(each.status for each in group)),
            max(each.ratio for each in _unexpected(group) or group),
        )
        for port in ports
        for op in OPS
        for dtype in DTYPES
        if (group := groups.get((port.port, op, dtype)))
    ]


def _unexpected(group: Sequence[CaseEntry]) -> list[CaseEntry]:
    """What was judged and not expected to fail."""
    return [each for each in group if each.status in ("pass", "fail", "error")]


def _exit_status(settings: Settings, ports: Iterable[PortEntry], matrix: Sequence[Cell]) -> int:
    """0 conforms; 1 does not; 3 a port could not be run, or not one of its cases was judged, unless another shard has some."""
    for port in ports:
        judged = any(cell.count("pass", "fail", "error") for cell in matrix if cell.port == port.port)
        if port.failure or (not judged and settings.shards == 1):
            return NOT_RUN
    return CONFORMS if all(cell.conforms for cell in matrix) else FAILS


def _causes(
    settings: Settings, ports: Iterable[PortEntry], verdicts: Sequence[CaseEntry], made: Iterable[Explained]
) -> list[Cause]:
    """What went wrong: known mistakes first, then what none explains; last what a port that had failed was not asked."""
    entries = {(each.port, each.case): each for each in verdicts}
    arguments = {port.port: port.argument for port in ports}
    mistakes: dict[tuple[str, str], list[Explained]] = {}
    for each in made:
        mistakes.setdefault((each[0], each[2].mistake), []).append(each)
    rest: dict[tuple[str, tuple[str, ...]], list[CaseEntry]] = {}
    known = {(port, case) for port, _, _, cases in made for case in cases}
    for each in verdicts:
        if each.status in ("fail", "error") and (each.message or (each.port, each.case) not in known):
            rest.setdefault((each.port, _kind(each)), []).append(each)

    def cause(what: str, evidence: Evidence | None, group: Sequence[CaseEntry]) -> Cause:
        example = min(group, key=lambda each: (not each.fixture, -_visibility(each)))
        off = (output for output in example.outputs if output.is_off)
        output = _parts_at(example) or max(off, key=_deviation, default=None)
        return Cause(
            example.port,
            what,
            evidence,
            tuple(each.case for each in group),
            tuple(dict.fromkeys(each.dtype for each in group)),
            example.case,
            output.output if output else "",
            command(settings, arguments[example.port], example.case),
        )

    diagnosed = [
        cause(group[0][1], _joined([each[2] for each in group]), [entries[port, id_] for each in group for id_ in each[3]])
        for (port, _), group in mistakes.items()
    ]
    passing = [each for each in verdicts if each.status == "pass"]
    others = [cause(_unexplained(group, _like(group[0], passing)), None, group) for group in rest.values()]
    last = [each for each in others if each.what == NOT_ASKED]
    return [*sorted(diagnosed, key=_size), *sorted((each for each in others if each not in last), key=_size), *last]


def _joined(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of one mistake, as it was found in one op, or one shard, or more."""
    best = max(parts, key=lambda part: part.runner_up_outputs)
    return replace(
        best,
        agreeing=sum(part.agreeing for part in parts),
        judged=sum(part.judged for part in parts),
        outputs=sum(part.outputs for part in parts),
        failing=sum(part.failing for part in parts),
        residual=max(part.residual for part in parts),
        where=_united(part.where for part in parts),
        right=_united(part.right for part in parts),
    )


def _united(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(names)))


def _like(entry: CaseEntry, among: Iterable[CaseEntry]) -> list[CaseEntry]:
    """Those of the same port and op."""
    return [each for each in among if (each.port, each.op) == (entry.port, entry.op)]


def _unexplained(group: Sequence[CaseEntry], passing: Sequence[CaseEntry]) -> str:
    """Failures of one op in the same outputs, with the shape of what fails; or errors of one message."""
    first = group[0]
    if first.message:
        others = len({each.message for each in group}) - 1
        return first.message + (f" (and {count_of(others, 'message')} with other numbers)" if others else "")
    what = f"{first.op}: {_in_short(_failing_outputs(first))} outside the intervals; {_why_unnamed(group)}"
    if first.exposes and len({_name(each) for each in group}) == 1:
        what += f" ({_name(first)} exposes {first.exposes})"
    shape = shape_of(group, passing)
    return f"{what}; it fails {shape}" if shape else what


def _why_unnamed(group: Sequence[CaseEntry]) -> str:
    if all(prod(each.shape) > DIAGNOSED for each in group):
        return "so large a case is not diagnosed: ask a smaller one"
    return "no known mistake explains it"


def _name(each: CaseEntry) -> str:
    return each.case.rpartition("/")[2]


def _kind(each: CaseEntry) -> tuple[str, ...]:
    return (
        (NUMBER.sub(lambda found: found[1] or "#", each.message),) if each.message else (each.op, *_failing_outputs(each)[:1])
    )


def _parts_at(each: CaseEntry) -> OutputEntry | None:
    """The first tap in data-flow order that does not pass: the stage at fault."""
    return next((tap for tap in each.taps if not tap.passes), None)


def _failing_outputs(each: CaseEntry) -> list[str]:
    """What is outside its interval; of the intermediates only the first, which the others may follow from."""
    stage = _parts_at(each)
    first = [stage.output.replace(TAP, "the stage ")] if stage else []
    return first + [output.output for output in each.outputs if output.is_off]


def _in_short(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= NAMED else f"{', '.join(names[:NAMED])} and {len(names) - NAMED} others"


def _visibility(each: CaseEntry) -> float:
    return max((_deviation(output) for output in each.judged if output.is_off), default=0.0)


def _deviation(output: OutputEntry) -> float:
    """How far the worst element is off, relative to what was expected and at most 1; little where one is not finite."""
    if output.worst is None:
        return 0.0
    off = abs(output.worst.actual - output.worst.expected) / max(abs(output.worst.expected), 1e-300)
    return min(off, 1.0) if math.isfinite(off) else 0.01


def _size(cause: Cause) -> int:
    return -len(cause.cases)
