"""`--json -`: a run told on stdout while it goes on, for a program that reads along."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from conformance.judging.compare import Verdict
from conformance.report import stream
from conformance.report.building import entry
from conformance.report.report import CaseEntry, Report

STDOUT = Path("-")


class Stream:
    """Writes a line for all that happens; it is told from the threads of the ports."""

    def __init__(self, ports: Sequence[str], cases: int) -> None:
        self._told: dict[tuple[str, str], CaseEntry] = {}
        self._lock = Lock()
        self._write(stream.begin(ports, cases))

    def verdict(self, verdict: Verdict) -> None:
        """Tell a verdict."""
        self._tell(entry(verdict))

    def report(self, report: Report) -> None:
        """Tell the causes and the end, and anew what has become of a case since."""
        for each in report.verdicts:
            if self._told.get((each.port, each.case)) != each:
                self._tell(each)
        for cause in report.causes:
            self._write(stream.cause(report, cause))
        self._write(stream.end(report))

    def _tell(self, each: CaseEntry) -> None:
        self._told[each.port, each.case] = each
        self._write(stream.verdict(each))

    def _write(self, line: str) -> None:
        with self._lock:
            print(line, flush=True)
