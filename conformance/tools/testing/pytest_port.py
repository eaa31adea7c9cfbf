"""A port's cases as tests of pytest: what is asked for, the port while it is asked, and an item for every case."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from conformance.judging.compare import Verdict
from conformance.numbers.rounding import DTYPES
from conformance.ops.cases import CASES, Names, NoCaseError, require
from conformance.ops.quick import QUICK
from conformance.ops.table import OPS
from conformance.port.launch import Launch
from conformance.port.naming import PortNameError, by_command, by_name
from conformance.port.process import PortFailure
from conformance.port.session import Session
from conformance.question.case import Case
from conformance.report.building import assemble, build, digest
from conformance.report.counting import count_of
from conformance.report.machine import as_json, parse
from conformance.report.report import FAILS, Settings
from conformance.report.single import Teller
from conformance.report.words import paragraph
from conformance.running.runner import Examination, PortRun
from conformance.running.shard import program

CAUSES_SHOWN = 8
# A port is imported as the tests are, wherever pytest has found them.
SERVE = "import sys; sys.path[:] = {path!r}; from conformance.cli import main; main()"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options say: a port, if any, and the cases; `teller` tells what failed in one of them."""

    launch: Launch | None
    settings: Settings
    cases: tuple[Case, ...]
    teller: Teller

    @property
    def seed(self) -> int:
        """Which inputs."""
        return self.settings.seed


def read(said: Mapping[str, str], chosen: Mapping[str, tuple[str, ...]], quick: bool = False) -> Asked:
    """The options as they were said, empty where they were not; `chosen` are those that may be repeated.

    If `quick`, the cases are chosen among the quick ones.

    Raises `ValueError`, which names the option.
    """
    _check("op", chosen["op"], tuple(OPS))
    _check("dtype", chosen["dtype"], DTYPES)
    _check("mode", (said["mode"] or "jit",), ("jit", "eager"))
    if said["port"] and said["exec"]:
        raise ValueError("--conformance-port and --conformance-exec: name one port")
    if said["seed"] and not said["seed"].isdecimal():
        raise ValueError(f"--conformance-seed: {said['seed']!r} is not a whole number from 0 on")
    try:
        timeout = float(said["timeout"] or 120)
    except ValueError:
        timeout = 0.0
    if not 0 < timeout < float("inf"):
        raise ValueError(f"--conformance-timeout: {said['timeout']!r} is not a number of seconds")
    cases = _selected(
        "--conformance-",
        chosen["case"] or "*",
        QUICK if quick else CASES,
        op=chosen["op"],
        dtype=chosen["dtype"],
        exclude=chosen["exclude"],
    )
    device, mode = said["device"] or "cpu", "eager" if said["mode"] == "eager" else "jit"
    launch = _launch(said["port"], said["exec"])
    if launch:
        launch = replace(launch, device=device, mode=mode, timeout=timeout)
    settings = Settings(int(said["seed"] or 0), device, mode, asked=len(cases), digest=digest(cases), quick=quick)
    return Asked(launch, settings, cases, Teller(settings, launch.argument if launch else ""))


def _check(name: str, values: Iterable[str], options: Sequence[str]) -> None:
    """Raise `ValueError` for a value that an option does not have."""
    for value in values:
        if value not in options:
            raise ValueError(f"--conformance-{name}: {value!r} is not one of {', '.join(options)}")


def _launch(port: str, program: str) -> Launch | None:
    """What it takes to start the port or the program that is named. Raises `ValueError`, which names the option."""
    try:
        launch = by_command(program) if program else by_name(port) if port else None
    except PortNameError as error:
        raise ValueError(f"--conformance-{'exec' if program else 'port'}: {error}") from None
    if launch and launch.is_python:
        return replace(launch, program=(sys.executable, "-c", SERVE.format(path=sys.path), "serve", port))
    return launch


def _selected(
    where: str,
    globs: Names,
    cases: tuple[Case, ...] = CASES,
    /,
    *,
    op: Names = (),
    dtype: Names = (),
    exclude: Names = (),
) -> tuple[Case, ...]:
    """The cases asked for. Raises `ValueError`, which names the option by what stands before it."""
    try:
        return require(globs, op=op, dtype=dtype, exclude=exclude, cases=cases)
    except NoCaseError as error:
        raise ValueError(f"{where}{error.option}: {error}") from None


