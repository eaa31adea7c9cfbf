"""`conformance run`."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from conformance.cases import CASES
from conformance.cli.options import (
    CaseOption,
    DeviceOption,
    DTypeOption,
    ExecOption,
    InProcessOption,
    JsonOption,
    ModeOption,
    OpOption,
    PortArguments,
    SeedOption,
    TimeoutOption,
    check_in_process,
    check_target,
    commands_of,
    read_case_file,
    selected,
)
from conformance.cli.screen import interruptible, progress, stdout


def run(
    ports: PortArguments = None,
    exec_: ExecOption = None,
    op: OpOption = None,
    dtype: DTypeOption = None,
    case: CaseOption = "*",
    file: Annotated[Path | None, typer.Option("--cases", metavar="FILE", help="Cases kept by fuzz, not the kit's own.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    mode: ModeOption = "jit",
    timeout: TimeoutOption = 120.0,
    in_process: InProcessOption = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes for each port, which share its cases.")] = os.cpu_count() or 1,
    json: JsonOption = None,
) -> None:
    """Run the conformance suite: impl_torch and impl_jax, or the ports named.

    Exit status: 0 conforms, 1 does not, 2 wrong usage, 3 a port could not be run.
    """
    from conformance.in_process import run_in_process
    from conformance.report.console import show
    from conformance.report.machine import as_json
    from conformance.report.report import Report
    from conformance.runner import run_ports
    from conformance.tensors import write_atomically

    cases = selected(case, op, dtype, among=read_case_file(file) if file else CASES)
    commands, arguments = commands_of(ports, exec_)
    check_target(json, "--json")
    if in_process:
        check_in_process(commands)
    began = time.monotonic()
    with interruptible("nothing was judged"):
        if in_process:
            runs = run_in_process(commands, cases, seed=seed, device=device, mode=mode)
        else:
            with progress(commands, len(cases)) as advance:
                runs = run_ports(
                    commands,
                    cases,
                    seed=seed,
                    device=device,
                    mode=mode,
                    timeout=timeout,
                    jobs=jobs,
                    on_verdict=lambda verdict: advance(verdict.port),
                )
    report = Report(runs, seed, device, mode, time.monotonic() - began, arguments, str(file or ""))
    if json:
        write_atomically(json, as_json(report).encode())
    show(report, stdout())
    raise typer.Exit(report.exit_status)
