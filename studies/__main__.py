"""`python -m studies NAME|list|all`: measure, print, and write figures, pictures and pages."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as Grid

from conformance.cli.screen import interruptible, progress, stdout
from conformance.numbers.tensors import write_atomically
from studies import page
from studies.figures import Figures, FiguresError, read_figures, write_figures
from studies.study import NAMES, Study, load, question

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "studies"
QUICK = ROOT / "build" / "studies"


def main(
    what: Annotated[str, typer.Argument(metavar="NAME|list|all", help=f"A study: {', '.join(NAMES)}; or all, or list.")],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats, smaller sizes; goes to build/studies.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; docs/studies unless quick.")] = None,
    render: Annotated[bool, typer.Option("--render", help="Measure nothing: render the figures that are in DIR.")] = False,
) -> None:
    """Measure what the source notes claim; write NAME.json, .png, .svg and .md, and the README that lists them.

    Exit status: 0 written, whatever the verdicts; 2 wrong usage.
    """
    if what == "list":
        for name in NAMES:
            print(f"{name:<10} {question(name)}")
        return
    if what not in (*NAMES, "all"):
        raise typer.BadParameter(f"no study {what!r}; there are {', '.join(NAMES)}, and all", param_hint="NAME")
    folder = out or (QUICK if quick else PAGES)
    for name in NAMES if what == "all" else (what,):
        try:
            study = load(name)
            figures = read_figures(folder / f"{name}.json") if render else measured(study, quick)
        except FiguresError as error:
            raise typer.BadParameter(str(error), param_hint=name) from None
        write(folder, study, figures)
        show(study, figures)
        print(f"{folder / name}.md", file=sys.stderr)
    known = [(load(name), read_figures(file)) for name in NAMES if (file := folder / f"{name}.json").exists()]
    write_atomically(folder / "README.md", page.as_index(known).encode())


def measured(study: Study, quick: bool) -> Figures:
    """Run a study behind a progress bar."""
    with interruptible("nothing was written"), progress([study.name], len(study.setups(quick))) as advance:
        return study.run(quick, lambda: advance(study.name))


def write(folder: Path, study: Study, figures: Figures) -> None:
    """Write the figures first: all else can be rendered from them again."""
    write_figures(folder / f"{study.name}.json", figures)
    from studies.drawing import write_picture  # here, so that `list` is quick

    write_picture(folder / study.name, study.draw(figures))
    write_atomically(folder / f"{study.name}.md", page.as_page(study, figures).encode())


def show(study: Study, figures: Figures) -> None:
    """Print the tables, then every claim with its verdict."""
    console = stdout()
    console.print(f"\n{study.name}: {study.question}", style="bold", markup=False)
    for table in study.tables(figures):
        grid = Grid(*table.head, title=table.title, title_justify="left")
        for row in table.body:
            grid.add_row(*row)
        console.print(grid)
    for claim in study.claims:
        verdict = claim.verdict(figures)
        console.print(f"{claim.text} ({claim.source}): {verdict.word}", style="bold", markup=False)
        for finding in verdict.findings:
            console.print(f"  {page.WORDS[finding.holds]} {finding.figure}", markup=False)


if __name__ == "__main__":
    typer.run(main)
