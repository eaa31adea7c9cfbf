"""One verdict in words, as soon as it is there: for a test that fails, when the others are still to come."""

import time
from math import prod

from conformance.judging.asked import LARGE
from conformance.judging.compare import Verdict
from conformance.judging.diagnose import diagnose
from conformance.judging.diagnosis import Diagnosis
from conformance.mistakes import Mistake
from conformance.ops.table import OPS
from conformance.report.building import assemble, entry, explained
from conformance.report.report import PortEntry, Settings
from conformance.report.words import details

SECONDS = 30.0  # for diagnoses of single cases, all in all; what was found before is tried first, and costs next to nothing


class Teller:
    """Tells failing verdicts one at a time.

    What one case alone shows is tried on the next: a port makes the same mistake everywhere. The whole catalogue is tried on
    small cases of norms, while there is time.
    """

    def __init__(self, settings: Settings, argument: str) -> None:
        self._settings, self._argument = settings, argument
        self._found: dict[str, tuple[Mistake, ...]] = {}
        self._spent = 0.0

    def tell(self, verdict: Verdict, *omitted: str) -> str:
        """What went wrong in one case: a line for what it was, then what tells it, but for the details `omitted`."""
        diagnoses, examined = self._diagnose(verdict) if verdict.status == "fail" else ((), True)
        port = PortEntry(verdict.port, self._argument, None)
        made = [explained(verdict.port, diagnosis) for diagnosis in diagnoses]
        report = assemble(self._settings, 0.0, [port], [entry(verdict)], made)
        paragraphs: list[str] = []
        for cause in report.causes:
            lines = [(label, words) for label, words in details(report, cause) if label not in ("example", *omitted)]
            what = cause.what if cause.evidence or verdict.message or examined else _outside(verdict)
            paragraphs.append("\n".join([what, *(f"  {label:<11} {words}" for label, words in lines)]))
        return "\n".join(paragraphs)

    def _diagnose(self, verdict: Verdict) -> tuple[tuple[Diagnosis, ...], bool]:
        """The mistakes that explain a failing verdict, and whether all that are known were tried."""
        found = self._found.get(verdict.case.op, ())
        diagnoses = diagnose((verdict,), self._settings.seed, found) if found else ()
        small = not OPS[verdict.case.op].costly and prod(verdict.case.shape) <= LARGE
        if diagnoses or not small or self._spent > SECONDS:
            return diagnoses, False
        began = time.monotonic()
        diagnoses = diagnose((verdict,), self._settings.seed)
        self._spent += time.monotonic() - began
        self._found[verdict.case.op] = (*found, *(diagnosis.mistake for diagnosis in diagnoses))
        return diagnoses, True


def _outside(verdict: Verdict) -> str:
    names = ", ".join(output.output for output in verdict.judged if not output.passes)
    return f"{verdict.case.op}: {names} outside the intervals"
