"""A run for a program that reads along: one JSON object a line, described by `docs/stream.schema.json`.

First `begin`, then a `verdict` for each port and case as it comes, a `cause` for each thing that went wrong, and last `end`.
The seed is told at the end and not before, so that no answer can be made for it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import conformance
from conformance.report.machine import finite
from conformance.report.report import CaseEntry, Cause, Report

FORMAT = 1
ERROR, UNEXPLAINED = "error", "unexplained"  # the ids of causes that are no known mistake


def begin(ports: Sequence[str], cases: int) -> str:
    """The first line: who is asked, and how many cases each."""
    return _line("begin", format=FORMAT, conformance=conformance.__version__, ports=list(ports), cases=cases)


def verdict(entry: CaseEntry) -> str:
    """What became of one case. Of two lines about the same case and port the later one counts."""
    outputs = [{name: value for name, value in asdict(each).items() if name != "errors"} for each in entry.outputs]
    said = {"port": entry.port, "case": entry.case, "op": entry.op, "dtype": entry.dtype, "shape": entry.shape}
    said |= {"status": entry.status, "ratio": entry.ratio, "message": entry.message, "exposes": entry.exposes}
    return _line("verdict", **said, parts_at=entry.parts_at, outputs=outputs)


def cause(report: Report, cause: Cause) -> str:
    """One thing that went wrong, in words and as an id: a mistake's, or that of what is not known."""
    return _line("cause", id=cause_id(report, cause), **asdict(cause))


def cause_id(report: Report, cause: Cause) -> str:
    """The mistake's id; `error` where nothing was judged, and `unexplained` where no known mistake explains it."""
    if cause.evidence:
        return cause.evidence.mistake
    return ERROR if report.example(cause).status == "error" else UNEXPLAINED


def end(report: Report) -> str:
    """The last line: the conclusion, and the seed that was hidden until now."""
    failures = {port.port: port.failure for port in report.ports if port.failure}
    return _line(
        "end",
        exit_status=report.exit_status,
        counts=report.counts(),
        failures=failures,
        seed=report.settings.seed,
        seconds=report.seconds,
    )


def _line(kind: str, **said: Any) -> str:
    return json.dumps({"kind": kind} | finite(said))
