"""The command line: `conformance run`, `properties`, `fuzz`, `identify`, `locate`, `list`, `explain`, `selftest`, `fixtures`,
`serve`.
"""

import importlib.util
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from conformance.case import Case, Op
from conformance.cases import CASES, select
from conformance.dialects import DIALECTS
from conformance.mistakes import MISTAKES
from conformance.norms.cases import NORMS, NormOp
from conformance.properties import PROPERTIES
from conformance.rounding import DType

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Judge implementations of RMSNorm, LayerNorm and the Pre-LN transformer block against an exact golden.",
)
fixtures_app = typer.Typer(no_args_is_help=True, help="The committed golden data: generate it, or check it.")
app.add_typer(fixtures_app, name="fixtures")

DEFAULT_PORTS = {"impl_torch": ("torch",), "impl_jax": ("jax", "flax")}  # and the packages they need
FIXTURES = Path(__file__).parent / "fixtures"
INTERRUPTED = 128 + signal.SIGINT  # the shell's own convention

Mode = Literal["jit", "eager"]
Listing = Literal["cases", "dialects", "mistakes", "ports", "properties"]
NormOption = Annotated[NormOp | None, typer.Option("--op", help="Only this norm.")]
OpOption = Annotated[Op | None, typer.Option("--op", help="Only this op.")]
DTypeOption = Annotated[DType | None, typer.Option("--dtype", help="Only this storage dtype.")]
FolderOption = Annotated[Path, typer.Option(help="Where the fixtures are.")]
CaseOption = Annotated[str, typer.Option("--case", metavar="GLOB", help="Only cases whose id matches.")]
PortArguments = Annotated[
    list[str] | None, typer.Argument(metavar="[PORT]…", help="module:Class, or a package with a port.py.")
]
ExecOption = Annotated[list[str] | None, typer.Option("--exec", metavar="COMMAND", help="A port in any language.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Which inputs: 0 are the committed fixtures' own.")]
DeviceOption = Annotated[str, typer.Option(help="Where the ports compute, in their framework's words.")]
ModeOption = Annotated[Mode, typer.Option(help="Compiled, or operation by operation.")]
TimeoutOption = Annotated[float, typer.Option(min=0.1, help="Seconds a port may take for one answer.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the whole report here too.")]


def main() -> None:
    """The console script; asked to end, it ends as it would at Ctrl-C, and takes the ports along."""
    for asked in (signal.SIGINT, signal.SIGTERM):  # a shell's background job would ignore the first
        signal.signal(asked, signal.default_int_handler)
    app()


