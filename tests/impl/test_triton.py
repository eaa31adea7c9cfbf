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
from impl_torch.kernels import gated_norms, launch, quantised_norms
from impl_torch.kernels.grid import TRITONS

ROOT = Path(__file__).parents[2]
NORMS = ("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm")
QUANTISED = ("quantised_rms_norm", "quantised_add_rms_norm")
OPS = (*NORMS, "gated_rms_norm", *QUANTISED)


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
        launch.forward(torch.ones(2, 3), None, None, None, 1e-5, 0.0, False, False, torch.float32, torch.float32, 1)


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


@pytest.fixture
def made(monkeypatch) -> list:
    """What has been compiled so far for an H100, instead of being run."""
    made = []
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    kernels = {launch: ("norm_forward", "norm_backward"), gated_norms: ("gated_forward", "gated_backward")}
    for module, names in (kernels | {quantised_norms: ("quantised_forward",)}).items():
        monkeypatch.setattr(module, "check_device", lambda device: None, raising=False)
        for name in names:
            monkeypatch.setattr(module, name, Compiled(getattr(module, name), made))
    return made


def assert_16_bytes_are_read_at_a_time(made: list) -> None:
    for kernel in made:
        assert {"ld.global.v4.b32", "ld.global.v2.b64"} & set(re.findall(r"ld\.global\.v\d\.b\d+", kernel.asm["ptx"]))


@pytest.mark.parametrize(
    ("op", "dtype", "width", "groups"),
    [(op, dtype, 96, 1) for op in NORMS for dtype in TRITONS]
    + [(op, torch.bfloat16, 40000, 1) for op in OPS[1:3]]
    + [("layer_norm", torch.bfloat16, 256, 4), ("gated_rms_norm", torch.bfloat16, 256, 4)]
    + [("gated_rms_norm", dtype, 96, 1) for dtype in TRITONS]
    + [("gated_rms_norm", torch.bfloat16, 40000, 1)],
)
def test_the_kernels_compile_for_a_gpu(op, dtype, width, groups, made):
    """Whatever the interpreter lets pass, called as they are called there."""
    x, *others = torch.zeros(1 + (op.startswith(("add", "gated"))), 4, width, dtype=dtype)
    parameters = torch.zeros(1 + op.endswith("layer_norm"), width, dtype=dtype).unbind()
    leaves = [each.requires_grad_() for each in (x, *others, *parameters)]
    how = {} if "gated" in op else {"weight_offset": 1.0}
    how |= {} if groups == 1 else {"group_size": width // groups}
    outputs = getattr(impl_torch, op)(*leaves, order="cast_then_scale", **how, kernel="triton")
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.grad(outputs, leaves, [torch.zeros_like(each) for each in outputs])
    assert len(made) == 2
    assert_16_bytes_are_read_at_a_time(made)


@pytest.mark.parametrize("width", [256, 40064])
@pytest.mark.parametrize(
    ("scaling", "dtype"),
    [("static", "float8_e5m2"), ("per_row", "float8_e4m3fn"), ("per_group_128", "int8"), ("mx", "float8_e4m3fn")],
)
def test_the_quantised_norm_compiles_for_a_gpu(scaling, dtype, width, made):
    tensors = torch.zeros(2, 4, width, dtype=torch.bfloat16)
    scale = torch.ones(1) if scaling == "static" else None
    weight = torch.zeros(width, dtype=torch.bfloat16)
    how = {"scaling": scaling, "quantised_dtype": dtype, "kernel": "triton"}
    impl_torch.quantised_add_rms_norm(*tensors, weight, scale, **how)
    impl_torch.quantised_rms_norm(tensors[0], weight, scale, **how, y="unrounded")
    assert len(made) == 2
    assert_16_bytes_are_read_at_a_time(made)


TUNED = """
import torch, triton, triton.language as tl
from conformance import port
from impl_torch.kernels.port import TritonPort

@triton.autotune([triton.Config({"COLUMNS": columns}) for columns in (64, 16)], key=["width"])
@triton.jit
def kernel(x, y, width, eps, COLUMNS: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, COLUMNS)
    numbers = tl.load(x + row * width + columns, mask=columns < width, other=0.0)
    numbers *= tl.rsqrt(tl.sum(numbers * numbers) / width + eps)
    tl.store(y + row * width + columns, numbers, mask=columns < width)

class Port(TritonPort):
    vjp = port.Port.vjp
    def rms_norm(self, x, weight, *, eps):
        y = torch.zeros_like(x)
        kernel[(x.numel() // x.shape[-1],)](x, y, x.shape[-1], eps)
        return y
"""


@pytest.mark.usefixtures("interpreted")
def test_every_config_of_an_autotuned_kernel_is_judged(tmp_path, monkeypatch):
    """The second reads too little of a row, and it is the second that is named."""
    monkeypatch.chdir(tmp_path)
    Path("tuned_port.py").write_text(TUNED)
    Path("plain.py").write_text("def rms_norm(x, weight, *, eps):\n    return x\n")
    case = ["--case", "rms_norm/either_order/float32/no_weight", "--mode", "eager", "--jobs", "1"]
    result = CliRunner().invoke(app, ["run", "tuned_port.py", "--configs", *case])
    assert result.exit_code == 1
    assert re.search(
        r"^tuned_port.py@0 is kernel: COLUMNS: 64,.*\ntuned_port.py@1 is kernel: COLUMNS: 16,", result.stderr, re.M
    )
    assert re.search(r"^tuned_port.py@0 +rms_norm .* 1/1 .*\ntuned_port.py@1 +rms_norm .* 0/1 ", result.stdout, re.M)
    refused = CliRunner().invoke(app, ["run", "plain.py", "--configs", *case])
    assert refused.exit_code == 2
    assert "plain.py has no autotuned kernel" in refused.stderr
    [run] = run_ports([Launch("tuned_port.py@2", mode="eager")], QUICK[:1])
    assert run.failure == "IndexError: there is no config 2: of autotuned kernels the largest choice is of 2"
