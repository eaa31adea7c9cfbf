"""`conformance speed`."""

import secrets
import sys
import time
from typing import Annotated

import typer

from conformance.cli.options import (
    DRAWN_SEEDS,
    PORT_FORMS,
    DeviceOption,
    DTypeOption,
    JsonOption,
    ModeOption,
    OpOption,
    TimeoutOption,
    check_memory,
    check_target,
    launches_of,
    shaped_cases,
)
from conformance.cli.screen import interruptible, stdout
from conformance.ops.cases import is_of

SHAPES = {"cpu": "2048x1024"}
LARGE = "4096x4096"  # elsewhere: in bfloat16 x and y are more than the cache of a GPU holds
DTYPES = ("float32", "bfloat16")


def speed(
    port: Annotated[str, typer.Argument(metavar="PORT", help=PORT_FORMS)],
    against: Annotated[str, typer.Option(metavar="PORT", help="Another port, which is timed in turns with it.")] = "",
    op: OpOption = None,
    dtype: DTypeOption = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="AxB", help=f"A shape of x; may be repeated. {SHAPES['cpu']} on a CPU, {LARGE} elsewhere."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Which inputs; drawn if it is not given.")] = None,
    device: DeviceOption = "cpu",
    mode: ModeOption = "jit",
    timeout: TimeoutOption = 120.0,
    json: JsonOption = None,
) -> None:
    """Time a port's norms, forward and backward, beside whether they are right; against another port in turns.

    Exit status: 0 all that is timed conforms; 1 something does not, or a figure is an error; 2 wrong usage; 3 nothing timed.
    """
    from conformance.numbers.tensors import write_atomically
    from conformance.port.process import PortFailure
    from conformance.tools.speed.report import SpeedReport, as_json, show
    from conformance.tools.speed.speed import time_ports

    launches = launches_of(
        [port, against] if against else [port], None, device=device, mode=mode, timeout=timeout, ops=op or ()
    )
    if against and len(launches) == 1:
        raise typer.BadParameter("name another port than the one that is timed", param_hint="--against")
    if programs := [launch.spec for launch in launches if not launch.is_python]:
        raise typer.BadParameter(f"{programs[0]} is a program; only a port in Python can be timed", param_hint="PORT")
    shapes = shape or [SHAPES.get(device, LARGE)]
    asked = [case for each in shapes for case in shaped_cases(each) if is_of(case, op or (), dtype or DTYPES)]
    if not asked:
        raise typer.BadParameter("it has no cases of a shape that is asked for", param_hint="--op")
    check_memory(tuple(asked), 1)
    check_target(json, "--json")
    began, drawn = time.monotonic(), secrets.randbelow(DRAWN_SEEDS) if seed is None else seed
    try:
        with interruptible("nothing was timed"):
            rows = time_ports(launches, asked, drawn, lambda id_: print(id_, file=sys.stderr, flush=True))
    except PortFailure as failure:
        print(f"a port could not be run: {failure}", file=sys.stderr)
        raise typer.Exit(3) from None
    report = SpeedReport(tuple(rows), launches, drawn, time.monotonic() - began)
    if json:
        write_atomically(json, as_json(report).encode())
    show(report, stdout())
    raise typer.Exit(report.exit_status)
