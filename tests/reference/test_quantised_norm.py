"""RMSNorm with a quantised output: rounding is that of ml_dtypes, scales are those of the formula, and what is refused."""

import re

import ml_dtypes
import numpy as np
import pytest

import reference

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 256))
HOW = {"eps": 1e-5, "quantised_dtype": "float8_e4m3fn", "scaling": "per_row"}
QMAX = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0, "int8": 127.0}
each_dtype = pytest.mark.parametrize("dtype", QMAX)


@each_dtype
def test_every_number_and_every_tie_is_rounded_as_ml_dtypes_does(dtype):
    """Float16 holds them all."""
    y = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)
    y = y[np.abs(y) <= QMAX[dtype]]
    expected = np.rint(y) if dtype == "int8" else y.astype(np.float16).astype(getattr(ml_dtypes, dtype)).astype(np.float64)
    np.testing.assert_array_equal(reference.quantise(y, np.ones(1), dtype), expected)


@each_dtype
def test_what_is_beyond_the_largest_becomes_the_largest(dtype):
    assert reference.quantise(np.array([1e9, -1e9]), np.ones(1), dtype).tolist() == [QMAX[dtype], -QMAX[dtype]]


@each_dtype
def test_the_largest_of_a_row_is_the_largest_number(dtype):
    q, scale = reference.quantised_rms_norm(X, eps=1e-5, quantised_dtype=dtype, scaling="per_row")
    assert scale.shape == (3, 1)
    assert np.max(np.abs(q), axis=-1).tolist() == [QMAX[dtype]] * 3
    np.testing.assert_allclose(q * scale, reference.rms_norm(X, eps=1e-5).y, atol=0.13 * np.max(scale) * QMAX[dtype])


def test_every_group_has_a_scale_of_its_own():
    y = np.repeat([[1.0, 8.0]], 128, axis=-1)
    assert reference.dynamic_scale(y, "int8", "per_group_128").tolist() == [[1 / 127, 8 / 127]]


def test_an_mx_scale_is_the_power_of_two_of_the_specification():
    y = np.repeat([[1.0, 1.999, 448.0, 0.0]], 32, axis=-1)
    assert reference.dynamic_scale(y, "float8_e4m3fn", "mx").tolist() == [[2.0**-8, 2.0**-8, 1.0, 1.0]]
    assert reference.dynamic_scale(y[:, :32], "float8_e5m2", "mx").tolist() == [[2.0**-15]]


@pytest.mark.parametrize(("dtype", "floor"), [("float8_e4m3fn", 1 / 448 / 512), ("int8", 2.0**-23)])
def test_a_row_of_zeros_has_the_floor_of_the_scale(dtype, floor):
    q, scale = reference.quantised_rms_norm(0 * X, eps=1e-5, quantised_dtype=dtype, scaling="per_row")
    np.testing.assert_allclose(scale, floor)
    assert not q.any()


def test_an_upper_bound_is_one_of_the_maximum():
    y = np.array([[1.0, -4.0]])
    assert reference.dynamic_scale(y, "int8", "per_row", 2.0).tolist() == [[2 / 127]]
    assert reference.dynamic_scale(y, "int8", "per_row", 8.0).tolist() == [[4 / 127]]


def test_of_a_sum_it_is_the_quantised_norm_of_the_sum():
    residual = RNG.normal(size=X.shape)
    *quantised, residual_out = reference.quantised_add_rms_norm(X, residual, **HOW)
    np.testing.assert_array_equal(residual_out, X + residual)
    for actual, expected in zip(quantised, reference.quantised_rms_norm(X + residual, **HOW), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"quantised_dtype": "float8_e4m3"}, "quantised_dtype is 'float8_e4m3'; it must be one of float8_e4m3fn,"),
        ({"scaling": "per_tensor"}, "scaling is 'per_tensor'; it must be one of static, per_row,"),
        ({"scaling": "mx", "quantised_dtype": "int8"}, "scaling is 'mx'; with a quantised_dtype of int8"),
        ({"scaling": "static"}, "scale is None; it must be given where scaling is 'static'"),
        ({"scale": np.ones(1)}, "it must be given where scaling is 'static', and only there"),
        ({"scaling": "static", "scale": np.zeros(1)}, "scale is [0.]; it must be one positive, finite number"),
        ({"scaling": "static", "scale": -np.ones(1)}, "scale is [-1.]; it must be one positive"),
        ({"scaling": "static", "scale": np.full(1, np.nan)}, "scale is [nan]; it must be one positive"),
        ({"scaling": "static", "scale": np.ones(2)}, "scale is [1. 1.]; it must be one positive"),
        ({"scaling": "static", "scale": np.ones(1, np.float32)}, "scale is float32; the golden computes in float64"),
        ({"scale_ub": 0.0}, "scale_ub is 0.0; it must be positive"),
        ({"scale_ub": 1.0, "scaling": "mx"}, "scale_ub is 1.0; it must be positive, and scaling"),
        ({"x": X[:, :200], "scaling": "per_group_128"}, "with scaling 'per_group_128' its last axis must be a multiple of 128"),
        ({"x": X[:, :33], "scaling": "mx"}, "with scaling 'mx' its last axis must be a multiple of 32"),
    ],
)
@pytest.mark.parametrize("op", ["quantised_rms_norm", "quantised_add_rms_norm"])
def test_what_cannot_be_quantised_is_refused(op, changed, words):
    arguments = {"x": X} | HOW | changed
    if op == "quantised_add_rms_norm":
        arguments["residual"] = arguments["x"]
    with pytest.raises(ValueError, match=f"^{op}: .*{re.escape(words)}"):
        getattr(reference, op)(**arguments)
