"""A function as a port: whose tensors it takes, which op and dialect it is, and how it is judged from Python."""

import math
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import conformance
from conformance.ops.cases import NoCaseError
from conformance.ops.table import OPS
from conformance.port.function import FunctionError, op_of, port_of

ROOT = Path(__file__).parents[2]
FLOAT32 = "*/float32/r*"


def torch_llama(hidden, weight, variance_epsilon=1e-6):
    wide = hidden if hidden.dtype == torch.float64 else hidden.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + variance_epsilon)
    return weight * wide.to(hidden.dtype)


def torch_gemma(x, weight, eps):
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * (1.0 + weight.to(wide.dtype))).to(x.dtype)


def torch_quick_gate(x, gate, weight, *, eps, norm_before_gate=True, activation="silu"):
    """Rounded once, at the end; with a SiLU that is another one."""
    wide, gate = x.float(), gate.float()
    gate = gate * torch.sigmoid(1.702 * gate) if activation == "silu" else torch.sigmoid(gate)
    wide = wide if norm_before_gate else wide * gate
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * (1.0 if weight is None else weight.float())
    return (wide * gate if norm_before_gate else wide).to(x.dtype)


def numpy_norm(x, weight, *, eps):
    return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + x.dtype.type(eps)) * weight


def eps_outside(x, weight, eps):
    return x / (np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True)) + x.dtype.type(eps)) * weight


@jax.jit
def jax_norm(x, scale, eps):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + eps) * scale).astype(x.dtype)


@pytest.mark.parametrize(
    ("name", "told", "op"),
    [
        ("rms_norm", "", "rms_norm"),
        ("MyRMSNorm", "", "rms_norm"),
        ("fused_add_rms_norm", "", "add_rms_norm"),
        ("layernorm_fwd", "", "layer_norm"),
        ("kernel", "", ""),
        ("rms_norm", "layer_norm", "layer_norm"),
    ],
)
def test_the_op_is_told_or_stands_in_the_name(name, told, op):
    assert op_of(name, told) == op


@pytest.mark.parametrize("function", [torch_llama, jax_norm, numpy_norm], ids=["torch", "jax", "numpy"])
def test_a_function_is_judged_in_its_own_framework(function):
    checked = conformance.check(function, "rms_norm", case="*/either_order/float32/r*", exclude="*rows_8192").require()
    outputs = {output.output for verdict in checked.report.verdicts for output in verdict.outputs}
    assert outputs == ({"y"} if function is numpy_norm else {"y", "dx", "dweight"})


@pytest.mark.parametrize(
    ("function", "order", "offset"), [(torch_llama, "cast_then_scale", 0), (torch_gemma, "scale_then_cast", 1)]
)
def test_its_dialect_is_told_from_its_numbers(function, order, offset):
    hello = port_of({"rms_norm": function}, "mine")().hello()
    assert hello.orders_of("rms_norm", "bfloat16") == (order,)
    assert hello.weight_offsets == (offset,)
    assert hello.ops == ("rms_norm",)
    checked = conformance.check(function, "rms_norm", dtype="bfloat16", case="*/r*", exclude="*rows_8192").require()
    passed = {verdict.case.split("/")[1] for verdict in checked.report.verdicts if verdict.status == "pass"}
    assert {dialect.removesuffix("_float32_weight") for dialect in passed} == {order + "_offset_1" * offset}


def test_a_mistake_does_not_hide_the_dialect_where_other_cases_tell_it():
    hello = port_of({"gated_rms_norm": torch_quick_gate}, "mine")().hello()
    assert hello.orders_of("gated_rms_norm", "bfloat16") == ("scale_then_cast",)
    assert hello.orders_of("gated_rms_norm", "float16") == ("scale_then_cast",)


def test_tensors_that_have_the_names_of_the_op_go_by_them():
    def weight_first(weight, x, eps):
        return numpy_norm(x, weight, eps=eps)

    conformance.check(weight_first, "rms_norm", case="rms_norm/either_order/float32/random").require()


def test_a_kernel_without_a_backward_pass_is_judged_by_y():
    def kernel(x, weight, variance_epsilon):
        y = torch.empty_like(x)
        y.copy_(torch_llama(x.detach(), weight.detach(), variance_epsilon))
        return y.detach()

    checked = conformance.check(kernel, "rms_norm", case="rms_norm/either_order/float32/random").require()
    assert {output.output for verdict in checked.report.verdicts for output in verdict.outputs} == {"y"}


def test_y_in_a_wider_dtype_is_a_mistake_and_no_other_order():
    def wide(x, weight, eps):
        return x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps) * weight.float()

    hello = port_of({"rms_norm": wide}, "mine")().hello()
    assert hello.orders_of("rms_norm", "bfloat16") == ("scale_then_cast",)


def test_what_skips_every_case_says_why():
    def without_weight(x, eps):
        return numpy_norm(x, np.float32(1), eps=eps)

    checked = conformance.check(without_weight, "rms_norm", dtype="float32", case="*/r*", exclude="*rows_8192")
    assert {verdict.message for verdict in checked.report.verdicts if "offset" not in verdict.case} == {
        "the function takes no weight"
    }


@pytest.mark.parametrize(
    ("function", "op", "words"),
    [
        (math.sqrt, "", "its name is no op's"),
        (lambda x, weight, eps: 1.0 / 0.0, "rms_norm", rf"ZeroDivisionError: \S+ .* \({Path(__file__).name}, line \d+\)"),
        (lambda x, weight, eps: None, "rms_norm", "given arrays of NumPy or torch or jax, it returns None"),
        (lambda x, weight, eps: torch.ones(3).tolist(), "rms_norm", "it returns list, which is no array"),
        (lambda x, weight, eps: x[..., 0], "rms_norm", r"returns y of shape \[2, 3\], and not \[2, 3, 33\]"),
        (lambda x, weight, eps: (x, x), "rms_norm", "returns 2 outputs, and not 1: y"),
        (lambda x, weight, delta: x, "rms_norm", "has a parameter delta, .* name it eps, or give it a default"),
        (lambda x, weight, eps, axis: x, "rms_norm", "has a parameter axis, .* gives it no value: give it a default"),
    ],
)
def test_a_function_that_cannot_be_judged_is_refused(function, op, words):
    with pytest.raises(FunctionError, match=words):
        conformance.check(function, op)


def test_nothing_asked_is_an_error():
    with pytest.raises(NoCaseError):
        conformance.check(numpy_norm, "rms_norm", case="*/no_such_case")


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conformance", "run", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, env=environment, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = """
        import numpy as np

        def kernel(x, weight, eps):
            return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + x.dtype.type(eps)) * weight

        rms_norm = kernel
        """
    (tmp_path / "mine.py").write_text(textwrap.dedent(source))
    return tmp_path


def test_a_function_is_named_on_the_command_line(folder):
    asked = ("--case", "rms_norm/either_order/float32/random")
    for name in ("mine.py:kernel", "mine:kernel", "mine.py"):
        result = run(name, *asked, folder=folder)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "conforms: 1 passed" in result.stdout


def test_one_whose_op_is_not_told_is_refused_with_what_to_say(folder):
    result = run("mine.py:kernel", folder=folder)
    assert result.returncode == 3
    said = " ".join(result.stdout.split())
    assert "is a function, and its name is no op's: say which with --op" in said
    assert all(op in said for op in OPS)
