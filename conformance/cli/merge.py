"""`conformance merge`."""

from pathlib import Path
from typing import Annotated

import typer

from conformance.cli.options import JsonOption
from conformance.cli.pages import (
    BadgeOption,
    HtmlOption,
    JunitOption,
    MarkdownOption,
    QuietOption,
    VerboseOption,
    check_targets,
    publish,
)


def merge(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Reports that `run --json` has written.")],
    json: JsonOption = None,
    junit: JunitOption = None,
    markdown: MarkdownOption = None,
    html: HtmlOption = None,
    badge: BadgeOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Join the reports of a run's shards, or of runs of different ports; of one report alone, show it again.

    Exit status as `run` has it, or 2 where the reports do not belong together or one is missing.
    """
    from conformance.report.machine import ReportFileError, read
    from conformance.report.merging import MergeError, merge

    check_targets(json=json, junit=junit, markdown=markdown, html=html, badge=badge)
    try:
        report = merge({str(file): read(file) for file in files})
    except (ReportFileError, MergeError) as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from None
    publish(report, json=json, junit=junit, markdown=markdown, html=html, badge=badge, verbose=verbose, quiet=quiet)
