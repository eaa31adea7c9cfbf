"""What a report remarks beside its verdicts: where y alone was judged, and what to write next."""

from collections.abc import Iterator

from conformance.numbers.rounding import HALF
from conformance.ops.norms.cases import ROW_NORMS
from conformance.port import NOT_WRITTEN
from conformance.report.report import Report


def without_gradients(report: Report) -> list[str]:
    """The ports whose gradients were not asked for, since they have none."""
    judged = {verdict.port for verdict in report.verdicts if verdict.status in ("pass", "fail")}
    return [each.port for each in report.ports if each.port in judged and each.hello and not each.hello.gradients]


def overwriting(report: Report) -> list[tuple[str, str]]:
    """The ports that overwrite inputs, as they declare, and which."""
    return [(each.port, ", ".join(each.hello.overwrites)) for each in report.ports if each.hello and each.hello.overwrites]


def collectives(report: Report) -> Iterator[str]:
    """Of every port and op, in each split, the case with most collectives too many: how many a rank ran, and must."""
    most: dict[tuple[str, str, str], tuple[int, str]] = {}
    for entry in report.verdicts:
        if counted := entry.collectives:
            of, extra = (entry.port, entry.op, entry.case.rpartition(".")[2]), counted.run.count - counted.least.count
            if of not in most or extra > most[of][0]:
                words = f"{entry.port} runs collectives in {entry.case}: {counted.run}; the split needs {counted.least}"
                most[of] = extra, words
    yield from (words for _, words in most.values())


def next_steps(report: Report) -> Iterator[str]:
    """What the author of each port that is not finished has to do next, and how to judge it then."""
    for port in report.ports:
        verdicts = [verdict for verdict in report.verdicts if verdict.port == port.port]
        unwritten = next((verdict.op for verdict in verdicts if verdict.message == NOT_WRITTEN), None)
        judged = {verdict.op for verdict in verdicts if verdict.status in ("pass", "fail")}
        asked_for_an_order = judged & set(ROW_NORMS) and port.hello and set(HALF) & set(port.hello.dtypes)
        if port.hello and asked_for_an_order and not (port.hello.orders or port.hello.orders_by):
            yield f"next: conformance identify {port.argument}, and say in `orders` which side of the weight it casts on"
        elif unwritten:
            yield f"next: write {unwritten}, then conformance run {port.argument} --op {unwritten}"


def is_begun(report: Report) -> bool:
    """Whether there is nothing to judge because nothing is written yet."""
    statuses = {verdict.status for verdict in report.verdicts}
    return statuses == {"skip"} and any(verdict.message == NOT_WRITTEN for verdict in report.verdicts)
