"""`conformance fuzz`."""

import importlib.util
from pathlib import Path
from typing import Annotated

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
    check_target,
    launch_of,
)
from conformance.cli.screen import interruptible, stdout


def fuzz(
    port: OnePortArgument = None,
    exec_: OneExecOption = None,
    op: NormOption = None,
    dtype: DTypeOption = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to search.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Which cases.")] = 0,
    most: Annotated[int, typer.Option(min=1, help="Stop at so many failures that are unlike one another.")] = 8,
    device: DeviceOption = "cpu",
    mode: ModeOption = "jit",
    timeout: TimeoutOption = 120.0,
    in_process: InProcessOption = False,
    keep: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the cases found here, for run --cases.")] = None,
) -> None:
    """Ask a port random cases until the time is up; of every failure unlike the others, find the smallest case.

    Exit status: 0 nothing found, 1 a case fails, 2 wrong usage, 3 the port could not be run.
    """
    _need_hypothesis()
    from conformance.numbers.tensors import write_atomically
    from conformance.ops.case_files import as_json
    from conformance.report.report import Settings
    from conformance.tools.fuzzing import fuzz
    from conformance.tools.fuzzing import report as fuzzed

    launch = launch_of(port, exec_, device=device, mode=mode, timeout=timeout, in_process=in_process, ops=op)
    check_target(keep, "--keep")
    with interruptible("nothing was found"):
        search = fuzz.fuzz(launch, seconds=seconds, seed=seed, op=op or (), dtype=dtype or (), most=most)
    if keep and search.found:
        write_atomically(keep, as_json(*(found.verdict.case for found in search.found)).encode())
    settings = Settings(fuzz.CASES_SEED, device, mode, cases=str(keep or "FILE"))
    fuzzed.show(search, seed, settings, stdout())
    raise typer.Exit(fuzzed.exit_status(search))


def _need_hypothesis() -> None:
    if importlib.util.find_spec("hypothesis") is None:
        raise typer.BadParameter("fuzz needs hypothesis: pip install 'norm-conformance[fuzz]'")
