"""What the commands write to: a console, and the progress on it."""

import signal
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

INTERRUPTED = 128 + signal.SIGINT  # the shell's own convention


@contextmanager
def progress(names: Iterable[str], count: int) -> Generator[Callable[[str], None]]:
    """A bar for every name, on stderr while it is a terminal; yields what to call with a name that is one step on."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {name: progress.add_task(name, total=count) for name in names}
        yield lambda name: progress.advance(tasks[name])


@contextmanager
def interruptible(lost: str) -> Generator[None]:
    """End as a program does at Ctrl-C, and say what is lost by it."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted: {lost}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def stdout() -> Console:
    """Where a report is printed: as wide as the terminal, or wide enough for a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)
