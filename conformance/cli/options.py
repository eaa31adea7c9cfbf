"""What the commands are told, and how a wrong use of it is refused."""

import os
import secrets
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from conformance.numbers import cache
from conformance.numbers.nearest import did_you_mean
from conformance.numbers.rounding import DTYPES
from conformance.ops.cases import CASES, NoCaseError, require
from conformance.ops.norms.cases import ROW_BY_ROW, ROW_NORMS
from conformance.ops.table import OPS
from conformance.port.launch import Launch, Mode
from conformance.port.naming import PortNameError, by_command, by_name
from conformance.question.case import Case

DRAWN_SEEDS = 2**31
DEFAULT_PORTS = {"impl_torch": ("torch",), "impl_jax": ("jax", "flax")}  # and the packages they need


def _one_of(*options: str) -> Callable[[str], str]:
    """What reads a value that is one of these; Typer has no lists of literals."""

    def read(said: str) -> str:
        if said not in options:
            raise typer.BadParameter(f"{said!r} is not one of {', '.join(map(repr, options))}{did_you_mean(said, options)}")
        return said

    return read


RowNormOption = Annotated[
    list[str] | None,
    typer.Option("--op", parser=_one_of(*ROW_NORMS), metavar="|".join(ROW_NORMS), help="Only this norm; may be repeated."),
]
NormOption = Annotated[
    list[str] | None,
    typer.Option("--op", parser=_one_of(*ROW_BY_ROW), metavar="NORM", help="Only this norm; may be repeated."),
]
OpOption = Annotated[
    list[str] | None, typer.Option("--op", parser=_one_of(*OPS), metavar="OP", help="Only this op; may be repeated.")
]
DTypeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dtype", parser=_one_of(*DTYPES), metavar="|".join(DTYPES), help="Only this storage dtype; may be repeated."
    ),
]
CaseOption = Annotated[
    list[str] | None, typer.Option("--case", metavar="GLOB", help="Only cases whose id matches; may be repeated.")
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="GLOB", help="No case whose id matches; may be repeated.")
]
PORT_FORMS = "A file, folder or program, a package with a port.py, module:Class, or what `list ports` lists."
PortArguments = Annotated[list[str] | None, typer.Argument(metavar="PORT", help=PORT_FORMS)]
OnePortArgument = Annotated[str | None, typer.Argument(metavar="PORT", help=PORT_FORMS)]
OneExecOption = Annotated[str | None, typer.Option("--exec", metavar="COMMAND", help="A port in any language.")]
ExecOption = Annotated[list[str] | None, typer.Option("--exec", metavar="COMMAND", help="A port in any language.")]
InProcessOption = Annotated[
    bool, typer.Option("--in-process", help="Run it in this very process, for breakpoint() and debuggers; no time-out.")
]


def _seed(said: str | int) -> int:
    """A seed as it is said, or one that nobody knows before."""
    if said == "random":
        return secrets.randbelow(DRAWN_SEEDS)
    if not str(said).isdecimal():
        raise typer.BadParameter(f"{said!r} is neither a whole number from 0 on nor `random`")
    return int(said)


SeedOption = Annotated[int, typer.Option(min=0, help="Which inputs: 0 are the committed fixtures' own.")]
DrawnSeedOption = Annotated[
    int, typer.Option("--seed", parser=_seed, metavar="N|random", help="Which inputs: 0 are the committed fixtures' own.")
]


def _no_cache(said: bool) -> bool:
    if said:
        os.environ[cache.VARIABLE] = cache.OFF
    return said


NoCacheOption = Annotated[
    bool,
    typer.Option("--no-cache", callback=_no_cache, help="Compute anew what earlier runs have kept on disk; keep nothing."),
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Few cases, which reject every known mistake that all of them reject.")
]
ShardOption = Annotated[str, typer.Option(metavar="I/N", help="Only part I of N of the cases; `merge` joins the reports.")]
DeviceOption = Annotated[str, typer.Option(help="Where the ports compute, in their framework's words.")]
ModeOption = Annotated[Mode, typer.Option(help="Compiled, or operation by operation.")]
TimeoutOption = Annotated[float, typer.Option(min=0.1, help="Seconds a port may take for one answer.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the whole report here too.")]


def launches_of(
    ports: list[str] | None,
    programs: list[str] | None,
    *,
    device: str,
    mode: Mode,
    timeout: float,
    in_process: bool = False,
    ops: Collection[str] = (),
) -> tuple[Launch, ...]:
    """What it takes to start each port asked for. Where all cases are of one of the `ops`, that is what a function is.

    Raises a usage error where one cannot be started, or not in this way.
    """
    named = [_launch(by_command, program, "--exec") for program in programs or ()]
    named += [_launch(by_name, port, "PORT") for port in ports or (() if named else DEFAULT_PORTS)]
    for launch in named:
        if in_process and not launch.is_python:
            said = f"{launch.spec} is a program; only a port in Python can be run here"
            raise typer.BadParameter(said, param_hint="--in-process")
    op = next(iter(ops)) if len(ops) == 1 else ""
    told = partial(replace, device=device, mode=mode, timeout=timeout, in_process=in_process, op=op)
    return tuple({launch.spec: told(launch) for launch in named}.values())  # one that is named twice is run once


