"""Diagnosis beside a run: an op of a port is diagnosed as soon as its last case is judged, not when the last port has ended."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread

from conformance.judging.compare import Verdict
from conformance.judging.diagnose import diagnose
from conformance.judging.diagnosis import Diagnosis
from conformance.question.case import Case
from conformance.report.causes import too_large

Diagnoses = tuple[Diagnosis, ...]
Key = tuple[str, str]
"""A port and an op."""
Told = Callable[[str, str, Diagnosis], None]


def is_diagnosed(verdict: Verdict) -> bool:
    """Whether a case is small enough to be held against the mistakes."""
    return not too_large(verdict.case.shape)


class Diagnosing:
    """Takes verdicts as they come in, from any thread, and diagnoses each op of each port in a thread of its own.

    `on_diagnosis` is called from that thread, with the port, the op, and what was found. Called as `diagnose` is, it returns
    what it has found already, or diagnoses verdicts that it was not given, or that have changed since.
    """

    def __init__(self, cases: Iterable[Case], seed: int, on_diagnosis: Told = lambda port, op, diagnosis: None) -> None:
        self._place = {case.id: place for place, case in enumerate(cases)}
        self._asked = Counter(id_.partition("/")[0] for id_ in self._place)
        self._seed, self._told = seed, on_diagnosis
        self._verdicts: dict[Key, list[Verdict]] = {}
        self._found: dict[Key, tuple[list[Verdict], Future[Diagnoses]]] = {}
        self._lock = Lock()
        self._queue: SimpleQueue[Key] = SimpleQueue()
        # Not the thread of a pool: those are waited for when the program is interrupted.
        Thread(target=self._work, daemon=True).start()

    def add(self, verdict: Verdict) -> None:
        """Take a verdict; the last one of its op starts the diagnosis."""
        key = verdict.port, verdict.case.op
        with self._lock:
            verdicts = self._verdicts.setdefault(key, [])
            verdicts.append(verdict)
            if len(verdicts) < self._asked[verdict.case.op]:
                return
        in_order = sorted(verdicts, key=lambda each: self._place[each.case.id])
        self._found[key] = [each for each in in_order if is_diagnosed(each)], Future()
        self._queue.put(key)

    def __call__(self, verdicts: Sequence[Verdict], seed: int) -> Diagnoses:
        """What explains the failures of one port and one op. Raises whatever the diagnosis raised."""
        key = (verdicts[0].port, verdicts[0].case.op) if verdicts else ("", "")
        if key in self._found and seed == self._seed:
            given, found = self._found[key]
            if len(given) == len(verdicts) and all(map(_is, given, verdicts)):
                return found.result()
        return diagnose(verdicts, seed)

    def _work(self) -> None:
        while True:
            key = self._queue.get()
            verdicts, found = self._found[key]
            try:
                diagnoses = diagnose(verdicts, self._seed)
            except Exception as error:  # raised again where the report is built, which says so
                found.set_exception(error)
                continue
            found.set_result(diagnoses)
            for diagnosis in diagnoses:
                self._told(*key, diagnosis)


def _is(one: Verdict, other: Verdict) -> bool:
    return one is other
