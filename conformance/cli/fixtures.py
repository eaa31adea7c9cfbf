"""`conformance fixtures`."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from conformance.numbers import cache
from conformance.tools.fixtures import FIXTURES

WHERE = "Where to write them; a source tree's own where it is left out. An installed kit must be told."


def generate(folder: Annotated[Path | None, typer.Argument(help=WHERE, show_default=False)] = None) -> None:
    """Write every fixture and the manifest anew, whole or not at all."""
    from conformance.report.counting import count_of
    from conformance.tools.fixtures import FixtureError, generate, source_folder

    folder = folder or source_folder()
    if folder is None:
        said = f"this kit is installed in {FIXTURES.parent.parent}; say where to write: conformance fixtures generate FOLDER"
        raise typer.BadParameter(said, param_hint="FOLDER")
    began = time.monotonic()
    os.environ[cache.VARIABLE] = cache.OFF  # a fixture is computed, whatever was kept
    try:
        count, size = generate(folder)
    except FixtureError as error:
        raise typer.BadParameter(str(error), param_hint="FOLDER") from None
    print(f"{count_of(count, 'case')}, {size / 1e6:.1f} MB, in {time.monotonic() - began:.1f} s: {folder}")


def check(folder: Annotated[Path, typer.Argument(help="Where the fixtures are.")] = FIXTURES) -> None:
    """Verify every digest, regenerate, and say exactly what differs. Exit status: 0 all is as it should be, 1 it is not."""
    from conformance.report.counting import count_of
    from conformance.tools.fixtures import check

    os.environ[cache.VARIABLE] = cache.OFF
    differences = check(folder)
    for difference in differences:
        print(difference)
    print(f"{folder}: {count_of(len(differences), 'difference') if differences else 'all as it should be'}")
    raise typer.Exit(bool(differences))
