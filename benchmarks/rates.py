"""Norms judged a second of the CPU: the kit's own share of it, and the test suite of ONNX, which ONNX Runtime's backend runs.

In one process and in turns. ONNX judges forward passes alone, in float32 for the most part, against numbers that it keeps;
the kit judges gradients too, and makes its inputs and intervals anew, with goldens out of the cache, as an edit-run loop has
them. Of the kit's seconds, those of the port's own functions do not count; of ONNX's, those of the runtime do, which are few.
"""

import time
import unittest
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

from conformance.ops.cases import select
from conformance.ops.norms.cases import ROW_NORMS
from conformance.port.launch import Launch
from conformance.running.runner import run_ports
from ports.numpy.port import Port

TURNS = 5


class Timed(Port):
    """The NumPy port, which counts the seconds of the CPU that its own functions take."""

    own = 0.0

    def run(self, call: Any, given: dict[str, Any]) -> Any:
        """The same, timed."""
        began = time.process_time()
        try:
            return super().run(call, given)
        finally:
            type(self).own += time.process_time() - began


def measure_rates() -> list[dict[str, str | float]]:
    """Cases a second of the CPU, medians of five turns after one that warms both up; and the ratio of the two."""
    ours, theirs = _ours(), _theirs()
    turns = [(ours(), theirs()) for _ in range(TURNS + 1)][1:]
    kit, onnx = (median(rates) for rates in zip(*turns, strict=True))
    return [
        {"what": "the kit's own share, y and gradients", "unit": "cases/s", "measured": kit},
        {"what": "ONNX's backend test, y alone", "unit": "cases/s", "measured": onnx},
        {"what": "ratio", "unit": "", "measured": kit / onnx},
    ]


def _ours() -> Callable[[], float]:
    cases = select(op=ROW_NORMS)
    launch = Launch("ports.numpy", in_process=True, made=Timed)

    def rate() -> float:
        began, Timed.own = time.process_time(), 0.0
        [run] = run_ports([launch], cases)
        seconds = time.process_time() - began - Timed.own
        assert {verdict.status for verdict in run.verdicts} <= {"pass", "skip"}, run.failure
        return len(run.verdicts) / seconds

    return rate


def _theirs() -> Callable[[], float]:
    import onnxruntime.backend
    from onnx.backend.test import BackendTest

    onnxruntime.set_default_logger_severity(3)  # it warns of ONNX's own models
    with warnings.catch_warnings(action="ignore"):
        tests = BackendTest(onnxruntime.backend, __name__)
    tests.include("test_(layer|rms)_normalization_.*_cpu$")

    def rate() -> float:
        suite, result = tests.test_suite, unittest.TestResult()
        began = time.process_time()
        suite.run(result)
        seconds = time.process_time() - began
        assert result.wasSuccessful(), result
        return (result.testsRun - len(result.skipped)) / seconds

    return rate
