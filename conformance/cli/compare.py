"""`conformance compare`."""

from functools import partial
from typing import Annotated, Any

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
from conformance.cli.screen import Advance, interruptible, progress, stdout
from conformance.judging.compare import Verdict
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
    settings: Any = {"device": device, "timeout": timeout, "in_process": False, "ops": ops}
    launches = launch_of(a, None, mode=mode, **settings), launch_of(b, None, mode=mode_b or mode, **settings)
    check_target(json, "--json")
    names = ["a", "b"]
    with interruptible("nothing was compared"), progress(names, len(cases)) as advance:
        of_a, of_b = (
            run_port(launch, cases, seed, partial(_on, advance, name)) for name, launch in zip(names, launches, strict=True)
        )
    pairs = () if of_a.failure or of_b.failure else compare_runs(of_a, of_b, seed)
    comparison = Comparison(launches, (of_a, of_b), pairs, seed)
    if json:
        write_atomically(json, as_json(comparison).encode())
    show(comparison, stdout())
    raise typer.Exit(comparison.exit_status)


def _on(advance: Advance, name: str, verdict: Verdict) -> None:
    """A step of the progress for a verdict."""
    advance(name, failed=verdict.failed)