def marked(marks: Sequence[tuple[Sequence[str], Mapping[str, Names]]], asked: Asked) -> list[Case]:
    """The cases that a test's markers name, of those asked for, in the order of the table. Raises `ValueError`."""
    named: set[Case] = set()
    for globs, limits in marks:
        if odd := [name for name in limits if name not in ("op", "dtype", "exclude")]:
            raise ValueError(f"marker conformance: {odd[0]!r} is neither op nor dtype nor exclude")
        named |= set(_selected("marker conformance, ", globs or "*", **limits))
    if not marks:
        raise ValueError("conformance_case needs a marker that names cases: @pytest.mark.conformance('rms_norm/*/float32/*')")
    return [case for case in asked.cases if case in named]


class PortUnderTest:
    """The port of a session: started for the first case, started again where it fails, and closed.

    `spoilt`: a case that passed is in error after all, for what the port did after its answer. Its test is over by then; the
    summary names it, and the session fails.
    """

    def __init__(self, asked: Asked) -> None:
        assert asked.launch is not None, "a port is named"
        self.asked, self.launch = asked, asked.launch
        self._failure, self._began = "", time.monotonic()
        self._session = Session(self.launch)
        self._examined = Examination(self._session, asked.seed)
        self.spoilt = False

    @property
    def header(self) -> str:
        """What is judged, and with what."""
        return f"conformance: {self.launch.spec}, {self.launch.mode}, {self.launch.device}, seed {self.asked.seed}"

    def judge(self, case: Case) -> Verdict:
        """The verdict on one case. Raises `PortFailure` where the port could not be run at all."""
        if not self._failure:
            try:
                verdict = self._examined.judge(case)
            except PortFailure as failure:
                self._failure = f"{self.launch.spec} could not be run: {failure}"
            else:
                self.spoilt |= self._examined.spoilt
                return verdict
        raise PortFailure(self._failure)

    @property
    def verdicts(self) -> list[Verdict]:
        """Those so far."""
        return self._examined.verdicts

    def close(self) -> None:
        """End the port, if it runs."""
        self._session.__exit__()

    def report(self) -> str:
        """The report on all cases judged so far, as JSON."""
        run = PortRun(self.launch.spec, self._session.hello, tuple(self.verdicts), argument=self.launch.argument)
        return as_json(build([run], self.asked.settings, time.monotonic() - self._began))


def summary(reports: Iterable[str]) -> list[str]:
    """What went wrong, a paragraph each: of one session, or of the workers that shared its cases."""
    parts = [parse(json.loads(report)) for report in reports]
    entries = [entry for part in parts for entry in part.verdicts]
    made = [(each.port, each.what, each.evidence, each.cases) for part in parts for each in part.causes if each.evidence]
    report = assemble(parts[0].settings, 0.0, parts[0].ports, entries, made)
    if report.exit_status != FAILS:
        return []
    shown = [paragraph(report, cause) for cause in report.causes[:CAUSES_SHOWN]]
    more = len(report.causes) - len(shown)
    return [*shown, f"… and {count_of(more, 'more cause')}; `conformance run` writes them all."] if more else shown


class PortCollector(pytest.Collector):
    """Where a port's cases are among the tests of a session."""

    port: PortUnderTest

    @classmethod
    def of(cls, session: pytest.Session, port: PortUnderTest) -> "PortCollector":
        """The collector of a port."""
        spec = port.launch.spec
        collector = cls.from_parent(session, name=spec, nodeid=spec.replace("::", ":"))
        collector.port = port
        collector.add_marker(pytest.mark.conformance)
        return collector

    def collect(self) -> Iterator[pytest.Item]:
        """An item for every case; those that share compiled code are of one group, which one worker of xdist may take."""
        grouped = any(line.startswith("xdist_group") for line in self.config.getini("markers"))
        for case in self.port.asked.cases:
            item: CaseItem = CaseItem.from_parent(self, name=case.id)
            item.case, item.port = case, self.port
            if grouped:
                item.add_marker(pytest.mark.xdist_group(" ".join(map(str, program(case)))))
            yield item


class CaseItem(pytest.Item):
    """A case as a test of a port."""

    case: Case
    port: PortUnderTest

    def runtest(self) -> None:
        """Ask the port, and fail, skip or xfail as the verdict says."""
        verdict = self.port.judge(self.case)
        self.user_properties.append(("conformance", verdict.status))
        if verdict.outputs:
            self.user_properties.append(("tolerances", str(verdict.ratio)))
        match verdict.status:
            case "pass":
                return
            case "skip":
                pytest.skip(verdict.message)
            case "expected":
                pytest.xfail(verdict.message)
            case _:
                pytest.fail(self.port.asked.teller.tell(verdict), pytrace=False)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What is wrong in words alone: the stack would be the kit's own."""
        return str(excinfo.value) if isinstance(excinfo.value, PortFailure) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Where it is from: no file, but the port."""
        return self.config.rootpath / self.nodeid.partition("::")[0], None, self.case.id
