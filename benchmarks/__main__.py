"""`python -m benchmarks kit|layers|tolerances|diagnosis|stages|collectives|all`: measure, print and keep tables."""

import json
import platform
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from conformance.numbers.tensors import write_atomically

RESULTS = Path(__file__).parent.parent / "results"


def main(
    what: Annotated[
        Literal["kit", "layers", "tolerances", "diagnosis", "stages", "collectives", "all"], typer.Argument()
    ] = "all",
    device: Annotated[str, typer.Option(help="Where the layers compute.")] = "cpu",
    every: Annotated[int, typer.Option(min=1, help="Take one trial of the diagnosis in so many.")] = 1,
    done: Annotated[Path | None, typer.Option(help="The file of the trials that are done, to go on with later.")] = None,
) -> None:
    """Measure the kit's times and memory; layers against their peers; tolerances; the diagnosis, and stages; collectives."""
    if what in ("kit", "all"):
        from benchmarks.kit import measure_kit
        from benchmarks.rates import measure_rates

        report("rates", measure_rates())
        report("kit", measure_kit())
    if what in ("layers", "all"):
        from benchmarks.layers import measure_layers

        report(f"layers-{device}", measure_layers(device))
    if what in ("tolerances", "all"):
        from benchmarks import limits, search, tolerances, welford

        for name, rows in chain(tolerances.tables(), limits.tables(), welford.tables(), search.tables()):
            report(f"tolerances-{name}", rows)
    if what in ("diagnosis", "all"):
        from benchmarks.diagnosis import measure_diagnosis

        for name, rows in measure_diagnosis(every=every, done=done):
            report(name, rows)
    if what in ("stages", "all"):
        from benchmarks.stages import measure_stages

        report("stages", measure_stages())
    if what in ("collectives", "all"):
        from benchmarks.collectives import measure_collectives

        report("collectives", measure_collectives())


def report(name: str, rows: list[dict[str, str | float]], folder: Path = RESULTS, machine: str = "") -> None:
    """Print rows as a table, and write them to `folder` with the name of the machine, this one if none is given."""
    table = Table(*rows[0], title=name)
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else value for value in row.values()))
    Console().print(table)
    document = {"machine": machine or platform.platform(), "python": platform.python_version(), "rows": rows}
    write_atomically(folder / f"{name}.json", (json.dumps(document, indent=1) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
