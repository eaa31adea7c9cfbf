"""What a report remarks beside its verdicts: where y alone was judged, and what to write next."""

from collections.abc import Iterator

from conformance.norms.cases import NORMS
from conformance.port import NOT_WRITTEN
from conformance.report.report import Report
from conformance.rounding import HALF


def without_gradients(report: Report) -> list[str]:
    """The ports whose gradients were not asked for, since they have none."""
    judged = {entry.port for entry in report.verdicts if entry.status in ("pass", "fail")}
    return [each.port for each in report.ports if each.port in judged and each.hello and not each.hello.gradients]


def next_steps(report: Report) -> Iterator[str]:
    """What the author of each port that is not finished has to do next, and how to judge it then."""
    for each in report.ports:
        entries = [entry for entry in report.verdicts if entry.port == each.port]
        judged = {entry.op for entry in entries if entry.status in ("pass", "fail")}
        unwritten = next((entry.op for entry in entries if entry.message == NOT_WRITTEN), None)
        if each.hello and not each.hello.orders and judged & set(NORMS) and set(HALF) & set(each.hello.dtypes):
            yield f"next: conformance identify {each.argument}, and say in `orders` which side of the weight it casts on"
        elif unwritten:
            yield f"next: write {unwritten}, then conformance run {each.argument} --op {unwritten}"


def is_begun(report: Report) -> bool:
    """Whether there is nothing to judge because nothing is written yet."""
    statuses = {entry.status for entry in report.verdicts}
    return statuses == {"skip"} and any(entry.message == NOT_WRITTEN for entry in report.verdicts)
