"""Whether a case that fails does so by itself: asked again, alone, in a fresh process."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from conformance.judging.compare import Verdict
from conformance.port.launch import Launch
from conformance.port.process import Family
from conformance.question.case import Case
from conformance.report.report import CaseEntry, Cause, Report
from conformance.running.runner import run_port

MOST = 3  # causes whose examples are asked again: a process must start for each

Ask = Callable[[str, Case], Verdict | None]
"""Asks a port, by its spec, one case alone; None where the port could not be run."""


def asked_again(report: Report, cases: Iterable[Case], ask: Ask) -> Report:
    """The report with what became of the first examples that no mistake explains, when they were asked alone.

    A mistake that explains numbers makes them whatever was asked before, so its example is not asked again. Nor is one that
    ended the port or hung: that took time enough.
    """
    by_id = {case.id: case for case in cases}
    doubtful = [cause for cause in report.causes if cause.evidence is None and _was_answered(report.example(cause))][:MOST]
    return replace(report, causes=tuple(_asked(cause, by_id, ask) if cause in doubtful else cause for cause in report.causes))


def alone(launches: Iterable[Launch], seed: int) -> Ask:
    """Asks a port one case in a process of its own, which ends with the answer."""
    by_spec = {launch.spec: launch for launch in launches}

    def ask(port: str, case: Case) -> Verdict | None:
        family = Family()
        try:
            run = run_port(by_spec[port], [case], seed, family=family)
        finally:
            family.end()
        return run.verdicts[0] if run.verdicts else None

    return ask


def _was_answered(example: CaseEntry) -> bool:
    """Whether the port returned numbers, or raised an exception."""
    return example.status == "fail" or bool(example.detail)


def _asked(cause: Cause, cases: Mapping[str, Case], ask: Ask) -> Cause:
    verdict = ask(cause.port, cases[cause.example])
    return replace(cause, reproduces=verdict.status != "pass") if verdict else cause
