"""Triton kernels where no GPU is: interpreted, in processes that are told so, and compiled for a GPU without one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("triton", reason="Triton is not installed: pip install triton, on Linux")

import triton
from triton.backends.compiler import GPUTarget

import impl_torch
from conformance.cli import app
from conformance.ops.cases import CASES
from conformance.ops.quick import QUICK
from conformance.port.launch import Launch
from conformance.running.runner import run_ports
from impl_torch.kernels import launch

ROOT = Path(__file__).parents[2]
OPS = ("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm")


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
    grouped = {case.id for case in cases if "group_size" in case.settings}
    assert {verdict.case.id for verdict in run.verdicts if verdict.status == "skip"} == grouped
    assert [verdict.case.id for verdict in run.verdicts if verdict.status not in ("pass", "skip")] == []
    assert len(run.verdicts) == len(cases)


@pytest.mark.usefixtures("interpreted")
def test_a_port_that_is_begun_conforms_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["new", "mine", "--triton"]).exit_code == 0
    cases = tuple(case for case in QUICK if case.op == OPS[0] and case.weight_offset == 0 and "group_size" not in case.settings)
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


class Driver:
    """An H100 as far as the compiler must know one."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled:
    """A kernel that is compiled for what it is given, and not run; `made` is what has been compiled so far."""

    def __init__(self, kernel, made: list) -> None:
        self.kernel, self.made = kernel, made

    def __getitem__(self, grid):
        return lambda *tensors, **constants: self.made.append(self.kernel.warmup(*tensors, grid=grid, **constants))


@pytest.mark.parametrize(
    ("op", "dtype", "width"),
    [(op, dtype, 96) for op in OPS for dtype in launch.TRITONS] + [(op, torch.bfloat16, 40000) for op in OPS[1:3]],
)
def test_the_kernels_compile_for_a_gpu(op, dtype, width, monkeypatch):
    """Whatever the interpreter lets pass, called as they are called there; 16 bytes at a time are read."""
    made = []
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    monkeypatch.setattr(launch, "check_device", lambda device: None)
    for name in ("norm_forward", "norm_backward"):
        monkeypatch.setattr(launch, name, Compiled(getattr(launch, name), made))
    x, *residual = torch.zeros(1 + op.startswith("add"), 4, width, dtype=dtype)
    parameters = torch.zeros(1 + op.endswith("layer_norm"), width, dtype=dtype).unbind()
    leaves = [each.requires_grad_() for each in (x, *residual, *parameters)]
    outputs = getattr(impl_torch, op)(*leaves, order="cast_then_scale", weight_offset=1.0, kernel="triton")
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.grad(outputs, leaves, [torch.zeros_like(each) for each in outputs])
    assert len(made) == 2
    for kernel in made:
        assert {"ld.global.v4.b32", "ld.global.v2.b64"} & set(re.findall(r"ld\.global\.v\d\.b\d+", kernel.asm["ptx"]))
