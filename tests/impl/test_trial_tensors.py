"""`conformance_case.check` given the frameworks' own tensors, in every dtype."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from conformance.numbers.dlpack import from_dlpack
from conformance.numbers.rounding import DTYPES
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.report.report import Settings
from conformance.report.single import Teller
from conformance.tools.testing.trial import Trial


def trial(dtype: str) -> Trial:
    case = select("rms_norm/*/random", dtype=dtype)[0]
    return Trial(case, 0, Teller(Settings(0, "cpu", "jit"), ""))


def as_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_jax(array: np.ndarray) -> jax.Array:
    with jax.enable_x64(True):
        return jnp.asarray(array)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convert", [as_torch, as_jax], ids=["torch", "jax"])
def test_a_frameworks_tensors_are_judged(convert, dtype):
    case = trial(dtype)
    right = golden(case.case).outputs["y"].nearest.copy()
    case.check(y=convert(right))
    wrong = right.copy()
    wrong[1, 2, 3] *= wrong.dtype.type(1.5)
    with pytest.raises(AssertionError, match=r"worst +y\[1, 2, 3\]"):
        case.check(y=convert(wrong))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_recorded_tensor_and_a_view_are_judged(dtype):
    case = trial(dtype)
    y = as_torch(golden(case.case).outputs["y"].nearest.copy())
    case.check(y=y.clone().requires_grad_() * 1)
    case.check(y=y.transpose(0, 2).contiguous().transpose(0, 2))
    case.check(y=torch.cat([y, y], dim=-1)[..., : y.shape[-1]])


def test_any_layout_is_read():
    x = torch.arange(24, dtype=torch.bfloat16).reshape(2, 3, 4)
    views = {
        "plain": x,
        "transposed": x.transpose(0, 2),
        "offset": x[1:, 1:, ::2],
        "expanded": x[:1].expand(5, 3, 4),
        "scalar": x[1, 2, 3],
        "empty": x[:0],
    }
    for name, view in views.items():
        read = from_dlpack(view)
        assert read.dtype == ml_dtypes.bfloat16
        assert read.shape == tuple(view.shape), name
        assert np.array_equal(read.astype(np.float32), view.float().numpy()), name


class OnADevice:
    """A tensor in an accelerator's memory."""

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self):
        raise AssertionError("its memory is not to be read")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (OnADevice(), "y is OnADevice, which cannot be read: BufferError: its memory is a device's: move it to the CPU"),
        (torch.zeros(2, 3, 33, dtype=torch.complex64), "y is Tensor, which cannot be read: BufferError: its dtype is none of"),
        (torch.zeros(2, 3, 33, dtype=torch.int32), "y is Tensor, which cannot be read: BufferError: its dtype is none of"),
        (torch.zeros(2, 3, 33, device="meta"), "y is Tensor, which cannot be read: "),
        ("numbers", "y is str of dtype <U7; it must be an array of float32"),
    ],
    ids=["device", "complex", "integers", "no memory", "text"],
)
def test_what_cannot_be_read_is_said(value, words):
    with pytest.raises(TypeError, match="^" + words):
        trial("float32").check(y=value)
