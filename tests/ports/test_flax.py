"""A row without variance, in one pass: whether E[x²] − E[x]² is zero depends on how the mean is divided."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from conformance.ops.cases import select
from conformance.port.launch import Launch
from conformance.running.runner import run_ports

ROWS = select("layer_norm/*/constant_rows")


def statuses(spec: str, mode: str) -> dict[str, str]:
    if find_spec("flax") is None:
        pytest.skip("no flax")
    [run] = run_ports([Launch(spec, mode=mode)], ROWS, seed=1)
    return {verdict.case.dtype: verdict.status for verdict in run.verdicts if verdict.case.dialect.order != "cast_then_scale"}


@pytest.fixture(autouse=True)
def _where_the_ports_are_found(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("mode", "half"), [("eager", "pass"), ("jit", "expected")])
@pytest.mark.parametrize("spec", ["ports.flax_linen", "ports.flax_nnx"])
def test_constant_rows_show_the_variance_in_one_pass(spec, mode, half):
    """In float64 it is a matter of chance, and not asked; in half precision a matter of the compiler."""
    assert statuses(spec, mode) == {"float64": "skip", "float32": "expected", "bfloat16": half, "float16": half}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("spec", ["ports.flax_linen.port:TwoPass", "ports.flax_nnx.port:Careful"])
def test_in_two_passes_they_show_nothing(spec):
    assert set(statuses(spec, "jit").values()) == {"pass"}
