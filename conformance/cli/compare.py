"""`conformance compare`."""

from typing import Annotated

import typer

from conformance.cli.options import (
    PORT_FORMS,
    CaseOption,
    DeviceOption,
    DrawnSeedOption,
    DTypeOption,
    ExcludeOption,
    JsonOption,
    ModeOption,
    OpOption,
    QuickOption,
    TimeoutOption,
    check_target,
    launch_of,
    selected,
)
from conformance.cli.screen import interruptible, progress, stdout
from conformance.ops.cases import CASES
from conformance.ops.quick import QUICK
from conformance.port.launch import Mode


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=PORT_FORMS)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other port, or the same one in another mode.")],
    op: OpOption = None,
    dtype: DTypeOption = None,
    case: CaseOption = None,
    exclude: ExcludeOption = None,
    quick: QuickOption = False,
    seed: DrawnSeedOption = 0,
    device: DeviceOption = "cpu",
    mode: ModeOption = "jit",
    mode_b: Annotated[Mode | None, typer.Option("--mode-b", help="The mode of B, where it is not that of A.")] = None,
    timeout: TimeoutOption = 120.0,
    json: JsonOption = None,
) -> None:
    """Give two ports the same inputs: the same bits, or where they differ, by how many ulps, and whose side the golden takes.

    Exit status: 0 the same bits, 1 other bits somewhere, 2 wrong usage, 3 a port could not be run, or nothing was compared.
    """
    from conformance.numbers.tensors import write_atomically
    from conformance.running.runner import run_port
    from conformance.tools.comparing.comparing import compare_runs
    from conformance.tools.comparing.report import Comparison, as_json, show

    cases = selected(case, op, dtype, exclude, among=QUICK if quick else CASES)
    ops = {each.op for each in cases}
    launches = tuple(
        launch_of(port, None, device=device, mode=its, timeout=timeout, in_process=False, ops=ops)
        for port, its in ((a, mode), (b, mode_b or mode))
    )
    check_target(json, "--json")
    names = ["a", "b"]
    with interruptible("nothing was compared"), progress(names, len(cases)) as advance:
        runs = tuple(
            run_port(launch, cases, seed, lambda verdict, name=name: advance(name, failed=verdict.failed))
            for name, launch in zip(names, launches, strict=True)
        )
    pairs = () if any(run.failure for run in runs) else compare_runs(*runs, seed)
    comparison = Comparison(launches, runs, pairs, seed)
    if json:
        write_atomically(json, as_json(comparison).encode())
    show(comparison, stdout())
    raise typer.Exit(comparison.exit_status)
