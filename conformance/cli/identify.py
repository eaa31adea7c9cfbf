"""`conformance identify`."""

import sys

import typer

from conformance.cli.options import (
    DeviceOption,
    DTypeOption,
    InProcessOption,
    ModeOption,
    NormOption,
    OneExecOption,
    OnePortArgument,
    TimeoutOption,
    launch_of,
)
from conformance.cli.screen import stdout
from conformance.numbers.rounding import DTYPES


def identify(
    port: OnePortArgument = None,
    exec_: OneExecOption = None,
    op: NormOption = None,
    dtype: DTypeOption = None,
    device: DeviceOption = "cpu",
    mode: ModeOption = "jit",
    timeout: TimeoutOption = 120.0,
    in_process: InProcessOption = False,
) -> None:
    """Say which dialect a port follows in each dtype: where it casts, its weight's offset and dtype, y's dtype, and eps.

    Exit status: 0 all could be told, 1 something follows no known dialect, 2 wrong usage, 3 the port could not be run.
    """
    from conformance.port.process import PortFailure
    from conformance.port.session import Session
    from conformance.tools.scoreboard.findings import show_findings
    from conformance.tools.scoreboard.identify import IDENTIFIED, Identified, identify_port

    launch = launch_of(port, exec_, device=device, mode=mode, timeout=timeout, in_process=in_process, ops=op)
    try:
        with Session(launch) as session:
            ops: tuple[Identified, ...] = tuple(each for each in IDENTIFIED if not op or each in op)
            found = identify_port(session, ops, tuple(each for each in DTYPES if not dtype or each in dtype))
    except PortFailure as failure:
        print(f"{launch.spec} could not be run: {failure}", file=sys.stderr)
        raise typer.Exit(3) from None
    show_findings(launch.spec, found, stdout())
    raise typer.Exit(not all(finding.told for findings in found.values() for finding in findings))
