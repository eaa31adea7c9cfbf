"""`conformance locate`."""

from pathlib import Path
from typing import Annotated

import typer

from conformance.cli.options import JsonOption, check_target
from conformance.cli.screen import stdout
from conformance.numbers.rounding import DType


def locate(
    a: Annotated[Path, typer.Argument(help="Activations by name, in a safetensors file.")],
    b: Annotated[Path | None, typer.Argument(help="Those of the other run.")] = None,
    dtype: Annotated[DType | None, typer.Option("--dtype", help="What one computes in, if it stores something finer.")] = None,
    position: Annotated[int, typer.Option(min=0, help="The largest position that rotary embedding turns by.")] = 0,
    json: JsonOption = None,
) -> None:
    """Name the first activation where two runs part, or turn NaN; of one run alone, the first that is not finite.

    Exit status: 0 they agree, 1 they do not, or something is NaN or infinite, 2 wrong usage.
    """
    from conformance.numbers.tensors import TensorFileError, read_dump, write_atomically
    from conformance.tools.locating.locate import describe, locate
    from conformance.tools.locating.report import LocationReport, as_json, show

    check_target(json, "--json")
    try:
        dump, other = read_dump(a), read_dump(b) if b else None
    except TensorFileError as error:
        raise typer.BadParameter(str(error), param_hint="A" if b is None else "A B") from None
    if other is None:
        report = LocationReport(describe(dump.tensors), (str(a),), dump.ordered)
    else:
        first, second = (dump, other) if dump.ordered or not other.ordered else (other, dump)
        names = [*first.tensors, *(name for name in second.tensors if name not in first.tensors)]
        location = locate(dump.tensors, other.tensors, names, dtype or "float64", position)
        report = LocationReport(location, (str(a), str(b)), first.ordered)
    if json:
        write_atomically(json, as_json(report).encode())
    show(report, stdout())
    raise typer.Exit(report.exit_status)
