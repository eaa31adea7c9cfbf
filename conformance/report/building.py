"""Runs to a report: diagnosed once, here."""

import hashlib
import shlex
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import conformance
from conformance.judging.compare import OutputVerdict, Verdict
from conformance.judging.diagnose import diagnose
from conformance.judging.diagnosis import Diagnosis
from conformance.judging.parting import where
from conformance.numbers.rounding import DTYPES
from conformance.ops.norms.cases import NormCase
from conformance.ops.ranks import least_collectives
from conformance.ops.table import OPS
from conformance.question.case import Case
from conformance.report.causes import Explained, causes_of
from conformance.report.diagnosing import is_diagnosed
from conformance.report.pattern import places, traits
from conformance.report.report import (
    CONFORMS,
    FAILS,
    FORMAT,
    NOT_RUN,
    CaseEntry,
    Cell,
    CollectivesEntry,
    Evidence,
    OutputEntry,
    PortEntry,
    Report,
    Settings,
)
from conformance.report.spread import errors
from conformance.running.runner import PortRun

DIALECT = "speaks another dialect: "


def build(
    runs: Iterable[PortRun],
    settings: Settings,
    seconds: float = 0.0,
    diagnosed: Callable[[Sequence[Verdict], int], Sequence[Diagnosis]] | None = None,
) -> Report:
    """The report on some runs. `diagnosed` may know what explains an op's failures already."""
    runs = tuple(runs)
    ports = [PortEntry(run.spec, run.argument or shlex.quote(run.spec), run.hello, run.failure) for run in runs]
    made: list[Explained] = []
    entries: list[CaseEntry] = []
    for run in runs:
        verdicts = run.verdicts
        for op in OPS:
            try:
                found = diagnose(
                    [verdict for verdict in verdicts if verdict.case.op == op and is_diagnosed(verdict)], settings.seed
                )
                made += [explained(run.spec, diagnosis) for diagnosis in found]
            except Exception as error:  # the verdicts stand, whatever is wrong with the diagnosis
                verdicts = tuple(_undiagnosed(verdict, error) if verdict.case.op == op else verdict for verdict in verdicts)
        entries += map(entry, verdicts)
    return assemble(settings, seconds, ports, entries, made)


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
        collectives=_collectives(verdict),
    )


def _collectives(verdict: Verdict) -> CollectivesEntry | None:
    if verdict.collectives is None or not isinstance(verdict.case, NormCase):
        return None
    forward, backward = least_collectives(verdict.case)
    return CollectivesEntry(verdict.collectives, forward + backward)


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
    causes = causes_of(settings, ports, verdicts, made)
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
