"""The report on a terminal: the matrix, then every cause once."""

from collections import Counter
from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from conformance.block import parting
from conformance.compare import Element
from conformance.identify import Finding
from conformance.norms.cases import NormOp
from conformance.report.remarks import is_begun, next_steps, without_gradients
from conformance.report.report import CONFORMS, FAILS, NOT_RUN, Cause, Cell, Report
from conformance.rounding import DTYPES
from conformance.session import NOT_ASKED

CAUSES_SHOWN = 8
NO_OP = "no op "  # how the reason begins that a port lacks an op


def show(report: Report, console: Console) -> None:
    """Print the report."""
    for run in report.runs:
        if run.failure:
            console.print(Text.assemble((run.spec, "bold"), " could not be run: ", (run.failure, "red")))
    if any(verdict.status != "skip" for verdict in report.verdicts):
        console.print(_matrix(report))
    for what, style, ports in (
        ("skipped", "dim", report.reasons("skip")),
        ("fails as expected in", "yellow", report.reasons("expected")),
    ):
        for port, reasons in ports.items():
            counted = ", ".join(f"{reason} ({count})" for reason, count in _in_short(reasons).most_common())
            console.print(Text(f"{port} {what} {reasons.total()}: {counted}", style=style))
    for port in without_gradients(report):
        console.print(Text(f"{port} has no gradients: y alone was judged", style="dim"))
    causes = report.causes
    for cause in causes[:CAUSES_SHOWN]:
        console.print()
        for line in in_words(cause, report.command(cause.example)):
            console.print(line, soft_wrap=True)  # a command broken into lines cannot be copied
    if len(causes) > CAUSES_SHOWN:
        console.print(f"\n… and {len(causes) - CAUSES_SHOWN} more causes; --json FILE writes them all.")
    console.print()
    console.print(_conclusion(report))
    for step in next_steps(report):
        console.print(Text(step, style="bold"), soft_wrap=True)


def show_findings(port: str, found: Mapping[NormOp, tuple[Finding, ...]], console: Console) -> None:
    """Print what an implementation follows, op by op, with what says so."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in (port, "asked", "follows", "because"):
        table.add_column(Text(name), overflow="fold")
    for op, findings in found.items():
        for finding in findings:
            table.add_row(op, finding.asked, Text(finding.found, style="bold" if finding.told else "red"), finding.evidence)
    console.print(table)


def _matrix(report: Report) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("port", no_wrap=True, overflow="fold")
    table.add_column("op", no_wrap=True)
    for dtype in DTYPES:
        table.add_column(dtype, no_wrap=True)
    matrix = report.matrix
    judged = [key for key, cell in matrix.items() if set(cell.statuses) != {"skip"}]  # why others are not is said below
    for port, op in dict.fromkeys((port, op) for port, op, _ in judged):
        table.add_row(Text(port), op, *(_cell(matrix.get((port, op, dtype))) for dtype in DTYPES))
    caption = "passed/judged and the worst error, in units of its tolerance (at most 1 passes)"
    return Group(table, Text(caption, style="dim"))


def _in_short(reasons: Counter[str]) -> Counter[str]:
    """The reasons, with the ops that a port lacks as one."""
    lacking = [reason for reason in reasons if reason.startswith(NO_OP)]
    short = Counter({reason: count for reason, count in reasons.items() if reason not in lacking})
    if lacking:
        short[NO_OP + ", ".join(reason.removeprefix(NO_OP) for reason in lacking)] = sum(reasons[each] for each in lacking)
    return short


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text("-", style="dim")
    judged = sum(cell.statuses.values()) - cell.statuses["skip"]
    if not judged:
        return Text("skipped", style="dim")
    if cell.statuses["error"] == judged:
        return Text(f"0/{judged} error", style="red")
    style = ("yellow" if cell.statuses["expected"] else "green") if cell.conforms else "red"
    return Text(f"{cell.statuses['pass']}/{judged} {ratio(cell.ratio)}", style=style)


def ratio(ratio: float) -> str:
    """An error ratio in a few characters."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0e}".replace("e+0", "e").replace("e+", "e")


def in_words(cause: Cause, command: str) -> list[Text]:
    """A cause in lines: what is wrong, the example, and the command that repeats it."""
    example, output = cause.example, cause.example_output
    count = len(cause.verdicts)
    dtypes = ", ".join(dict.fromkeys(verdict.case.dtype for verdict in cause.verdicts))
    title = Text.assemble((cause.port, "bold"), ": ", (cause.what, "red"), f"  ({count} case{'s' * (count != 1)}: {dtypes})")
    details = [f"diagnosis   {cause.evidence}"] if cause.evidence else []
    details += [f"            next best is {cause.runner_up}"] if cause.runner_up else []
    details += ["            `conformance identify` says which dialect it is"] if cause.dialect else []
    details.append(f"example     {example.case.id}  {list(example.case.shape)}")
    if output and output.worst:
        where = ", ".join(map(str, output.worst.index))
        digits = 17 if output.dtype == "float64" else 9
        details.append(f"worst       {output.output}[{where}]  {_element(output.worst, digits)}")
        details.append(
            f"            {output.outside} of {output.size} elements outside, by up to {ratio(output.ratio)} tolerances"
        )
    if stage := parting.where(example):
        details.append(f"parts at    {stage}")
        details += [f"growth      {parting.growth(example)} roundoffs"] if example.taps else []
    frames = [line.strip() for line in example.detail.splitlines() if line.startswith("  File ")]
    details += [f"where       {frames[-1]}"] if frames else []
    details += [f"reproduce   {command}"] if cause.what != NOT_ASKED else []
    return [title, *(Text(f"  {detail}") for detail in details)]


def _element(element: Element, digits: int) -> str:
    single = element.lower == element.upper
    expected = f"{element.lower:.{digits}g}" if single else f"{element.lower:.{digits}g} to {element.upper:.{digits}g}"
    return f"expected {expected}, got {element.actual:.{digits}g}"


def _conclusion(report: Report) -> Text:
    counts = Counter(verdict.status for verdict in report.verdicts)
    words = {"pass": "passed", "fail": "failed", "expected": "failed as expected", "error": "errors", "skip": "skipped"}
    words["error"] = "error" if counts["error"] == 1 else "errors"
    counted = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status])
    style, verdict = {
        CONFORMS: ("bold green", "conforms"),
        FAILS: ("bold red", "does not conform"),
        NOT_RUN: ("bold red", "a port was not judged" if counts["pass"] + counts["fail"] else "not judged"),
    }[report.exit_status]
    if is_begun(report):
        style, verdict = "bold yellow", "nothing to judge yet"
    return Text.assemble((verdict, style), f": {counted or 'no case was run'} in {report.seconds:.1f} s")
