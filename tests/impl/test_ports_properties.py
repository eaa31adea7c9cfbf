"""impl_torch and impl_jax: what holds whatever the values, through the runner and its processes."""

from pathlib import Path

import pytest

from conformance.port.launch import Launch
from conformance.tools.properties.inquiry import inquire_ports
from conformance.tools.properties.properties import BY_ID, PROPERTIES
from conformance.tools.properties.variants import kinds

PORTS = ["impl_torch", "impl_jax"]


@pytest.fixture(autouse=True)
def _where_the_ports_are_found(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def judge(port: str, asked, mode: str, *, without: tuple[str, ...] = ()) -> None:
    """Nothing required may be violated, nothing be left unasked but layouts in JAX.

    In bfloat16 nothing may differ but rows by their number in JAX, which compiles for every number.
    """
    wanted = tuple(each for each in PROPERTIES if each.id not in without)
    [inquiry] = inquire_ports([Launch(port, mode=mode, timeout=300)], asked, wanted=wanted)
    assert not inquiry.failure
    assert [each for each in inquiry.findings if each.status in ("violated", "error")] == []
    assert {each.property.id for each in inquiry.findings} == set(BY_ID) - set(without)
    unasked = {each.property.id for each in inquiry.findings if each.status == "not asked"}
    assert unasked == ({"layout"} if port == "impl_jax" else set())
    differs = {each.property.id for each in inquiry.findings if (each.status, each.case.dtype) == ("rounding", "bfloat16")}
    assert differs <= ({"row_count"} if port == "impl_jax" else set())


RMS_IN_HALF, LAYER_IN_HALF = kinds("rms_norm", "bfloat16"), kinds("layer_norm", "bfloat16")
SINGLE = kinds("layer_norm", "float32")


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("port", "asked"), [("impl_torch", (*RMS_IN_HALF[:1], *SINGLE)), ("impl_jax", SINGLE)], ids=PORTS)
def test_every_property_holds_in_eager_mode(port, asked):
    """Of one op in bfloat16, of the other in float32; in JAX, which compiles every operation for every shape, of one kind.

    The mode would compile them all, and so would every number of rows in JAX, which is asked them compiled.
    """
    judge(port, asked, "eager", without=("mode",) if port == "impl_torch" else ("mode", "row_count"))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("port", "asked"),
    [("impl_torch", LAYER_IN_HALF[0]), ("impl_jax", LAYER_IN_HALF[0]), ("impl_jax", RMS_IN_HALF[0])],
    ids=["impl_torch", "impl_jax, layer_norm", "impl_jax, rms_norm"],
)
def test_every_property_holds_compiled(port, asked):
    """Of a kind whose first cast a compiler would rather drop; in JAX, which compiles sooner than torch, of either op."""
    assert asked.dialect.order == "cast_then_scale"
    judge(port, (asked,), "jit")
