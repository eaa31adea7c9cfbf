"""`conformance fixtures`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from conformance.fixtures import FIXTURES

FolderOption = Annotated[Path, typer.Option(help="Where the fixtures are.")]


def generate(folder: FolderOption = FIXTURES) -> None:
    """Write every fixture and the manifest anew, whole or not at all."""
    from conformance.fixtures import generate
    from conformance.report.counting import count_of

    began = time.monotonic()
    count, size = generate(folder)
    print(f"{count_of(count, 'case')}, {size / 1e6:.1f} MB, in {time.monotonic() - began:.1f} s: {folder}")


def check(folder: FolderOption = FIXTURES) -> None:
    """Verify every digest, regenerate, and say exactly what differs. Exit status: 0 all is as it should be, 1 it is not."""
    from conformance.fixtures import check
    from conformance.report.counting import count_of

    differences = check(folder)
    for difference in differences:
        print(difference)
    print(f"{folder}: {count_of(len(differences), 'difference') if differences else 'all as it should be'}")
    raise typer.Exit(bool(differences))