def launch_of(
    port: str | None,
    program: str | None,
    *,
    device: str,
    mode: Mode,
    timeout: float,
    in_process: bool,
    ops: Collection[str] | None,
) -> Launch:
    """What it takes to start the one port asked for. Raises a usage error."""
    if bool(port) == bool(program):
        raise typer.BadParameter("name one port: a file, module:Class, or --exec COMMAND", param_hint="PORT")
    ports, programs = [port] if port else None, [program] if program else None
    [launch] = launches_of(ports, programs, device=device, mode=mode, timeout=timeout, in_process=in_process, ops=ops or ())
    return launch


def swept(launches: tuple[Launch, ...], *, quiet: bool) -> tuple[Launch, ...]:
    """A launch for every config of each port's autotuned kernels; which is which goes to stderr.

    Raises a usage error where a port has none, or cannot be loaded.
    """
    from conformance.port.naming import load

    found: list[Launch] = []
    for launch in launches:
        try:
            described = load(launch.spec, launch.op).configs() if launch.is_python else ()
        except Exception as error:  # whatever a port's module does when it is imported
            raise typer.BadParameter(f"{launch.spec}: {type(error).__name__}: {error}", param_hint="--configs") from None
        if not described:
            raise typer.BadParameter(f"{launch.spec} has no autotuned kernel", param_hint="--configs")
        found += [replace(launch, spec=f"{launch.spec}@{number}") for number in range(len(described))]
        for number, words in enumerate(described if not quiet else ()):
            typer.echo(f"{launch.spec}@{number} is {words}", err=True)
    return tuple(found)


def _launch(read: Callable[[str], Launch], said: str, hint: str) -> Launch:
    try:
        return read(said)
    except PortNameError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from None


def check_target(path: Path | None, hint: str) -> None:
    """Raise a usage error, before anything is run, where a file could not be written."""
    if path and (path.is_dir() or not path.parent.is_dir()):
        problem = f"{path} is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise typer.BadParameter(problem, param_hint=hint)


def read_case_file(path: Path) -> tuple[Case, ...]:
    """The cases that a file holds. Raises a usage error that says what is wrong with it."""
    from conformance.ops.case_files import CaseFileError, read_cases

    try:
        return read_cases(path)
    except CaseFileError as error:
        raise typer.BadParameter(str(error), param_hint="--cases") from None


def selected(
    case: list[str] | None,
    op: list[str] | None = None,
    dtype: list[str] | None = None,
    exclude: list[str] | None = None,
    *,
    hint: str = "--case",
    among: tuple[Case, ...] = CASES,
) -> tuple[Case, ...]:
    """The cases asked for. Raises a usage error where there are none: nothing passes by not running."""
    try:
        return require(case or "*", op=op or (), dtype=dtype or (), exclude=exclude or (), cases=among)
    except NoCaseError as error:
        raise typer.BadParameter(str(error), param_hint=hint if error.option == "case" else "--exclude") from None


def shaped_cases(shape: str) -> tuple[Case, ...]:
    """The cases of a shape. Raises a usage error where it is none."""
    from conformance.ops.shapes import ShapeError, shaped

    try:
        return shaped(shape)
    except ShapeError as error:
        raise typer.BadParameter(str(error), param_hint="--shape") from None


def check_memory(cases: tuple[Case, ...], ports: int) -> None:
    """Raise a usage error, before anything is run, where cases of a shape take more memory than is free."""
    from conformance.ops.shapes import ShapeError, require_memory

    try:
        require_memory(cases, ports)
    except ShapeError as error:
        raise typer.BadParameter(str(error), param_hint="--shape") from None


def shard_of(said: str, asked: tuple[Case, ...]) -> tuple[tuple[Case, ...], int, int]:
    """The part I/N of the cases asked for, and I and N. Raises a usage error where there is none."""
    from conformance.running.shard import shard

    number, slash, count = said.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise typer.BadParameter(f"{said!r} is not I/N, such as 1/4", param_hint="--shard")
    cases = shard(asked, int(number), int(count)) if int(count) <= len(asked) else ()
    if not cases:
        few = "1 case is" if len(asked) == 1 else f"{len(asked)} cases are"
        raise typer.BadParameter(f"{few} too few for {count} shards: {said} has none", param_hint="--shard")
    return cases, int(number), int(count)
