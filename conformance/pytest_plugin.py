"""The pytest plugin: a test for every case of a port, and cases for tests of one's own; docs/pytest.md is its page.

pytest loads it wherever the kit is installed, so what it needs is imported once it is used.
"""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conformance.tools.testing.pytest_port import Asked, PortUnderTest
    from conformance.tools.testing.trial import Trial

OPTIONS = {
    "port": ("PORT", "Judge this port, a test for every case: module:Class, a file, or what else `run` takes."),
    "exec": ("COMMAND", "Judge this program, in any language, a test for every case."),
    "seed": ("N", "Which inputs: 0, the default, are the committed fixtures' own."),
    "device": ("DEVICE", "Where the port computes, in its framework's words: cpu, if not said."),
    "mode": ("jit|eager", "Compiled, or operation by operation: jit, if not said."),
    "timeout": ("SECONDS", "What a port may take for one answer: 120, if not said."),
}
FLAGS = {
    "quick": "Few cases, which reject every known mistake that all of them reject.",
}
REPEATED = {
    "case": ("GLOB", "Only cases whose id matches; may be repeated."),
    "exclude": ("GLOB", "No case whose id matches; may be repeated."),
    "op": ("OP", "Only this op; may be repeated."),
    "dtype": ("DTYPE", "Only this storage dtype; may be repeated."),
}
"""Each is --conformance-NAME, or conformance_NAME in the ini file, where several are separated by spaces."""

MARKER = (
    "conformance(*globs, op=(), dtype=(), exclude=()): the test has the fixture conformance_case, and is run for every case "
    "whose id matches. The tests of a port's cases have the marker, too."
)
ASKED, PORT, REPORTS = (pytest.StashKey[Any]() for _ in range(3))


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, each of which may stand in the ini file."""
    group = parser.getgroup("conformance", "conformance of normalisation layers")
    for name, (metavar, help_) in OPTIONS.items():
        group.addoption(f"--conformance-{name}", metavar=metavar, help=help_)
        parser.addini(f"conformance_{name}", f"{help_} As --conformance-{name}.")
    for name, help_ in FLAGS.items():
        group.addoption(f"--conformance-{name}", help=help_, action="store_true", default=False)
        parser.addini(f"conformance_{name}", f"{help_} As --conformance-{name}.", type="bool", default=False)
    for name, (metavar, help_) in REPEATED.items():
        group.addoption(f"--conformance-{name}", metavar=metavar, help=help_, action="append", default=[])
        parser.addini(f"conformance_{name}", f"{help_} As --conformance-{name}.", type="args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Read what is asked for; a usage error where it cannot be."""
    config.addinivalue_line("markers", MARKER)
    if _is_asked(config):
        from conformance.tools.testing.pytest_port import PortUnderTest

        config.stash[PORT] = PortUnderTest(asked(config))


def _said(config: pytest.Config, name: str) -> Any:
    return config.getoption(f"conformance_{name}") or config.getini(f"conformance_{name}")


def _is_asked(config: pytest.Config) -> bool:
    """Whether a port is to be judged: it was named here; or in the ini file, and no files were named here."""
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        return worker["conformance"]
    if config.getoption("conformance_port") or config.getoption("conformance_exec"):
        return True
    everything = config.args_source is not pytest.Config.ArgsSource.ARGS
    return everything and bool(_said(config, "port") or _said(config, "exec"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist whether a port is to be judged: it is given files to collect in any case."""
    node.workerinput["conformance"] = PORT in node.config.stash


def asked(config: pytest.Config) -> "Asked":
    """What is asked for, read once; a usage error where it cannot be."""
    if ASKED not in config.stash:
        from conformance.tools.testing.pytest_port import read

        try:
            said = {name: _said(config, name) for name in OPTIONS}
            config.stash[ASKED] = read(said, {name: tuple(_said(config, name)) for name in REPEATED}, _said(config, "quick"))
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[ASKED]


def pytest_report_header(config: pytest.Config) -> str | None:
    """What is judged, and what repeats it."""
    return config.stash[PORT].header if PORT in config.stash else None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Collect the port's cases after all files."""
    report = yield
    if isinstance(collector, pytest.Session) and PORT in collector.config.stash and report.passed:
        from conformance.tools.testing.pytest_port import PortCollector

        report.result = [*(report.result or ()), PortCollector.of(collector, collector.config.stash[PORT])]
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that has `conformance_case` is run for every case that its marker names."""
    if "conformance_case" in metafunc.fixturenames:
        from conformance.tools.testing.pytest_port import marked

        marks = metafunc.definition.iter_markers("conformance")
        try:
            cases = marked([(mark.args, mark.kwargs) for mark in marks], asked(metafunc.config))
        except ValueError as error:
            pytest.fail(f"{metafunc.function.__name__}: {error}", pytrace=False)
        metafunc.parametrize("conformance_case", cases, indirect=True, ids=[case.id for case in cases])


@pytest.fixture
def conformance_case(request: pytest.FixtureRequest) -> "Trial":
    """A case: its inputs, and `check`, which asserts that outputs are as they should be."""
    from conformance.tools.testing.trial import Trial

    return Trial(request.param, asked(request.config).seed, asked(request.config).teller)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End the port, and report on all of its cases; on a worker of xdist, to the session that prints."""
    port: PortUnderTest | None = session.config.stash.get(PORT, None)
    if port is None:
        return
    port.close()
    if exitstatus != pytest.ExitCode.INTERRUPTED and port.verdicts:
        report = port.report()
        session.config.stash.setdefault(REPORTS, []).append(report)
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["conformance"] = report, port.spoilt  # pyright: ignore
    if port.spoilt and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """Take a worker's report, and whether a test of its that passed is in error after all."""
    if said := getattr(node, "workeroutput", {}).get("conformance"):
        report, spoilt = said
        node.config.stash.setdefault(REPORTS, []).append(report)
        node.config.stash[PORT].spoilt |= spoilt


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What went wrong, once for all the cases that show it."""
    if reports := config.stash.get(REPORTS, []):
        from conformance.tools.testing.pytest_port import summary

        if paragraphs := summary(reports):
            terminalreporter.section("conformance: what went wrong", blue=True)
            terminalreporter.write_line("\n\n".join(paragraphs))


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the port, however the session ended."""
    if PORT in config.stash:
        config.stash[PORT].close()
