"""What the golden takes and what it refuses, and laws that hold for whatever it takes."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import reference

Array = np.ndarray

ARRAYS = {
    "rms_norm": ["x", "weight"],
    "rms_norm_vjp": ["dy", "x", "weight"],
    "layer_norm": ["x", "weight", "bias"],
    "layer_norm_vjp": ["dy", "x", "weight", "bias"],
}
ARRAYS_OF_OPS = [(op, name) for op, names in ARRAYS.items() for name in names]
NORMS = ["rms_norm", "layer_norm"]

reproducible = settings(derandomize=True, database=None, deadline=None)  # the same examples in every run


def good_arguments(op: str, shape: tuple[int, ...] = (2, 3, 4)) -> dict[str, Array]:
    """Draw every array that the op takes."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape if name in ("x", "dy") else shape[-1:]) for name in ARRAYS[op]}


def assert_same_bits(left: tuple[Array, ...], right: tuple[Array, ...]) -> None:
    """Compare every field of two results exactly."""
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("op", ARRAYS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0)], ids=str)
def test_x_without_features_is_refused(op, shape):
    arguments = {name: np.zeros(shape) for name in ARRAYS[op]}
    with pytest.raises(ValueError, match=re.escape(f"{op}: x has shape {shape}; its last axis must hold")):
        getattr(reference, op)(**arguments, eps=1e-5)


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, name in ARRAYS_OF_OPS if name != "x"])
@pytest.mark.parametrize("wrong", [(), (1,), (1, 4), (3, 2, 4), (2, 3, 5)], ids=str)
def test_an_array_of_another_shape_is_refused(op, name, wrong):
    """Shapes that NumPy would broadcast are refused as well: they are never what was meant."""
    right = (2, 3, 4) if name == "dy" else (4,)
    arguments = good_arguments(op) | {name: np.zeros(wrong)}
    message = f"{op}: {name} has shape {wrong}; with x of shape (2, 3, 4) it must be {right}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        getattr(reference, op)(**arguments, eps=1e-5)


@pytest.mark.parametrize(("op", "name"), ARRAYS_OF_OPS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "complex128", "bool"])
def test_any_dtype_but_float64_is_refused(op, name, dtype):
    arguments = good_arguments(op)
    arguments[name] = arguments[name].real.astype(dtype)
    with pytest.raises(ValueError, match=f"^{op}: {name} is {dtype}; the golden computes in float64 only$"):
        getattr(reference, op)(**arguments, eps=1e-5)


@pytest.mark.parametrize("op", NORMS)
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)], ids=str)
def test_an_empty_batch_has_empty_rows_and_zero_parameter_gradients(op, shape):
    arguments = good_arguments(f"{op}_vjp", shape)
    dy = arguments.pop("dy")
    for name, value in getattr(reference, op)(**arguments, eps=1e-5)._asdict().items():
        assert value.shape == (shape if name in ("y", "x_hat") else (*shape[:-1], 1))
    dx, *parameter_gradients = getattr(reference, f"{op}_vjp")(dy, **arguments, eps=1e-5)
    assert dx.shape == shape
    assert_same_bits(parameter_gradients, [np.zeros(4)] * len(parameter_gradients))


@pytest.mark.parametrize("op", ARRAYS)
def test_any_rank_is_the_same_rows(op):
    """The axes before the last are only ways to count rows: each result is that of the flattened rows, reshaped."""
    arguments = good_arguments(op)
    flat = {name: array.reshape(-1, 4) if array.ndim > 1 else array for name, array in arguments.items()}
    results = getattr(reference, op)(**arguments, eps=1e-5)
    flat_results = getattr(reference, op)(**flat, eps=1e-5)
    assert_same_bits(results, [b.reshape(a.shape) for a, b in zip(results, flat_results, strict=True)])


@pytest.mark.parametrize("op", ARRAYS)
def test_arguments_are_left_as_they_are(op):
    arguments = good_arguments(op)
    for array in arguments.values():
        array.setflags(write=False)
    getattr(reference, op)(**arguments, eps=1e-5)


@pytest.mark.parametrize("op", ARRAYS)
def test_an_offset_needs_a_weight(op):
    """Without a weight there is nothing to offset: x_hat is not doubled."""
    arguments = {name: array for name, array in good_arguments(op).items() if name in ("dy", "x")}
    with_offset = getattr(reference, op)(**arguments, eps=1e-5, weight_offset=1.0)
    without = getattr(reference, op)(**arguments, eps=1e-5)
    np.testing.assert_array_equal(with_offset[0], without[0])


@pytest.mark.parametrize("op", ARRAYS)
def test_an_offset_of_one_is_a_weight_plus_one(op):
    arguments = good_arguments(op)
    plus_one = arguments | {"weight": arguments["weight"] + 1}
    assert_same_bits(
        getattr(reference, op)(**arguments, eps=1e-5, weight_offset=1.0), getattr(reference, op)(**plus_one, eps=1e-5)
    )


# What is less is zero: a subnormal result has fewer digits, and scaling it rounds anew.
elements = st.floats(-1e100, 1e100).map(lambda value: value if abs(value) > 1e-150 else 0.0)
rows = arrays(np.float64, array_shapes(min_dims=1, max_dims=3, max_side=9), elements=elements)
exponents = st.integers(0, 100)
epsilons = st.floats(1e-12, 1e3)


@pytest.mark.parametrize("op", NORMS)
@reproducible
@given(x=rows, eps=epsilons, k=exponents)
def test_scaling_by_a_power_of_two_is_exact(op, x, eps, k):
    """With eps scaled as a square, y stays as it is and dx is divided, to the bit: every rounding scales along."""
    norm, vjp, factor = getattr(reference, op), getattr(reference, f"{op}_vjp"), 2.0**k
    one, scaled = norm(x, eps=eps), norm(factor * x, eps=factor**2 * eps)
    np.testing.assert_array_equal(scaled.y, one.y)
    np.testing.assert_array_equal(scaled.rstd, one.rstd / factor)
    dy = np.cos(np.arange(x.size)).reshape(x.shape)
    np.testing.assert_array_equal(vjp(dy, factor * x, eps=factor**2 * eps).dx, vjp(dy, x, eps=eps).dx / factor)


@pytest.mark.parametrize("op", NORMS)
@reproducible
@given(data=st.data())
def test_permuting_rows_permutes_results(op, data):
    x = data.draw(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-1e3, 1e3)))
    order = data.draw(st.permutations(range(len(x))))
    norm, vjp = getattr(reference, op), getattr(reference, f"{op}_vjp")
    assert_same_bits(norm(x[order], eps=1e-5), [result[order] for result in norm(x, eps=1e-5)])
    dy = np.cos(np.arange(x.size)).reshape(x.shape)
    np.testing.assert_array_equal(vjp(dy[order], x[order], eps=1e-5).dx, vjp(dy, x, eps=1e-5).dx[order])


@reproducible
@given(
    x=arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=33), elements=st.integers(-(2**10), 2**10)),
    constant=st.integers(-(2**40), 2**40),
)
def test_a_constant_added_to_x_leaves_layer_norm_unchanged(x, constant):
    """Integers add up exactly: what is left is the golden's own rounding, and that must not know the mean."""
    at_home, away = (reference.layer_norm(a.astype(np.float64), eps=1e-5) for a in (x, x + constant))
    atol = 8 * np.finfo(np.float64).eps * np.max(np.abs(at_home.x_hat), initial=0)
    np.testing.assert_allclose(away.x_hat, at_home.x_hat, rtol=0, atol=atol)
