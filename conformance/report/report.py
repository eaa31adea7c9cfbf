"""The report as data: the matrix, the causes, and whether it all conforms."""

from collections import Counter
from dataclasses import dataclass
from math import prod

from conformance.cases import OPS
from conformance.compare import OutputVerdict, Verdict
from conformance.rounding import DTYPES
from conformance.runner import PortRun

CONFORMS, FAILS, NOT_RUN = 0, 1, 3
"""Exit statuses; 2 is wrong usage."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A port's verdicts for one op and dtype: how many of each status, and the largest error ratio."""

    statuses: Counter[str]
    ratio: float

    @property
    def conforms(self) -> bool:
        """Whether everything judged passed."""
        return not (self.statuses["fail"] or self.statuses["error"])


@dataclass(frozen=True, slots=True)
class Cause:
    """What one port did wrong, once, for all the cases that show it.

    `what` is in words; `smallest` is the one to reproduce first.
    """

    port: str
    what: str
    verdicts: tuple[Verdict, ...]

    @property
    def smallest(self) -> Verdict:
        """The verdict on the case with the fewest elements."""
        return min(self.verdicts, key=lambda verdict: prod(verdict.case.shape))

    @property
    def worst_output(self) -> OutputVerdict | None:
        """The output of the smallest case that is furthest off; None where there was nothing to judge."""
        return max((out for out in self.smallest.outputs if out.outside), key=lambda out: out.ratio, default=None)


@dataclass(frozen=True, slots=True)
class Report:
    """All of a run: the ports in the order asked, the settings that repeat it, and every verdict."""

    runs: tuple[PortRun, ...]
    seed: int
    device: str
    mode: str
    seconds: float

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
            key: Cell(Counter(v.status for v in group), max(v.ratio for v in group)) for key, group in groups.items() if group
        }

    @property
    def causes(self) -> tuple[Cause, ...]:
        """Failures gathered by what they expose, errors by what went wrong; those that show in most cases first."""
        groups: dict[tuple[str, str], list[Verdict]] = {}
        for verdict in self.verdicts:
            if verdict.status in ("fail", "error"):
                groups.setdefault((verdict.port, _what(verdict)), []).append(verdict)
        causes = [Cause(port, what, tuple(group)) for (port, what), group in groups.items()]
        return tuple(sorted(causes, key=lambda cause: -len(cause.verdicts)))

    @property
    def skips(self) -> Counter[tuple[str, str]]:
        """(port, reason) to the number of cases skipped for it."""
        return Counter((v.port, v.message) for v in self.verdicts if v.status == "skip")

    @property
    def exit_status(self) -> int:
        """0 conforms; 1 does not; 3 a port could not be run, or not one of its cases was judged."""
        if any(all(verdict.status == "skip" for verdict in run.verdicts) for run in self.runs):
            return NOT_RUN
        return CONFORMS if all(cell.conforms for cell in self.matrix.values()) else FAILS

    def command(self, verdict: Verdict) -> str:
        """The command that repeats one verdict."""
        port = f'--exec "{verdict.port}"' if " " in verdict.port else verdict.port
        options = [f"--case '{verdict.case.id}'"]
        options += [f"--seed {self.seed}"] if self.seed else []
        options += [f"--device {self.device}"] if self.device != "cpu" else []
        options += [f"--mode {self.mode}"] if self.mode != "jit" else []
        return " ".join(["conformance run", port, *options])


def _what(verdict: Verdict) -> str:
    if verdict.status == "error":
        return verdict.message
    return f"{verdict.case.name}: {verdict.case.exposes}"
