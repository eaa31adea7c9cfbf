"""The report as JSON, for programs."""

import json
import math
from dataclasses import asdict
from typing import Any

import conformance
from conformance.block.parting import where
from conformance.compare import OutputVerdict
from conformance.report.report import Report

FORMAT = 1


def as_json(report: Report) -> str:
    """Everything a report holds, as one JSON object; numbers that JSON lacks become the strings "nan", "inf", "-inf"."""
    document = {
        "format": FORMAT,
        "conformance": conformance.__version__,
        "exit_status": report.exit_status,
        "seed": report.seed,
        "device": report.device,
        "mode": report.mode,
        "seconds": round(report.seconds, 3),
        "ports": [
            {"port": run.spec, "failure": run.failure, "hello": asdict(run.hello) if run.hello else None} for run in report.runs
        ],
        "matrix": [
            {"port": port, "op": op, "dtype": dtype, **cell.statuses, "ratio": cell.ratio}
            for (port, op, dtype), cell in report.matrix.items()
        ],
        "causes": [
            {
                "port": cause.port,
                "what": cause.what,
                "evidence": cause.evidence,
                "runner_up": cause.runner_up,
                "dialect": cause.dialect,
                "cases": [verdict.case.id for verdict in cause.verdicts],
                "example": cause.example.case.id,
                "command": report.command(cause.example),
            }
            for cause in report.causes
        ],
        "verdicts": [
            {
                "port": verdict.port,
                "case": verdict.case.id,
                "status": verdict.status,
                "message": verdict.message,
                "detail": verdict.detail,
                "parts_at": where(verdict) if verdict.status == "fail" else "",
                "outputs": [_output(output) for output in verdict.outputs],
                "taps": [_output(tap) | {"growth": tap.growth} for tap in verdict.taps],
            }
            for verdict in report.verdicts
        ],
    }
    return json.dumps(finite(document), indent=1) + "\n"


def _output(output: OutputVerdict) -> dict[str, Any]:
    return {
        "output": output.output,
        "ratio": output.ratio,
        "outside": output.outside,
        "size": output.size,
        "worst": asdict(output.worst) if output.worst else None,
    }


def finite(value: Any) -> Any:
    """The same value with every number that JSON lacks as a string."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {key: finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
        case _:
            return value
