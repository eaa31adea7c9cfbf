"""`conformance judges`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from conformance.cli.options import check_target
from conformance.cli.screen import interruptible, progress, stdout


def judges(
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the mistakes.")] = os.cpu_count() or 1,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here too.")] = None,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Write the page, as Markdown; its picture is beside it.")
    ] = None,
    render: Annotated[Path | None, typer.Option("--render", metavar="FILE", help="Try nothing: take these figures.")] = None,
) -> None:
    """Put others' rules before the known mistakes and before honest arithmetic: what each lets pass, whom each accuses.

    Needs no framework; about five minutes of one core. Exit status: 0, whatever was found; 2 wrong usage.
    """
    from conformance.numbers.tensors import write_atomically
    from conformance.tools.judges.figures import FiguresError, as_json, of_trials, read
    from conformance.tools.judges.page import as_page, show
    from conformance.tools.judges.picture import as_svg
    from conformance.tools.judges.trial import steps, trials

    check_target(json, "--json")
    check_target(page, "--page")
    if render:
        try:
            figures = read(render)
        except FiguresError as error:
            raise typer.BadParameter(str(error), param_hint="--render") from None
    else:
        with interruptible("nothing was tried"), progress(["judges"], steps(), of="steps") as advance:
            figures = of_trials(*trials(jobs, on_step=lambda: advance("judges")))
    if json:
        write_atomically(json, as_json(figures).encode())
    if page:
        write_atomically(page, as_page(figures, page.with_suffix(".svg").name).encode())
        write_atomically(page.with_suffix(".svg"), as_svg(figures).encode())
    show(figures, stdout())
