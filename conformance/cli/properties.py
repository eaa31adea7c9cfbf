"""`conformance properties`."""

import time
from fnmatch import fnmatchcase
from typing import Annotated

import typer

from conformance.cli.options import (
    DeviceOption,
    DTypeOption,
    ExecOption,
    JsonOption,
    ModeOption,
    PortArguments,
    RowNormOption,
    SeedOption,
    TimeoutOption,
    check_target,
    launches_of,
)
from conformance.cli.screen import interruptible, progress, stdout
from conformance.tools.properties.properties import PROPERTIES


def properties(
    ports: PortArguments = None,
    exec_: ExecOption = None,
    op: RowNormOption = None,
    dtype: DTypeOption = None,
    property_: Annotated[
        list[str] | None, typer.Option("--property", metavar="GLOB", help="Only properties whose id matches; may be repeated.")
    ] = None,
    bitwise: Annotated[
        bool, typer.Option("--bitwise", help="Ask for the same bits in every batch size and process, as servers do.")
    ] = False,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    mode: ModeOption = "jit",
    timeout: TimeoutOption = 120.0,
    json: JsonOption = None,
) -> None:
    """Judge what holds whatever the values: purity, repeatability, rows, scales, layouts, modes; and errors over whole tensors.

    Exit status: 0 all that is required holds, 1 it does not, 2 wrong usage, 3 a port could not be run.
    """
    from conformance.numbers.tensors import write_atomically
    from conformance.tools.properties.inquiry import inquire_ports
    from conformance.tools.properties.report import PropertiesReport, as_json, show
    from conformance.tools.properties.variants import kinds

    for glob in property_ or ():
        if not any(fnmatchcase(each.id, glob) for each in PROPERTIES):
            known = ", ".join(each.id for each in PROPERTIES)
            raise typer.BadParameter(f"no property matches {glob!r}; there are {known}", param_hint="--property")
    wanted = tuple(each for each in PROPERTIES if any(fnmatchcase(each.id, glob) for glob in property_ or ["*"]))
    launches = launches_of(ports, exec_, device=device, mode=mode, timeout=timeout)
    check_target(json, "--json")
    began = time.monotonic()
    asked = kinds(op or (), dtype or ())
    specs = [launch.spec for launch in launches]
    with interruptible("nothing was judged"), progress(specs, len(asked), of="kinds of case") as advance:
        inquiries = inquire_ports(launches, asked, wanted=wanted, bitwise=bitwise, seed=seed, on_kind=advance)
    report = PropertiesReport(inquiries, seed, time.monotonic() - began, bitwise=bitwise)
    if json:
        write_atomically(json, as_json(report).encode())
    show(report, stdout())
    raise typer.Exit(report.exit_status)
