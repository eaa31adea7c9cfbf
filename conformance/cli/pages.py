"""The report in files: where each is to be written, and writing them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conformance.cli.options import check_target

if TYPE_CHECKING:
    from conformance.report.report import Report

RunJsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE|-", help="Write the whole report here too; -: one object a verdict, on stdout."),
]
JunitOption = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write the report as JUnit XML here.")]
MarkdownOption = Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write the report as Markdown here.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the report as one HTML page here.")]
BadgeOption = Annotated[
    Path | None, typer.Option("--badge", metavar="FILE", help="Write a badge here, as JSON that shields.io reads.")
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Print every case, and every cause.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print the conclusion only.")]


def check_targets(**files: Path | None) -> None:
    """Raise a usage error, before anything is run, where one of the files could not be written."""
    for name, file in files.items():
        check_target(file, f"--{name}")


def publish(
    report: "Report",
    *,
    json: Path | None,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    badge: Path | None = None,
    verbose: bool = False,
    quiet: bool = False,
    aside: bool = False,
) -> None:
    """Write the files asked for, print the report, and exit with its status.

    It is printed `aside`, on stderr, where a program reads stdout.
    """
    from conformance.cli.screen import stderr, stdout
    from conformance.numbers.tensors import write_atomically
    from conformance.report.badge import as_badge
    from conformance.report.console import show
    from conformance.report.html import as_html
    from conformance.report.junit import as_junit
    from conformance.report.machine import as_json
    from conformance.report.markdown import as_markdown

    renderings = ((json, as_json), (junit, as_junit), (markdown, as_markdown), (html, as_html), (badge, as_badge))
    for file, render in renderings:
        if file:
            write_atomically(file, render(report).encode(errors="replace"))
    show(report, stderr() if aside else stdout(), verbose=verbose, quiet=quiet)
    raise typer.Exit(report.exit_status)
