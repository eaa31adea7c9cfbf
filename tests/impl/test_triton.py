"""Triton kernels where no GPU is: interpreted, in processes that are told so, and compiled for a GPU without one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("triton", reason="Triton is not installed: pip install triton, on Linux")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from conformance.cli import app
from conformance.ops.cases import CASES
from conformance.ops.quick import QUICK
from conformance.port.launch import Launch
from conformance.running.runner import run_ports
from impl_torch.kernels import launch
from impl_torch.kernels.backward import norm_backward
from impl_torch.kernels.forward import norm_forward

ROOT = Path(__file__).parents[2]
OPS = ("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm")
POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("file", ["interpreted_triton.py", "interpreted_kernels.py"])
def test_where_kernels_are_interpreted(file):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/impl/{file}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout


# The cases in which a kernel goes through more than one tile of rows, or more than one program adds up a part.
SUMMED = tuple(case for case in CASES if case.op in OPS and (case.name, case.dtype) == ("rows_8192", "bfloat16"))


@pytest.mark.usefixtures("interpreted")
def test_the_kernels_conform(monkeypatch):
    monkeypatch.chdir(ROOT)
    cases = tuple(case for case in QUICK if case.op in OPS) + SUMMED[:1]
    assert {case.op for case in cases} == set(OPS)
    assert {case.dtype for case in cases} == {"float64", "float32", "bfloat16", "float16"}
    [run] = run_ports([Launch("impl_torch.kernels", mode="eager", timeout=300)], cases)
    assert [verdict.case.id for verdict in run.verdicts if verdict.status != "pass"] == []
    assert len(run.verdicts) == len(cases)


@pytest.mark.usefixtures("interpreted")
def test_a_port_that_is_begun_conforms_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["new", "mine", "--triton"]).exit_code == 0
    cases = tuple(case for case in QUICK if case.op == OPS[0] and case.weight_offset == 0)
    [run] = run_ports([Launch("mine_port.py", mode="eager", timeout=300)], cases)
    statuses = {verdict.case.id: verdict.status for verdict in run.verdicts}
    asked = {case.id for case in cases if case.dtype != "float64" and case.dialect.order != "cast_then_scale"}
    assert {id_ for id_, status in statuses.items() if status == "pass"} == asked
    assert len(asked) > 10
    assert set(statuses.values()) == {"pass", "skip"}


def test_what_is_forgotten_is_told_in_a_line(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    [run] = run_ports([Launch("impl_torch.kernels", mode="eager")], QUICK[:1])
    assert run.failure == "RuntimeError: Triton has no kernels for a CPU: set TRITON_INTERPRET=1, or name a GPU (--device cuda)"
    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1"):
        launch.forward(torch.ones(2, 3), None, None, None, 1e-5, 0.0, False, False, torch.float32, torch.float32)


def compiled(kernel, pointers: dict[str, str | None], constants: dict):
    """The kernel, compiled for an H100; it must be wide enough that its loads and stores can be of 16 bytes."""
    constants = constants | {name: None for name, pointer in pointers.items() if pointer is None}
    options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in kernel.arg_names}
    aligned = [place for place, name in enumerate(kernel.arg_names) if name not in constants and name != "n_rows"]
    source = ASTSource(kernel, signature, constants, {(place,): [["tt.divisibility", 16]] for place in aligned})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.parametrize("width", [96, 4096, 40000])
@pytest.mark.parametrize("dtype", POINTERS, ids=str)
@pytest.mark.parametrize("centred", [False, True], ids=["rms", "layer"])
def test_the_kernels_compile_for_a_gpu(centred, dtype, width):
    """Whatever the interpreter lets pass; in 16 bytes at a time, where there are as many."""
    number, sums = POINTERS[dtype], POINTERS[torch.promote_types(dtype, torch.float32)]
    compute = launch.TRITONS[torch.promote_types(dtype, torch.float32)]
    bias = number if centred else None
    settings = {"weight_offset": 1.0, "CENTRED": centred, "COMPUTE": compute}
    forward = {"y": number, "residual_out": number, "mean_out": sums, "rstd_out": sums}
    forward |= {"x": number, "residual": number, "weight": number, "bias": bias}
    backward = {"ds_out": number, "dweight_parts": sums, "dbias_parts": sums if centred else None, "dy": number}
    backward |= {"dresidual_out": number, "x": number, "residual": None, "weight": number, "mean_in": sums, "rstd_in": sums}
    of_forward = {"eps": 1e-5, "ROUNDED": True, "X_HAT": launch.TRITONS[dtype], **launch._tile(width, launch.HELD_FORWARD)}
    made = compiled(norm_forward, forward, settings | of_forward)
    assert "ld.global.v4.b32" in made.asm["ptx"] or "ld.global.v2.b64" in made.asm["ptx"]
    compiled(norm_backward, backward, settings | launch._tile(width, launch.HELD_BACKWARD))
