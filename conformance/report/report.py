"""The report as data: the matrix, the causes, and whether it all conforms."""

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from conformance.block.taps import TAP
from conformance.case import OPS
from conformance.compare import OutputVerdict, Status, Verdict
from conformance.diagnose import Diagnosis, diagnose
from conformance.rounding import DTYPES
from conformance.runner import PortRun
from conformance.session import NOT_ASKED

NAMED = 4  # outputs that are named in one line

CONFORMS, FAILS, NOT_RUN = 0, 1, 3
"""Exit statuses; 2 is wrong usage."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A port's verdicts for one op and dtype: how many of each status, and the largest error ratio not expected to fail."""

    statuses: Counter[str]
    ratio: float

    @property
    def conforms(self) -> bool:
        """Whether everything judged passed."""
        return not (self.statuses["fail"] or self.statuses["error"])


@dataclass(frozen=True, slots=True)
class Cause:
    """What one port did wrong, once, for all the cases that show it.

    `what` is in words; `evidence` says how well a known mistake agrees, and is empty where none does; `runner_up` is the
    next best. `dialect`: it is what another dialect does, and right there.
    """

    port: str
    what: str
    verdicts: tuple[Verdict, ...]
    evidence: str = ""
    runner_up: str = ""
    dialect: bool = False

    @property
    def example(self) -> Verdict:
        """The small case in which a value is furthest off, for a person to look at."""
        return min(self.verdicts, key=lambda verdict: (not verdict.case.has_fixture, -_visibility(verdict)))

    @property
    def example_output(self) -> OutputVerdict | None:
        """The stage of the example that is at fault, or the output that is furthest off; None where nothing was judged."""
        off = (output for output in self.example.outputs if output.outside)
        return self.example.parts_at or max(off, key=_deviation, default=None)


