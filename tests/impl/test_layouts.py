"""What the ports make of a layout: the same values in a memory that shows who reads it wrongly."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conformance.port import Port, Skip
from conformance.port.protocol import Call
from conformance.question.case import layouts
from impl_jax.port import JaxPort
from impl_torch.port import TorchPort

Array = np.ndarray
X = np.arange(2 * 3 * 33, dtype=np.float32).reshape(2, 3, 33) + 1
WEIGHT = np.arange(33, dtype=np.float32) + 1
STRIDES = {
    "permuted": (99, 1, 3),
    "sliced": (120, 40, 1),
    "strided": (198, 66, 2),
    "expanded": (0, 33, 1),
    "at_offset": (99, 33, 1),
    "one_number": (0, 0, 0),
}
OFFSETS = {"sliced": 3, "at_offset": 99}


def repeated(x: Array, layout: str) -> Array:
    """A tensor that has the values to be laid out so."""
    match layout:
        case "expanded":
            return np.ascontiguousarray(np.broadcast_to(x[:1], x.shape))
        case "one_number":
            return np.full_like(x, x.flat[0])
        case _:
            return x


def memory_of(tensor: Array) -> tuple[Array, int]:
    """The whole buffer that an array is a part of, and the place in it where the array begins."""
    buffer = tensor
    while buffer.base is not None:
        buffer = buffer.base
    start = tensor.__array_interface__["data"][0] - buffer.__array_interface__["data"][0]
    return buffer.ravel(order="K"), start // tensor.itemsize


@pytest.mark.parametrize("layout", STRIDES)
def test_numpy_arrays_are_laid_out_by_the_base_port(layout):
    values = repeated(X, layout)
    laid_out = Port().lay_out(values, layout)
    np.testing.assert_array_equal(laid_out, values)
    assert tuple(stride // 4 for stride in laid_out.strides) == STRIDES[layout]
    assert memory_of(laid_out)[1] == OFFSETS.get(layout, 0)


@pytest.mark.parametrize("layout", STRIDES)
def test_torch_lays_out_alike(layout):
    values = repeated(X, layout)
    laid_out = TorchPort(jit=False).lay_out(torch.from_numpy(values), layout)
    np.testing.assert_array_equal(laid_out, values)
    assert laid_out.stride() == STRIDES[layout]
    assert laid_out.storage_offset() == OFFSETS.get(layout, 0)


@pytest.mark.parametrize("layout", ["at_offset", "expanded", "one_number"])
def test_what_is_not_the_tensor_in_its_memory_is_zero(layout):
    """So that who reads it is found out, and finds the same everywhere."""
    values = repeated(X, layout)
    in_numpy, start = memory_of(Port().lay_out(values, layout))
    in_torch = TorchPort(jit=False).lay_out(torch.from_numpy(values), layout).untyped_storage()
    np.testing.assert_array_equal(np.frombuffer(bytes(in_torch.tolist()), np.float32), in_numpy)
    size = {"at_offset": X.size, "expanded": X[:1].size, "one_number": 1}[layout]
    kept = np.zeros_like(in_numpy)
    kept[start : start + size] = values.ravel()[:size]
    np.testing.assert_array_equal(in_numpy, kept)
    assert in_numpy.size > size


@pytest.mark.parametrize("layout", ["strided", "at_offset"])
def test_a_weight_is_laid_out_too(layout):
    np.testing.assert_array_equal(Port().lay_out(WEIGHT, layout), WEIGHT)
    np.testing.assert_array_equal(TorchPort(jit=False).lay_out(torch.from_numpy(WEIGHT), layout), WEIGHT)


def test_a_layout_is_that_of_x_and_dy_or_of_the_tensor_it_begins_with():
    assert layouts("contiguous") == {}
    assert layouts("permuted") == {"x": "permuted", "dy": "permuted"}
    assert layouts("x_at_offset") == {"x": "at_offset"}
    assert layouts("dy_one_number") == {"dy": "one_number"}
    assert layouts("weight_strided") == {"weight": "strided", "bias": "strided"}
    assert layouts("residual_aliased") == {"residual": "aliased"}


def test_a_tensor_that_is_aliased_is_another_in_the_same_memory():
    x = torch.from_numpy(X.copy())
    for tensor, of_it in ((X, Port().lay_out(X, "aliased")), (x, TorchPort(jit=False).lay_out(x, "aliased"))):
        assert of_it is not tensor
        assert np.shares_memory(np.asarray(of_it), np.asarray(tensor))


class AddsInPlace(Port):
    """The sum is written where the residual lies, as fused kernels do, and said to be."""

    overwrites = ("residual",)

    def add_rms_norm(self, x: Array, residual: Array, weight: Array, *, eps: float) -> tuple[Array, Array]:
        residual += x
        return residual / np.sqrt(np.mean(np.square(residual), axis=-1, keepdims=True) + np.float32(eps)) * weight, residual


def test_a_residual_that_is_x_shows_what_is_written_to_it():
    call = replace(asked("contiguous"), op="add_rms_norm", asked=("y", "residual_out"))
    given = {"x": X.copy(), "residual": X.copy(), "weight": WEIGHT}
    assert AddsInPlace().answer(call, given).overwrote == ("residual",)
    aliased = replace(call, layout="residual_aliased")
    assert AddsInPlace().answer(aliased, {"x": X.copy(), "residual": X.copy(), "weight": WEIGHT}).overwrote == ("x", "residual")


class KnowsNothing(Port):
    """A port as it was written before there were layouts of single tensors, with no case for what it does not know."""

    def lay_out(self, tensor: Array, layout: str) -> Array | None:
        if layout == "permuted":
            return super().lay_out(tensor, layout)
        return None

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float) -> Array:
        x_hat = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
        return x_hat if weight is None else x_hat * weight


def asked(layout: str) -> Call:
    """y of rms_norm in a layout."""
    return Call(1, "rms_norm/…", "rms_norm", "float32", "either_order", 0, 1e-5, layout, ("y",), (), (), "", "")


@pytest.mark.parametrize(
    "layout", ["x_at_offset", "weight_strided", "weight_at_offset", "dy_at_offset", "dy_one_number", "new"]
)
def test_a_port_that_does_not_know_a_layout_skips_it(layout):
    given = {"x": X, "weight": WEIGHT, "dy": X}
    with pytest.raises(Skip, match=f"no layout {layouts(layout)[next(iter(layouts(layout)))]}"):
        KnowsNothing().answer(asked(layout), given)
    KnowsNothing().answer(asked("permuted"), given)  # which it knows


def test_jax_has_no_strides():
    port = JaxPort(jit=False)
    with pytest.raises(Skip, match="no strides"):
        port.lay_out(port.to_tensor(X), "at_offset")
