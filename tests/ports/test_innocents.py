"""Implementations that nobody here wrote, as they ship: the kit rejects what their ports say it will, and nothing else."""

from collections import Counter
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

import pytest

from conformance.cases import CASES, Case
from conformance.process import serve_command
from conformance.runner import PortRun, run_ports

# A port, the packages it needs, and how many of all cases at least pass, and fail as it says they will.
PORTS = [
    ("ports.equinox", ("equinox", "jax"), 228, 0),
    ("ports.flax_linen", ("flax", "jax"), 212, 12),
    ("ports.flax_linen.port:TwoPass", ("flax", "jax"), 228, 0),
    ("ports.flax_nnx", ("flax", "jax"), 196, 28),
    ("ports.flax_nnx.port:Careful", ("flax", "jax"), 228, 0),
    ("ports.haiku", ("haiku", "jax"), 116, 95),
    ("ports.keras", ("jax", "keras"), 175, 52),
]
SPECS = [spec for spec, *_ in PORTS]

# What a compiler may change: op by op, the faults must show as the ports say, too.
TELLING = tuple(
    case
    for case in CASES
    if (case.op, case.name) in {("layer_norm", name) for name in ("random", "constant_rows", "mean_300", "width_1")}
    and case.dialect.name in ("either_order", "scale_then_cast")
)


def judge(spec: str, packages: tuple[str, ...], cases: tuple[Case, ...], mode: str, seed: int) -> tuple[PortRun, Counter]:
    """Run a port as a process, if its packages are there; nothing may fail or be an error."""
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        pytest.skip(f"needs {', '.join(absent)}")
    [run] = run_ports({spec: serve_command(spec)}, cases, mode=mode, seed=seed, timeout=300)
    assert not run.failure
    assert [verdict for verdict in run.verdicts if verdict.status in ("fail", "error")] == []
    return run, Counter(verdict.status for verdict in run.verdicts)


@pytest.fixture(autouse=True)
def _where_the_ports_are_found(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def test_the_table_is_sorted():
    assert sorted(SPECS) == SPECS


@pytest.mark.parametrize(("spec", "packages", "passed", "expected"), PORTS, ids=SPECS)
def test_every_case_does_as_stated(spec, packages, passed, expected):
    run, statuses = judge(spec, packages, CASES, "jit", seed=0)
    assert statuses["pass"] >= passed
    assert statuses["expected"] == expected
    failed = [verdict.case.id for verdict in run.verdicts if verdict.status == "expected"]
    assert run.hello is not None
    for glob in run.hello.expected:
        assert any(fnmatchcase(id_, glob) for id_ in failed), f"{glob} expects nothing"


@pytest.mark.parametrize(("spec", "packages"), [port[:2] for port in PORTS], ids=SPECS)
def test_telling_cases_do_as_stated_in_eager_mode(spec, packages):
    _, statuses = judge(spec, packages, TELLING, "eager", seed=1)
    assert statuses["pass"] >= len(TELLING) // 2
