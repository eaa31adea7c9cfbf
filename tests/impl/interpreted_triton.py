"""Triton's interpreter once it is mended; run by test_triton, in a process of its own with TRITON_INTERPRET=1."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.language.extra.libdevice import rsqrt  # before anything is mended, as a kernel's author would

from impl_torch.kernels import interpreter

interpreter.mend()

HALF = [torch.bfloat16, torch.float16]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
SIZE = 1024


@triton.jit
def cast(x, y, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)
    tl.store(y + places, tl.load(x + places).to(y.dtype.element_ty))


@triton.jit
def compute(a, b, y, OPERATION: tl.constexpr, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)
    first, second = tl.load(a + places), tl.load(b + places)
    if OPERATION == "add":
        tl.store(y + places, first + second)
    elif OPERATION == "subtract":
        tl.store(y + places, first - second)
    elif OPERATION == "multiply":
        tl.store(y + places, first * second)
    elif OPERATION == "divide":
        tl.store(y + places, first / second)
    elif OPERATION == "negative":
        tl.store(y + places, -first)
    elif OPERATION == "abs":
        tl.store(y + places, tl.abs(first))
    elif OPERATION == "maximum":
        tl.store(y + places, tl.maximum(first, second))
    elif OPERATION == "greater":
        tl.store(y + places, first > second)
    elif OPERATION == "where":
        tl.store(y + places, tl.where(first < second, first, second))


@triton.jit
def reduce(x, y, SIZE: tl.constexpr):
    numbers = tl.load(x + tl.arange(0, SIZE))
    tl.store(y, tl.sum(numbers))
    tl.store(y + 1, tl.max(numbers))


@triton.jit
def multiply_matrices(a, b, y, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(y + places, tl.dot(tl.load(a + places), tl.load(b + places)))


@triton.jit
def add_number(x, y, number):
    tl.store(y, tl.load(x) + number)


@triton.jit
def by_module(x, y):
    tl.store(y, libdevice.tanh(tl.load(x)))


@triton.jit
def by_name(x, y):
    tl.store(y, rsqrt(tl.load(x)))


@triton.jit
def by_no_name(x, y):
    tl.store(y, libdevice.j0(tl.load(x)))


@triton.autotune([triton.Config({"ADDED": 1}), triton.Config({"ADDED": 2})], key=["x"])
@triton.jit
def tuned(x, y, ADDED: tl.constexpr):
    tl.store(y, tl.load(x) + ADDED)


@pytest.fixture(autouse=True)
def _the_same_draws_in_any_order():
    torch.manual_seed(0)


def numbers_between(dtype: torch.dtype) -> torch.Tensor:
    """[SIZE] in float32: of every size, just between two numbers of the dtype, where one rounds to even, and what is none."""
    some = (torch.randn(SIZE // 2) * 2.0 ** torch.randint(-10, 6, (SIZE // 2,))).to(dtype).float()
    ulps = 2.0 ** torch.floor(some.abs().log2()) * torch.finfo(dtype).eps
    between = torch.cat([torch.randn(SIZE // 2), some + ulps / 2])
    between[:5] = torch.tensor([torch.nan, 0.0, -0.0, 1e-45, torch.finfo(dtype).tiny / 3])
    return between


@pytest.mark.parametrize("dtype", [*HALF, *FLOAT8], ids=str)
def test_float32_is_rounded_to_the_nearest_even(dtype):
    x, y = numbers_between(dtype), torch.empty(SIZE, dtype=dtype)
    cast[(1,)](x, y, SIZE)
    torch.testing.assert_close(y.float(), x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [*HALF, *FLOAT8], ids=str)
def test_what_is_narrow_is_widened_exactly(dtype):
    x, y = numbers_between(dtype).to(dtype), torch.empty(SIZE)
    cast[(1,)](x, y, SIZE)
    torch.testing.assert_close(y, x.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("source", "dtype"), [HALF, HALF[::-1]], ids=str)
def test_half_precision_is_cast_to_the_other(source, dtype):
    x, y = torch.randn(SIZE).to(source), torch.empty(SIZE, dtype=dtype)
    cast[(1,)](x, y, SIZE)
    assert torch.equal(y, x.to(dtype))


def test_infinity_stays_where_there_is_one_and_becomes_the_largest_float8():
    x = torch.full((SIZE,), torch.inf)
    for dtype, expected in ((torch.bfloat16, torch.inf), (torch.float16, torch.inf), (torch.float8_e4m3fn, 448.0)):
        y = torch.empty(SIZE, dtype=dtype)
        cast[(1,)](x, y, SIZE)
        assert y.float().unique().tolist() == [expected]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "divide", "negative", "abs", "maximum"])
def test_arithmetic_is_torchs(operation, dtype):
    a, b = torch.randn(2, SIZE).to(dtype)
    y = torch.empty_like(a)
    compute[(1,)](a, b, y, operation, SIZE)
    assert torch.equal(y, getattr(torch, operation)(*(a, b) if operation not in ("negative", "abs") else (a,)))


def test_bfloat16_is_compared_by_its_numbers():
    a, b = torch.randn(2, SIZE).bfloat16()
    greater, least = torch.empty(SIZE, dtype=torch.bool), torch.empty_like(a)
    compute[(1,)](a, b, greater, "greater", SIZE)
    compute[(1,)](a, b, least, "where", SIZE)
    assert torch.equal(greater, a > b)
    assert torch.equal(least, torch.minimum(a, b))


def test_bfloat16_is_added_up_and_multiplied_by_its_numbers():
    x, y = torch.tensor([1.0, 2.0, -3.0, 0.5]).bfloat16(), torch.empty(2, dtype=torch.bfloat16)
    reduce[(1,)](x, y, 4)
    assert y.tolist() == [0.5, 2.0]
    a, b = torch.randint(-4, 5, (2, 16, 16)).bfloat16()
    product = torch.empty(16, 16)
    multiply_matrices[(1,)](a, b, product, 16)
    assert torch.equal(product, a.float() @ b.float())


def test_a_number_that_is_passed_is_float32():
    """In float64, too: what a kernel adds there is no longer 1e-5."""
    y = torch.empty(1, dtype=torch.float64)
    add_number[(1,)](torch.zeros(1, dtype=torch.float64), y, 1e-5)
    assert y.item() == torch.tensor(1e-5).item() != 1e-5


def test_libdevice_computes_however_it_was_imported():
    x, y = torch.tensor([0.25]), torch.empty(1)
    by_module[(1,)](x, y)
    torch.testing.assert_close(y, x.tanh())
    by_name[(1,)](x, y)
    assert y.item() == 2.0
    with pytest.raises(Exception, match=r"libdevice's j0f? in Triton's interpreter"):
        by_no_name[(1,)](x, y)


def test_an_autotuned_kernel_runs_with_its_first_config():
    y = torch.empty(1)
    tuned[(1,)](torch.ones(1), y)
    assert y.item() == 2.0


def test_what_is_right_is_left_as_it_is(monkeypatch):
    assert interpreter.mend() == ()
    mended = []
    right = replace(interpreter.FAULTS[0], is_right=lambda: True, mend=lambda: mended.append("right"))
    wrong = replace(right, what="wrong", is_right=lambda: bool(mended), mend=lambda: mended.append("wrong"))
    monkeypatch.setattr(interpreter, "FAULTS", (right, wrong))
    assert interpreter.mend() == ("wrong",)
    assert mended == ["wrong"]


def test_a_fault_that_stays_is_told(monkeypatch):
    incurable = replace(interpreter.FAULTS[0], what="no cure", is_right=lambda: False, mend=lambda: None)
    monkeypatch.setattr(interpreter, "FAULTS", (incurable,))
    with pytest.raises(RuntimeError, match="has a fault that cannot be mended here: no cure"):
        interpreter.mend()


def test_a_variable_that_is_set_too_late_is_told():
    code = "import os, triton; os.environ['TRITON_INTERPRET'] = '1'; from impl_torch.kernels import interpreter as i; i.mend()"
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=without, timeout=120, check=False)
    assert "RuntimeError: TRITON_INTERPRET=1 was set after triton had been imported" in result.stderr
