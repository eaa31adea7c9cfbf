"""The report on a terminal: the matrix, then every cause once."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from conformance.report import words
from conformance.report.counting import count_of
from conformance.report.remarks import collectives, is_begun, next_steps, overwriting, without_gradients
from conformance.report.report import CONFORMS, CaseEntry, Cause, Cell, Report

CAUSES_SHOWN = 8
STYLES = {"pass": "green", "fail": "red", "error": "red", "expected": "yellow", "skip": "dim"}


def show(report: Report, console: Console, *, verbose: bool = False, quiet: bool = False) -> None:
    """Print the report: with every case if `verbose`, and only the conclusion if `quiet`."""
    if not quiet:
        _show_body(report, console, verbose)
    console.print(_conclusion(report))
    for step in () if quiet else next_steps(report):
        console.print(Text(step, style="bold"), soft_wrap=True)


def _show_body(report: Report, console: Console, verbose: bool) -> None:
    for port in report.ports:
        if port.failure:
            console.print(Text.assemble((port.port, "bold"), " could not be run: ", (port.failure, "red")))
    if report.matrix and not is_begun(report):
        console.print(_matrix(report))
    for what, style, ports in (
        ("skipped", "dim", report.reasons("skip")),
        ("does as expected in", "yellow", report.reasons("expected")),
    ):
        for port, reasons in ports.items():
            counted = ", ".join(f"{reason} ({count})" for reason, count in words.in_short(reasons))
            console.print(Text(f"{port} {what} {sum(reasons.values())}: {counted}", style=style))
    for port in without_gradients(report):
        console.print(Text(f"{port} has no gradients: y alone was judged", style="dim"))
    for port, names in overwriting(report):
        console.print(Text(f"{port} overwrites {names}, by declaration", style="yellow"))
    for remark in collectives(report):
        console.print(Text(remark, style="dim"), soft_wrap=True)
    for entry in report.verdicts if verbose else ():
        console.print(_case(entry), soft_wrap=True)
    shown = report.causes if verbose else report.causes[:CAUSES_SHOWN]
    for cause in shown:
        console.print()
        for line in in_words(report, cause):
            console.print(line, soft_wrap=True)  # a command broken into lines cannot be copied
    if len(report.causes) > len(shown):
        more = count_of(len(report.causes) - len(shown), "more cause")
        console.print(f"\n… and {more}; --json FILE writes them all.")
    console.print()


def in_words(report: Report, cause: Cause) -> list[Text]:
    """A cause in lines: what is wrong, the example, and the command that repeats it."""
    title = Text.assemble((cause.port, "bold"), ": ", (cause.what, "red"), f"  ({words.extent(cause)})")
    return [title, *(Text(f"  {label:<11} {said}") for label, said in words.details(report, cause))]


def _matrix(report: Report) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("port", no_wrap=True, overflow="fold")
    table.add_column("op", no_wrap=True)
    dtypes = words.columns(report)
    for dtype in dtypes:
        table.add_column(dtype, no_wrap=True)
    for (port, op), cells in words.rows(report).items():
        table.add_row(Text(port), op, *(_cell(cells.get(dtype)) for dtype in dtypes))
    return Group(table, Text(words.CAPTION, style="dim"))


def _cell(cell: Cell | None) -> Text:
    if cell is None or not cell.judged:
        return Text("skipped" if cell else "-", style="dim")
    style = ("yellow" if cell.count("expected") else "green") if cell.conforms else "red"
    return Text(words.cell(cell), style=style)


def _case(entry: CaseEntry) -> Text:
    """A case in one line: the port, what became of it, and how far off each of its outputs is, or why it was not judged."""
    said = entry.message or ", ".join(f"{output.output} {words.ratio(output.ratio)}" for output in entry.outputs)
    return Text.assemble((f"{entry.status:<9}", STYLES[entry.status]), f"{entry.port}  {entry.case}  {said}")


def _conclusion(report: Report) -> Text:
    verdict, because = words.conclusion(report)
    style = "yellow" if is_begun(report) else "green" if report.exit_status == CONFORMS else "red"
    return Text.assemble((verdict, f"bold {style}"), f": {because}")
