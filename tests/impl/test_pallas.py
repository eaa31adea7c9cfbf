"""Pallas kernels where no accelerator is: interpreted, as they are launched on each device, and lowered for a TPU and a GPU."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, export, lax
from typer.testing import CliRunner

import impl_jax
from conformance.cli import app
from conformance.ops.quick import QUICK
from conformance.port.launch import Launch
from conformance.running.runner import run_ports
from impl_jax.kernels import in_pallas
from impl_jax.kernels import launch as launching

ROOT = Path(__file__).parents[2]
OPS = {op: getattr(impl_jax, op) for op in ("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm")}
TWO = ("rms_norm", "add_layer_norm")  # which have, between them, all that a kernel may have
TRITON = "__gpu$xla.gpu.triton"
CALLS = {"tpu": "tpu_custom_call", "cuda": TRITON}
SETTINGS = {"eps": 1e-3, "weight_offset": 1.0}  # far from every default


@pytest.fixture
def _on_gpu(monkeypatch):
    """What is launched on a GPU, interpreted."""

    def as_on_gpu(given: dict, *, cuda: partial, **_: partial) -> dict:
        interpreted = {**cuda.keywords, "interpret": True}
        del interpreted["compiler_params"]
        return launching._call(given, **interpreted)

    monkeypatch.setattr(lax, "platform_dependent", as_on_gpu)


def draw(op: str, *shape: int, dtype: str = "float32") -> list[Array]:
    """All that an op may be given."""
    rng = np.random.default_rng(0)
    shapes = [shape, *[shape] * ("add" in op), shape[-1:], *[shape[-1:]] * ("layer" in op)]
    return [jnp.asarray(rng.normal(size=each), dtype) for each in shapes]


def outputs_and_gradients(op: str, inputs: list[Array], **settings) -> list[Array]:
    """With cotangents that are the same for every function that is asked."""
    outputs, pullback = jax.vjp(partial(OPS[op], **settings), *inputs)
    cotangents = jax.tree.map(lambda y: jnp.asarray(np.random.default_rng(1).normal(size=y.shape), y.dtype), outputs)
    return [*jax.tree.leaves(outputs), *pullback(cotangents)]


def assert_as_xla(op: str, inputs: list[Array], **settings) -> None:
    """The kernel's outputs and gradients are those of XLA's operations."""
    both = [outputs_and_gradients(op, inputs, kernel=kernel, **settings) for kernel in ("pallas", "xla")]
    for actual, expected in zip(*both, strict=True):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max(initial=0)))


def test_the_kernels_conform():
    quick = {op: [case for case in QUICK if (case.op, case.dtype) == (op, "bfloat16")] for op in OPS}
    cases = tuple(case for of_op in quick.values() for case in of_op[:6])
    [run] = run_ports([Launch("impl_jax.kernels", timeout=300)], cases)
    assert {verdict.case.op for verdict in run.verdicts if verdict.status == "pass"} == set(OPS)
    assert [verdict.case.id for verdict in run.verdicts if verdict.status not in ("pass", "skip")] == []
    assert {verdict.note for verdict in run.verdicts if verdict.status == "skip"} <= {"no strides to lay tensors out with"}


# Rows that are not whole tiles, of widths that are none; on a GPU two of four rows and 3 of 8 columns lie outside.
@pytest.mark.parametrize(("op", "shape"), [(TWO[0], (2, 3, 5)), (TWO[1], (1030, 33)), (TWO[1], (0, 8))])
def test_a_tile_may_reach_beyond_its_tensor(op, shape):
    assert_as_xla(op, draw(op, *shape), **SETTINGS)


@pytest.mark.usefixtures("_on_gpu")
@pytest.mark.parametrize(("op", "shape"), [(TWO[0], (3, 4100)), (TWO[1], (130, 33))])
def test_on_a_gpu_too(op, shape):
    assert_as_xla(op, draw(op, *shape), **SETTINGS)


def test_a_row_may_have_groups():
    assert_as_xla("layer_norm", draw("layer_norm", 3, 2, 24), group_size=8, **SETTINGS)


def test_a_row_has_the_same_bits_in_every_batch():
    op = "add_layer_norm"
    inputs = draw(op, 37, 129)
    whole, again = (outputs_and_gradients(op, inputs, kernel="pallas") for _ in range(2))
    assert all(map(jnp.array_equal, whole, again))
    for row in (0, 36):
        alone = [each[row : row + 1] if each.ndim > 1 else each for each in inputs]
        for made, of_all in zip(jax.tree.leaves(OPS[op](*alone, kernel="pallas")), whole, strict=False):
            assert jnp.array_equal(made[0], of_all[row])


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4096), ("bfloat16", 33)])
@pytest.mark.parametrize("platform", CALLS)
def test_the_kernels_are_lowered_for(platform, dtype, width):
    """One forward and one backward, and nothing is left to be interpreted."""
    for op in TWO:
        inputs = draw(op, 300, width, dtype=dtype)
        how = {"kernel": "pallas", "order": "cast_then_scale"}
        function = jax.jit(lambda *each, op=op, how=how: outputs_and_gradients(op, list(each), **how))
        unchecked = [export.DisabledSafetyCheck.custom_call(TRITON)]
        module = export.export(function, platforms=[platform], disabled_checks=unchecked)(*inputs).mlir_module()
        assert module.count(f"@{CALLS[platform]}") == 2
        assert "stablehlo.while" not in module


def test_a_kernel_is_chosen_where_it_is_asked_for():
    assert in_pallas("pallas")
    assert not in_pallas("xla")
    assert not in_pallas(None)
    for op in OPS:
        with pytest.raises(ValueError, match="kernel is 'triton'; it must be 'pallas', 'xla' or None"):
            OPS[op](*draw(op, 2, 3), kernel="triton")


@pytest.mark.parametrize("op", OPS)
def test_what_is_refused_is_refused_by_kernels_too(op):
    x, *others = draw(op, 3, 8)
    others = [each if each.ndim > 1 else each[:1] for each in others]
    with pytest.raises(ValueError, match=r"weight has shape \[1\]; with x of shape \[3, 8\] it must be \[8\]"):
        OPS[op](x, *others, kernel="pallas")


def test_a_port_that_is_begun_conforms_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert CliRunner().invoke(app, ["new", "mine", "--pallas"]).exit_code == 0
    assert CliRunner().invoke(app, ["new", "mine", "--pallas", "--triton"]).exit_code == 2
    among = (case for case in QUICK if case.op == "rms_norm" and case.dtype != "float64")
    asked = tuple(case for case in among if case.dialect.order != "cast_then_scale" and case.layout == "contiguous")
    [run] = run_ports([Launch("mine_port.py", timeout=300)], asked)
    assert [verdict.case.id for verdict in run.verdicts if verdict.status not in ("pass", "skip")] == []
    assert sum(verdict.status == "pass" for verdict in run.verdicts) >= 8
