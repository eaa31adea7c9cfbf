"""`conformance selftest`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from conformance.cli.screen import progress, stdout


def selftest(
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the mistakes.")] = os.cpu_count() or 1,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Write the whole matrix here, as Markdown.")
    ] = None,
    quick: Annotated[
        Path | None, typer.Option("--quick", metavar="FILE", help="Choose the quick cases anew, and write their ids here.")
    ] = None,
) -> None:
    """Make every known mistake, and see each rejected wherever it can be seen, with room between right and wrong.

    Needs no framework. Exit status: 0 the judge is sound, 1 it is not.
    """
    from conformance.mistakes import MISTAKES
    from conformance.numbers.tensors import write_atomically
    from conformance.ops.cases import CASES
    from conformance.tools.selftest.report import page as as_page
    from conformance.tools.selftest.report import show_self_test
    from conformance.tools.selftest.selftest import self_test, steps

    if quick:
        from conformance.tools.selftest.quick import cover, matrix

        with progress(["mistakes"], len(MISTAKES), of="mistakes") as advance:
            chosen = cover(matrix(jobs, lambda: advance("mistakes")))
        write_atomically(quick, "".join(f"{case.id}\n" for case in chosen).encode())
        stdout().print(f"{quick}: {len(chosen)} of {len(CASES)} cases")
        return
    with progress(["mistakes"], steps(), of="steps") as advance:
        result = self_test(jobs, on_step=lambda: advance("mistakes"))
    if page:
        write_atomically(page, as_page(result).encode())
    show_self_test(result, stdout())
    raise typer.Exit(not result.passes)
