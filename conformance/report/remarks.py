"""What a report remarks beside its verdicts: where y alone was judged, and what to write next."""

import shlex
from collections.abc import Iterator

from conformance.norms.cases import NORMS
from conformance.port import NOT_WRITTEN
from conformance.report.report import Report
from conformance.rounding import HALF


def without_gradients(report: Report) -> list[str]:
    """The ports whose gradients were not asked for, since they have none."""
    judged = {verdict.port for verdict in report.verdicts if verdict.status in ("pass", "fail")}
    return [run.spec for run in report.runs if run.spec in judged and run.hello and not run.hello.gradients]


def next_steps(report: Report) -> Iterator[str]:
    """What the author of each port that is not finished has to do next, and how to judge it then."""
    for run in report.runs:
        port = report.arguments.get(run.spec, shlex.quote(run.spec))
        unwritten = next((verdict.case.op for verdict in run.verdicts if verdict.message == NOT_WRITTEN), None)
        judged = {verdict.case.op for verdict in run.verdicts if verdict.status in ("pass", "fail")}
        if run.hello and not run.hello.orders and judged & set(NORMS) and set(HALF) & set(run.hello.dtypes):
            yield f"next: conformance identify {port}, and say in `orders` which side of the weight it casts on"
        elif unwritten:
            yield f"next: write {unwritten}, then conformance run {port} --op {unwritten}"


def is_begun(report: Report) -> bool:
    """Whether there is nothing to judge because nothing is written yet."""
    statuses = {verdict.status for verdict in report.verdicts}
    return statuses == {"skip"} and any(verdict.message == NOT_WRITTEN for verdict in report.verdicts)