@app.command()
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
    jobs: Annotated[int, typer.Option(min=1, help="Processes for each port, which share its cases.")] = os.cpu_count() or 1,
    json: JsonOption = None,
) -> None:
    """Run the conformance suite: impl_torch and impl_jax, or the ports named.

    Exit status: 0 conforms, 1 does not, 2 wrong usage, 3 a port could not be run.
    """
    from conformance.report.console import show
    from conformance.report.machine import as_json
    from conformance.report.report import Report
    from conformance.runner import run_ports
    from conformance.tensors import write_atomically

    cases = _selected(case, op, dtype, among=_read(file) if file else CASES)
    commands, arguments = _commands(ports, exec_)
    _check_target(json, "--json")
    began = time.monotonic()
    try:
        with _progress(commands, len(cases)) as advance:
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
    except KeyboardInterrupt:
        print("interrupted: nothing was judged", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    report = Report(runs, seed, device, mode, time.monotonic() - began, arguments, str(file or ""))
    if json:
        write_atomically(json, as_json(report).encode())
    show(report, _stdout())
    raise typer.Exit(report.exit_status)


@app.command()
def identify(
    port: Annotated[str | None, typer.Argument(metavar="PORT", help="module:Class, or a package with a port.py.")] = None,
    exec_: Annotated[str | None, typer.Option("--exec", metavar="COMMAND", help="A port in any language.")] = None,
    op: NormOption = None,
    device: DeviceOption = "cpu",
    mode: ModeOption = "jit",
    timeout: TimeoutOption = 120.0,
) -> None:
    """Say which dialect a port follows: where it casts, its weight's offset and dtype, the dtype of y, eps and its place.

    Exit status: 0 all could be told, 1 something follows no known dialect, 2 wrong usage, 3 the port could not be run.
    """
    from conformance.identify import identify_port
    from conformance.process import PortFailure, PortProcess, serve_command
    from conformance.report.console import show_findings
    from conformance.session import Session

    if (port is None) == (exec_ is None):
        raise typer.BadParameter("name one port, or one program with --exec", param_hint="PORT")
    command = serve_command(port) if port else _split(exec_ or "")
    spec = port or exec_ or ""
    start = partial(PortProcess, command, device=device, mode=mode, timeout=timeout)
    try:
        with Session(start, timeout) as session:
            found = identify_port(session, (op,) if op else NORMS)
    except PortFailure as failure:
        print(f"{spec} could not be run: {failure}", file=sys.stderr)
        raise typer.Exit(3) from None
    show_findings(spec, found, _stdout())
    raise typer.Exit(not all(finding.told for findings in found.values() for finding in findings))


@app.command()
def properties(
    ports: PortArguments = None,
    exec_: ExecOption = None,
    op: NormOption = None,
    dtype: DTypeOption = None,
    property_: Annotated[str, typer.Option("--property", metavar="GLOB", help="Only properties whose id matches.")] = "*",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    mode: ModeOption = "jit",
    timeout: TimeoutOption = 120.0,
    json: JsonOption = None,
) -> None:
    """Judge what holds whatever the values: purity, repeatability, rows, scales, layouts, modes.

    Exit status: 0 all that is required holds, 1 it does not, 2 wrong usage, 3 a port could not be run.
    """
    from conformance.inquiry import inquire_ports
    from conformance.report.properties import PropertiesReport, as_json, show
    from conformance.tensors import write_atomically
    from conformance.variants import kinds

    wanted = tuple(each for each in PROPERTIES if fnmatchcase(each.id, property_))
    if not wanted:
        known = ", ".join(each.id for each in PROPERTIES)
        raise typer.BadParameter(f"no property matches {property_!r}; there are {known}", param_hint="--property")
    commands, arguments = _commands(ports, exec_)
    _check_target(json, "--json")
    began = time.monotonic()
    asked = kinds(op, dtype)
    try:
        with _progress(commands, len(asked)) as advance:
            inquiries = inquire_ports(
                commands, asked, wanted=wanted, seed=seed, device=device, mode=mode, timeout=timeout, on_kind=advance
            )
    except KeyboardInterrupt:
        print("interrupted: nothing was judged", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    report = PropertiesReport(inquiries, seed, device, mode, time.monotonic() - began, arguments)
    if json:
        write_atomically(json, as_json(report).encode())
    show(report, _stdout())
    raise typer.Exit(report.exit_status)


@app.command()
def fuzz(
    port: Annotated[str | None, typer.Argument(metavar="[PORT]", help="module:Class, or a package with a port.py.")] = None,
    exec_: Annotated[str | None, typer.Option("--exec", metavar="COMMAND", help="A port in any language.")] = None,
    op: NormOption = None,
    dtype: DTypeOption = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to search.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Which cases.")] = 0,
    device: DeviceOption = "cpu",
    mode: ModeOption = "jit",
    timeout: TimeoutOption = 120.0,
    keep: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the case found here, for run --cases.")] = None,
) -> None:
    """Ask a port random cases until one fails; then find the smallest that does.

    Exit status: 0 nothing found, 1 a case fails, 2 wrong usage, 3 the port could not be run.
    """
    _need_hypothesis()
    from conformance import fuzz
    from conformance.case_files import as_json
    from conformance.process import PortProcess, serve_command
    from conformance.report import fuzzed
    from conformance.report.report import Report
    from conformance.tensors import write_atomically

    if bool(port) == bool(exec_):
        raise typer.BadParameter("name one port: module:Class, or --exec COMMAND")
    name, command = (exec_, _split(exec_)) if exec_ else (port or "", serve_command(port or ""))
    _check_target(keep, "--keep")
    start = partial(PortProcess, command, device=device, mode=mode, timeout=timeout)
    try:
        search = fuzz.fuzz(name, start, seconds=seconds, seed=seed, op=op, dtype=dtype, timeout=timeout)
    except KeyboardInterrupt:
        print("interrupted: nothing was found", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if keep and search.found:
        write_atomically(keep, as_json(search.found.verdict.case).encode())
    arguments = {name: f"--exec {shlex.quote(name)}"} if exec_ else {}
    report = Report((), fuzz.CASES_SEED, device, mode, search.seconds, arguments, str(keep or "FILE"))
    fuzzed.show(search, seed, report, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    raise typer.Exit(fuzzed.exit_status(search))


@app.command()
def locate(
    a: Annotated[Path, typer.Argument(help="Activations by name, in a safetensors file.")],
    b: Annotated[Path | None, typer.Argument(help="Those of the other run.")] = None,
    dtype: Annotated[DType | None, typer.Option("--dtype", help="What one computes in, if it stores something finer.")] = None,
    json: JsonOption = None,
) -> None:
    """Name the first activation where two runs part, or turn NaN; of one run alone, the first that is not finite.

    Exit status: 0 they agree, 1 they do not, or something is NaN or infinite, 2 wrong usage.
    """
    from conformance.locate import describe, locate
    from conformance.report.location import LocationReport, as_json, show
    from conformance.tensors import TensorFileError, read_dump, write_atomically

    _check_target(json, "--json")
    try:
        dump, other = read_dump(a), read_dump(b) if b else None
    except TensorFileError as error:
        raise typer.BadParameter(str(error), param_hint="A" if b is None else "A B") from None
    if other is None:
        report = LocationReport(describe(dump.tensors), (str(a),), dump.ordered)
    else:
        first, second = (dump, other) if dump.ordered or not other.ordered else (other, dump)
        names = [*first.tensors, *(name for name in second.tensors if name not in first.tensors)]
        location = locate(dump.tensors, other.tensors, names, dtype or "float64")
        report = LocationReport(location, (str(a), str(b)), first.ordered)
    if json:
        write_atomically(json, as_json(report).encode())
    show(report, _stdout())
    raise typer.Exit(report.exit_status)


@app.command("list")
def list_(
    what: Annotated[Listing, typer.Argument(help="cases, dialects, mistakes, properties or ports.")] = "cases",
    op: OpOption = None,
    dtype: DTypeOption = None,
    case: CaseOption = "*",
) -> None:
    """List the cases (an id and what it exposes), the dialects, mistakes and properties the kit knows, or the ports."""
    match what:
        case "cases":
            cases = _selected(case, op, dtype)
            width = max(len(each.id) for each in cases)
            print("\n".join(f"{each.id:{width}}  {each.exposes}" for each in cases))
        case "dialects":
            for dialect in DIALECTS:
                print(f"{dialect.name:32}  {dialect.sentence}")
        case "mistakes":
            for mistake in MISTAKES:
                print(f"{mistake.id:32}  {mistake.sentence}")
        case "properties":
            for each in PROPERTIES:
                print(f"{each.id:13}  {each.sentence}")
        case "ports":
            for port in DEFAULT_PORTS:
                missing = [name for name in DEFAULT_PORTS[port] if importlib.util.find_spec(name) is None]
                print(f"{port:12}  {'needs ' + ', '.join(missing) if missing else 'ready'}")


@app.command()
def explain(
    id_: Annotated[
        str, typer.Argument(metavar="ID", help="A case (or a glob that matches one), dialect, mistake or property.")
    ],
) -> None:
    """Say what a case, a dialect, a mistake or a property is about."""
    from conformance.report.explanation import explain_case, explain_mistake, explain_property

    mistakes = {mistake.id: mistake for mistake in MISTAKES}
    dialects = {dialect.name: dialect for dialect in DIALECTS}
    properties = {each.id: each for each in PROPERTIES}
    if id_ in mistakes:
        print(explain_mistake(mistakes[id_]))
    elif id_ in dialects:
        print(f"{id_}\n  {dialects[id_].sentence}\n  cases     conformance list --case '*/{id_}/*'")
    elif id_ in properties:
        print(explain_property(properties[id_]))
    elif close := get_close_matches(id_, [*mistakes, *dialects, *properties], n=1, cutoff=0.7):
        raise typer.BadParameter(f"nothing is called {id_!r}; did you mean {close[0]}?", param_hint="ID")
    else:
        case, *others = _selected(id_, None, None, "ID")
        if others:
            raise typer.BadParameter(f"{1 + len(others)} cases match {id_!r}; name one, such as {case.id}", param_hint="ID")
        print(explain_case(case))


@app.command()
def selftest(
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the mistakes.")] = os.cpu_count() or 1,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Write the whole matrix here, as Markdown.")
    ] = None,
) -> None:
    """Make every known mistake, and see each rejected wherever it can be seen, with room between right and wrong.

    Needs no framework. Exit status: 0 the judge is sound, 1 it is not.
    """
    from conformance.report.self_test import page as as_page
    from conformance.report.self_test import show_self_test
    from conformance.selftest import self_test, steps
    from conformance.tensors import write_atomically

    with _progress(["mistakes"], steps()) as advance:
        result = self_test(jobs, on_step=lambda: advance("mistakes"))
    if page:
        write_atomically(page, as_page(result).encode())
    show_self_test(result, _stdout())
    raise typer.Exit(not result.passes)


@app.command()
def serve(spec: Annotated[str, typer.Argument(metavar="PORT", help="module:Class, or a package with a port.py.")]) -> None:
    """Serve a Python port on stdin and stdout; `run` starts this by itself."""
    from conformance.port import serve

    sys.path.insert(0, str(Path.cwd()))
    serve(spec)


@fixtures_app.command()
def generate(folder: FolderOption = FIXTURES) -> None:
    """Write every fixture and the manifest anew, whole or not at all."""
    from conformance.fixtures import generate

    began = time.monotonic()
    count, size = generate(folder)
    print(f"{count} cases, {size / 1e6:.1f} MB, in {time.monotonic() - began:.1f} s: {folder}")


@fixtures_app.command()
def check(folder: FolderOption = FIXTURES) -> None:
    """Verify every digest, regenerate, and say exactly what differs. Exit status: 0 all is as it should be, 1 it is not."""
    from conformance.fixtures import check

    differences = check(folder)
    for difference in differences:
        print(difference)
    print(f"{folder}: {f'{len(differences)} differences' if differences else 'all as it should be'}")
    raise typer.Exit(bool(differences))


def _commands(ports: list[str] | None, programs: list[str] | None) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What starts each port asked for, and what names a program on the command line."""
    from conformance.process import serve_command

    commands = {command: _split(command) for command in programs or ()}
    arguments = {command: f"--exec {shlex.quote(command)}" for command in commands}
    return commands | {spec: serve_command(spec) for spec in ports or (() if commands else DEFAULT_PORTS)}, arguments


def _split(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise typer.BadParameter(f"{command!r}: {error}", param_hint="--exec") from None
    if not words:
        raise typer.BadParameter("the command is empty", param_hint="--exec")
    return words


def _check_target(path: Path | None, hint: str) -> None:
    """Raise a usage error, before anything is run, where a file could not be written."""
    if path and (path.is_dir() or not path.parent.is_dir()):
        problem = f"{path} is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise typer.BadParameter(problem, param_hint=hint)


def _read(path: Path) -> tuple[Case, ...]:
    from conformance.case_files import CaseFileError, read_cases

    try:
        return read_cases(path)
    except CaseFileError as error:
        raise typer.BadParameter(str(error), param_hint="--cases") from None


def _need_hypothesis() -> None:
    if importlib.util.find_spec("hypothesis") is None:
        raise typer.BadParameter("fuzz needs hypothesis: pip install 'norm-conformance[fuzz]'")


def _selected(
    pattern: str, op: Op | None, dtype: DType | None, hint: str = "--case", among: tuple[Case, ...] = CASES
) -> tuple[Case, ...]:
    """The cases asked for. Raises a usage error where there are none: nothing passes by not running."""
    cases = select(pattern, op=op, dtype=dtype, cases=among)
    if not cases:
        close = get_close_matches(pattern, [case.id for case in among], n=1, cutoff=0.5)
        help_ = f"; did you mean {close[0]}?" if close else "; `conformance list` lists them all"
        limits = "".join(f" with --{name} {value}" for name, value in (("op", op), ("dtype", dtype)) if value)
        raise typer.BadParameter(f"no case matches {pattern!r}{limits}{help_}", param_hint=hint)
    return cases


@contextmanager
def _progress(names: Iterable[str], count: int) -> Generator[Callable[[str], None]]:
    """A bar for every name, on stderr while it is a terminal; yields what to call with a name that is one step on."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {name: progress.add_task(name, total=count) for name in names}
        yield lambda name: progress.advance(tasks[name])


def _stdout() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)
