"""A port that is asked whatever one likes, beside the run of its cases."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from conformance.case import Case
from conformance.compare import malformed
from conformance.process import PortFailure, PortProcess
from conformance.protocol import Answer
from conformance.runner import NOT_ASKED, STARTS_IN_A_ROW, NoAnswer, asked_of, exchange

Array = np.ndarray


class Session:
    """One port in one mode: started when it is first asked, again where it failed, given up after three failures in a row."""

    def __init__(self, start: Callable[[], PortProcess], timeout: float) -> None:
        self._start, self._timeout = start, timeout
        self._process: PortProcess | None = None
        self._failures = self._asked = 0
        self._folder = tempfile.TemporaryDirectory(prefix="conformance-")

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.close()
        self._folder.cleanup()

    def process(self) -> PortProcess:
        """The running process. Raises `PortFailure` where it cannot be started."""
        self._process = self._process or self._start()
        return self._process

    def ask(self, case: Case, given: dict[str, Array]) -> Answer:
        """The port's answer, well formed. Raises `NoAnswer` where there is none, or none to judge."""
        if self._failures == STARTS_IN_A_ROW:
            raise NoAnswer("error", NOT_ASKED)
        self._asked += 1
        try:
            process = self.process()
            answer = exchange(process, self._asked, case, given, Path(self._folder.name), self._timeout)
        except PortFailure as failure:
            self._failures += 1
            if self._process:
                self._process.close(politely=False)
            self._process = None
            raise NoAnswer("error", f"the port {failure}") from None
        self._failures = 0
        problem = malformed(case, answer.outputs, asked_of(case, process.hello))
        if problem:
            raise NoAnswer("error", problem)
        return answer
