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
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page, as Markdown.")] = Path("docs/scoreboard.md"),
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it as one HTML page, too.")] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Where the scores go; a file in --runs, named by the date.")
    ] = None,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="FOLDER", help="The scores of runs before, for what changed since.")
    ] = Path("results/scoreboard"),
    render: Annotated[Path | None, typer.Option("--render", metavar="FILE", help="Run nothing: render these scores.")] = None,
    case: CaseOption = None,
    exclude: ExcludeOption = None,
    seed: SeedOption = 0,
    timeout: TimeoutOption = 300.0,
) -> None:
    """Run every port at hand, and write docs/scoreboard.md: who conforms, who does not, why, and what changed since before.

    Exit status: 0 written, whatever is on it; 2 wrong usage.
    """
    import conformance
    from conformance.numbers.tensors import write_atomically
    from conformance.tools.scoreboard.report import as_html, as_json, as_markdown, kept, read_json
    from conformance.tools.scoreboard.scoreboard import Row, Scoreboard, ScoreboardError, read_list, score_all
    from conformance.tools.scoreboard.trend import changes

    date, machine = f"{datetime.now(UTC):%Y-%m-%d}", f"a CPU ({platform.machine()}, {platform.system()})"

    def board_of(rows: tuple[Row, ...]) -> Scoreboard:
        return Scoreboard(rows, conformance.__version__, seed, date, machine)

    if not (json or render) and runs.is_dir():
        json = runs / f"{date}.json"
    for name, file in (("--out", out), ("--html", html), ("--json", json)):
        check_target(file, name)
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
        changed = changes([*(run for run in kept(runs) if run.date < board.date), board])
    except ScoreboardError as error:
        raise typer.BadParameter(str(error), param_hint="--render" if render else "--ports") from None
    write_atomically(out, as_markdown(board, changed).encode())
    if html:
        write_atomically(html, as_html(board, changed).encode())
