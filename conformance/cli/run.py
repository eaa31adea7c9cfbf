"""`conformance run`."""

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from conformance.cli.options import (
    CaseOption,
    DeviceOption,
    DrawnSeedOption,
    DTypeOption,
    ExcludeOption,
    ExecOption,
    InProcessOption,
    ModeOption,
    NoCacheOption,
    OpOption,
    PortArguments,
    QuickOption,
    RanksOption,
    ShardOption,
    TimeoutOption,
    check_memory,
    launches_of,
    ranked_cases,
    read_case_file,
    selected,
    shaped_cases,
    shard_of,
    swept,
)
from conformance.cli.pages import (
    BadgeOption,
    HtmlOption,
    JunitOption,
    MarkdownOption,
    QuietOption,
    RunJsonOption,
    VerboseOption,
    check_targets,
    publish,
)
from conformance.cli.screen import interruptible
from conformance.ops.cases import CASES
from conformance.ops.quick import QUICK


def run(
    ports: PortArguments = None,
    exec_: ExecOption = None,
    op: OpOption = None,
    dtype: DTypeOption = None,
    case: CaseOption = None,
    exclude: ExcludeOption = None,
    file: Annotated[Path | None, typer.Option("--cases", metavar="FILE", help="Cases kept by fuzz, not the kit's own.")] = None,
    shape: Annotated[
        str, typer.Option(metavar="AxB", help="One shape of x, not the kit's own cases; with --op, --dtype.")
    ] = "",
    quick: QuickOption = False,
    configs: Annotated[
        bool, typer.Option("--configs", help="Every config of a port's autotuned kernels, each as a port.")
    ] = False,
    seed: DrawnSeedOption = 0,
    ranks: RanksOption = 1,
    device: DeviceOption = "cpu",
    mode: ModeOption = "jit",
    timeout: TimeoutOption = 120.0,
    in_process: InProcessOption = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes for each port, which share its cases.")] = os.cpu_count() or 1,
    shard: ShardOption = "1/1",
    no_cache: NoCacheOption = False,
    json: RunJsonOption = None,
    junit: JunitOption = None,
    markdown: MarkdownOption = None,
    html: HtmlOption = None,
    badge: BadgeOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run the conformance suite: impl_torch and impl_jax, or the ports named.

    Exit status: 0 conforms, 1 does not, 2 wrong usage, 3 a port could not be run.
    """
    from conformance.cli.streaming import STDOUT, Stream
    from conformance.cli.watch import watched
    from conformance.judging.compare import Verdict
    from conformance.report.again import alone, asked_again
    from conformance.report.building import build, digest
    from conformance.report.report import Settings
    from conformance.running.runner import run_port, run_ports

    if shape and (file or not (case or (op and dtype))):
        raise typer.BadParameter("say of which --op and --dtype, or --case; and no --cases", param_hint="--shape")
    if quick and (shape or file):
        raise typer.BadParameter("the quick cases are the kit's own; no --shape and no --cases", param_hint="--quick")
    among = shaped_cases(shape) if shape else read_case_file(file) if file else QUICK if quick else CASES
    among, jobs = ranked_cases(among, ranks, jobs)
    asked = selected(case, op, dtype, exclude, among=among)
    cases, number, shards = shard_of(shard, asked)
    ops = {case.op for case in asked}
    how: Any = {"device": device, "mode": mode, "timeout": timeout, "ranks": ranks, "in_process": in_process}
    launches = launches_of(ports, exec_, **how, ops=ops)
    if configs:
        launches = swept(launches, quiet=quiet)
    if shape:
        check_memory(cases, len(launches))
    told = Stream([launch.spec for launch in launches], len(cases)) if json == STDOUT else None
    files = {"json": None if told else json, "junit": junit, "markdown": markdown, "html": html, "badge": badge}
    check_targets(**files)
    began = time.monotonic()
    shown = [] if in_process else [launch.spec for launch in launches]  # a debugger needs the terminal for itself
    with interruptible("nothing was judged"), watched(shown, cases, seed, quiet=quiet) as (take, diagnose):

        def on_verdict(verdict: Verdict) -> None:
            take(verdict)
            if told:
                told.verdict(verdict)

        if in_process:
            runs = tuple(run_port(launch, cases, seed, on_verdict) for launch in launches)
        else:
            runs = run_ports(launches, cases, seed=seed, jobs=jobs, on_verdict=on_verdict)
    settings = Settings(seed, device, mode, str(file or ""), len(asked), digest(asked), number, shards, shape, quick, ranks)
    report = build(runs, settings, time.monotonic() - began, diagnose)
    if not in_process:
        report = asked_again(report, cases, alone(launches, seed))
    if told:
        told.report(report)
    publish(report, **files, verbose=verbose, quiet=quiet, aside=bool(told))