@dataclass(frozen=True)
class Report:
    """All of a run: the ports in the order asked, the settings that repeat it, and every verdict.

    `arguments` maps a port to what names it on the command line, where that is not its own name; `cases` is the file that the
    cases are from, empty if they are the kit's own.
    """

    runs: tuple[PortRun, ...]
    seed: int
    device: str
    mode: str
    seconds: float
    arguments: dict[str, str] = field(default_factory=dict)
    cases: str = ""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdicts of all ports."""
        return tuple(verdict for run in self.runs for verdict in run.verdicts)

    @property
    def matrix(self) -> dict[tuple[str, str, str], Cell]:
        """(port, op, dtype) to its cell, in the order of the tables; only what was asked for."""
        groups: dict[tuple[str, str, str], list[Verdict]] = {
            (run.spec, op, dtype): [] for run in self.runs for op in OPS for dtype in DTYPES
        }
        for verdict in self.verdicts:
            groups[verdict.port, verdict.case.op, verdict.case.dtype].append(verdict)
        return {
            key: Cell(
                Counter(verdict.status for verdict in group),
                max((verdict.ratio for verdict in group if verdict.status != "expected"), default=0.0),
            )
            for key, group in groups.items()
            if group
        }

    @cached_property
    def causes(self) -> tuple[Cause, ...]:
        """What went wrong: known mistakes first, then what none explains."""
        mistakes: dict[tuple[str, str], list[Diagnosis]] = {}
        rest: dict[tuple[str, tuple[str, ...]], list[Verdict]] = {}
        for run in self.runs:
            explained: set[str] = set()
            for op in OPS:
                for diagnosis in diagnose(tuple(v for v in run.verdicts if v.case.op == op), self.seed):
                    mistakes.setdefault((run.spec, diagnosis.mistake.id), []).append(diagnosis)
                    explained |= {verdict.case.id for verdict in diagnosis.explained}
            for verdict in run.verdicts:
                if verdict.status in ("fail", "error") and (verdict.message or verdict.case.id not in explained):
                    rest.setdefault((run.spec, _kind(verdict)), []).append(verdict)
        diagnosed = [known(port, diagnoses) for (port, _), diagnoses in mistakes.items()]
        others = [unexplained(port, group) for (port, _), group in rest.items()]
        last = [cause for cause in others if cause.what == NOT_ASKED]
        return (*sorted(diagnosed, key=_size), *sorted((c for c in others if c not in last), key=_size), *last)

    def reasons(self, status: Status) -> dict[str, Counter[str]]:
        """Port to the reasons it gave for verdicts of one status, `skip` or `expected`, with the number of cases."""
        reasons = {run.spec: Counter(v.message for v in run.verdicts if v.status == status) for run in self.runs}
        return {port: counted for port, counted in reasons.items() if counted}

    @property
    def exit_status(self) -> int:
        """0 conforms; 1 does not; 3 a port could not be run, or not one of its cases was judged."""
        if any(all(verdict.status in ("skip", "expected") for verdict in run.verdicts) for run in self.runs):
            return NOT_RUN
        return CONFORMS if all(cell.conforms for cell in self.matrix.values()) else FAILS

    def command(self, verdict: Verdict) -> str:
        """The command that repeats one verdict."""
        port = self.arguments.get(verdict.port, shlex.quote(verdict.port))
        options = [f"--cases {shlex.quote(self.cases)}"] if self.cases else []
        options += [f"--case '{verdict.case.id}'"]
        options += [f"--seed {self.seed}"] if self.seed else []
        options += [f"--device {shlex.quote(self.device)}"] if self.device != "cpu" else []
        options += [f"--mode {self.mode}"] if self.mode != "jit" else []
        return " ".join(["conformance run", port, *options])


def known(port: str, diagnoses: Sequence[Diagnosis]) -> Cause:
    """One mistake as a cause, as it was found in one op or more."""
    mistake = diagnoses[0].mistake
    agreeing, judged = sum(d.agreeing for d in diagnoses), sum(d.judged for d in diagnoses)
    verdicts = tuple(verdict for diagnosis in diagnoses for verdict in diagnosis.explained)
    residual = max(diagnosis.residual for diagnosis in diagnoses)
    outputs, failing = sum(d.outputs for d in diagnoses), sum(d.failing for d in diagnoses)
    evidence = (
        f"{mistake.id} agrees with {agreeing} of {judged} cases and explains {outputs} of {failing} failing outputs, "
        f"to within {residual:.2f} tolerances"
    )
    others = [d.runner_up for d in diagnoses if d.runner_up]
    runner_up = max(others, key=lambda other: other[1], default=None)
    return Cause(
        port,
        f"speaks another dialect: {mistake.sentence}" if mistake.dialect else mistake.sentence,
        verdicts,
        evidence,
        f"{runner_up[0].id}, which explains {runner_up[1]}" if runner_up else "",
        mistake.dialect,
    )


def unexplained(port: str, group: Sequence[Verdict]) -> Cause:
    """Failures of one op in the same outputs, with what they expose where that is one thing; or errors of one message."""
    first = group[0]
    if first.message:
        return Cause(port, first.message, tuple(group))
    what = f"{first.case.op}: {_in_short(_failing_outputs(first))} outside the intervals; no known mistake explains it"
    if first.case.exposes and len({verdict.case.name for verdict in group}) == 1:
        what += f" ({first.case.name} exposes {first.case.exposes})"
    return Cause(port, what, tuple(group))


def _kind(verdict: Verdict) -> tuple[str, ...]:
    return (verdict.message,) if verdict.message else (verdict.case.op, *_failing_outputs(verdict)[:1])


def _failing_outputs(verdict: Verdict) -> list[str]:
    """What is outside its interval; of the intermediates only the first, which the others may follow from."""
    first = [verdict.parts_at.output.replace(TAP, "the stage ")] if verdict.parts_at else []
    return first + [output.output for output in verdict.outputs if output.outside]


def _in_short(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= NAMED else f"{', '.join(names[:NAMED])} and {len(names) - NAMED} others"


def _visibility(verdict: Verdict) -> float:
    return max((_deviation(output) for output in verdict.judged if output.outside), default=0.0)


def _deviation(output: OutputVerdict) -> float:
    """How far the worst element is off, relative to what was expected and at most 1; little where one is not finite."""
    if output.worst is None:
        return 0.0
    off = abs(output.worst.actual - output.worst.expected) / max(abs(output.worst.expected), 1e-300)
    return min(off, 1.0) if math.isfinite(off) else 0.01


def _size(cause: Cause) -> int:
    return -len(cause.verdicts)
