"""What the commands write to: a console, and the progress on it."""

import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from threading import Event, Thread
from typing import Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from conformance.report.counting import count_of

INTERVAL = 10.0  # seconds between two lines of progress
INTERRUPTED = 128 + signal.SIGINT  # the shell's own convention


class Advance(Protocol):
    """Tells the progress that a name is one step on, and whether that step failed."""

    def __call__(self, name: str, *, failed: bool = False) -> None: ...  # noqa: D102


@contextmanager
def progress(names: Iterable[str], count: int, *, of: str = "cases", quiet: bool = False) -> Generator[Advance]:
    """The progress of every name on stderr: a bar on a terminal, elsewhere a line from time to time, unless `quiet`."""
    console = Console(stderr=True)
    if console.is_terminal:
        with _bars(names, count, console) as advance:
            yield advance
    else:
        with _lines(() if quiet else names, count, of) as advance:
            yield advance


@contextmanager
def _bars(names: Iterable[str], count: int, console: Console) -> Generator[Advance]:
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        tasks = {name: progress.add_task(name, total=count) for name in names}

        def advance(name: str, *, failed: bool = False) -> None:
            progress.advance(tasks[name])

        yield advance


@contextmanager
def _lines(names: Iterable[str], count: int, of: str) -> Generator[Advance]:
    """Every `INTERVAL` seconds a line for each name: how far it is, and how many steps have failed."""
    done, failures = dict.fromkeys(names, 0), Counter[str]()
    over = Event()

    def advance(name: str, *, failed: bool = False) -> None:
        if name in done:
            done[name] += 1
            failures[name] += failed

    def tell() -> None:
        while not over.wait(INTERVAL):
            for name, steps in done.items():
                said = f", {count_of(failures[name], 'failure')} so far" if failures[name] else ""
                print(f"{name}: {steps} of {count} {of}{said}", file=sys.stderr, flush=True)

    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield advance
    finally:
        over.set()
        teller.join()


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


def stderr() -> Console:
    """Where a report is printed while a program reads stdout."""
    return Console(highlight=False, stderr=True, width=None if sys.stderr.isatty() else 160)
