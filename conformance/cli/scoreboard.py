"""`conformance scoreboard`."""

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from conformance.cli.options import CaseOption, ExcludeOption, SeedOption, TimeoutOption, check_target, selected
from conformance.cli.screen import interruptible


def scoreboard(
    ports: Annotated[Path, typer.Option("--ports", metavar="FILE", help="Which ports: a TOML file.")] = Path(
        "ports/scoreboard.toml"
    ),
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The Markdown page; the HTML page is beside it.")] = Path(
        "docs/scoreboard.md"
    ),
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the scores here too.")] = None,
    render: Annotated[Path | None, typer.Option("--render", metavar="FILE", help="Run nothing: render these scores.")] = None,
    case: CaseOption = None,
    exclude: ExcludeOption = None,
    seed: SeedOption = 0,
    timeout: TimeoutOption = 300.0,
) -> None:
    """Run every port at hand, and write docs/scoreboard.md and docs/scoreboard.html: who conforms, who does not, and why.

    Exit status: 0 written, whatever is on it; 2 wrong usage.
    """
    import conformance
    from conformance.numbers.tensors import write_atomically
    from conformance.tools.scoreboard.report import Scoreboard, as_html, as_json, as_markdown, read_json
    from conformance.tools.scoreboard.scoreboard import Row, ScoreboardError, read_list, score_all

    check_target(out, "--out")
    check_target(json, "--json")
    date, machine = f"{datetime.now(UTC):%Y-%m-%d}", f"a CPU ({platform.machine()}, {platform.system()})"

    def board_of(rows: tuple[Row, ...]) -> Scoreboard:
        return Scoreboard(rows, conformance.__version__, seed, date, machine)

    done: list[Row] = []

    def on_row(row: Row) -> None:
        print(f"{row.title}: {row.absent or 'judged'}", file=sys.stderr, flush=True)
        done.append(row)
        if json:  # each as it comes: a run takes long
            write_atomically(json, as_json(board_of(tuple(done))).encode())

    try:
        if render:
            board = read_json(render)
        else:
            listed, cases = read_list(ports), selected(case, exclude=exclude)
            with interruptible("no page was written"):
                board = board_of(score_all(listed, cases, seed=seed, timeout=timeout, on_row=on_row))
    except ScoreboardError as error:
        raise typer.BadParameter(str(error), param_hint="--render" if render else "--ports") from None
    write_atomically(out, as_markdown(board).encode())
    write_atomically(out.with_suffix(".html"), as_html(board).encode())
