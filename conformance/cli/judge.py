"""`conformance judge`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from conformance.cli.options import CaseOption, DTypeOption, ExcludeOption, JsonOption, OpOption, selected
from conformance.cli.pages import HtmlOption, JunitOption, MarkdownOption, QuietOption, VerboseOption, check_targets, publish
from conformance.cli.screen import interruptible, progress
from conformance.ops.cases import CASES


def judge(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Outputs: DIR/CASE.safetensors for every case computed.")],
    op: OpOption = None,
    dtype: DTypeOption = None,
    case: CaseOption = None,
    exclude: ExcludeOption = None,
    json: JsonOption = None,
    junit: JunitOption = None,
    markdown: MarkdownOption = None,
    html: HtmlOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Judge outputs that were computed elsewhere, from the inputs in the committed fixtures.

    Exit status: 0 they conform, 1 they do not, 2 wrong usage, 3 no outputs of the cases asked for.
    """
    from conformance.report.building import build, digest
    from conformance.report.report import OFFLINE, Settings
    from conformance.running.offline import SEED, OutputsError, answered, judge_folder

    check_targets(json=json, junit=junit, markdown=markdown, html=html)
    began = time.monotonic()
    try:
        files = answered(folder)
        among = tuple(each for each in CASES if each.has_fixture or each.id in files)
        cases = selected(case, op, dtype, exclude, among=among)
        with interruptible("nothing was judged"), progress([str(folder)], len(cases), quiet=quiet) as advance:
            run = judge_folder(folder, cases, lambda verdict: advance(verdict.port, failed=verdict.failed))
    except OutputsError as error:
        raise typer.BadParameter(str(error), param_hint="DIR") from None
    report = build([run], Settings(SEED, "", OFFLINE, asked=len(cases), digest=digest(cases)), time.monotonic() - began)
    publish(report, json=json, junit=junit, markdown=markdown, html=html, verbose=verbose, quiet=quiet)
