"""impl_jax's norms with a quantised output: what they refuse, the gradient of the sum, jax.jit, and that they lower for a TPU.

What the numbers are worth is asked elsewhere, by the kit itself: see test_ports_conform.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from impl_jax import QuantisedRMSNorm, add_rms_norm, quantised_add_rms_norm, quantised_rms_norm

SCALE = np.ones(1, np.float32)
X, RESIDUAL = jax.random.normal(jax.random.key(0), (2, 3, 5, 256))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8"])
@pytest.mark.parametrize(("scaling", "groups"), [("per_row", 1), ("per_group_128", 2)])
def test_q_times_its_scale_is_y(dtype, scaling, groups):
    q, scale, s = jax.jit(partial(quantised_add_rms_norm, quantised_dtype=dtype, scaling=scaling))(X, RESIDUAL)
    y, residual_out = add_rms_norm(X, RESIDUAL)
    assert (q.dtype, scale.dtype, scale.shape) == (jnp.dtype(dtype), jnp.float32, (3, 5, groups))
    np.testing.assert_array_equal(s, residual_out)
    restored = q.astype(jnp.float32).reshape(3, 5, groups, -1) * scale[..., None]
    np.testing.assert_allclose(restored.reshape(y.shape), y, rtol=0.13, atol=float(scale.max()))


def test_a_static_scale_is_not_returned():
    assert quantised_rms_norm(X, None, SCALE, scaling="static", quantised_dtype="int8").dtype == jnp.int8
    assert len(quantised_add_rms_norm(X, RESIDUAL, None, SCALE, scaling="static")) == 2


def test_the_module_is_the_functions():
    dynamic = QuantisedRMSNorm(256, scaling="per_group_128", quantised_dtype="int8", y="unrounded", sum="unrounded")
    how = {"scaling": "per_group_128", "quantised_dtype": "int8", "y": "unrounded"}
    for mine, theirs in zip(dynamic(X), quantised_rms_norm(X, **how), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(dynamic(X, RESIDUAL), quantised_add_rms_norm(X, RESIDUAL, **how, sum="unrounded"), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    static = QuantisedRMSNorm(256, scaling="static", scale=0.25)
    np.testing.assert_array_equal(static(X), quantised_rms_norm(X, None, jnp.full(1, 0.25), scaling="static"))


def test_the_sum_alone_has_a_gradient():
    def total(x):
        q, scale, residual_out = quantised_add_rms_norm(x, RESIDUAL)
        return jnp.sum(q.astype(jnp.float32)) + jnp.sum(scale) + 2 * jnp.sum(residual_out)

    np.testing.assert_array_equal(jax.grad(total)(X), np.full(X.shape, 2.0))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"quantised_dtype": "float8"}, "quantised_dtype is 'float8'; it must be one of float8_e4m3fn,"),
        ({"scaling": "per_tensor"}, "scaling is 'per_tensor'; it must be one of static,"),
        ({"scaling": "mx", "quantised_dtype": "int8"}, "scaling is 'mx'; with a quantised_dtype of int8"),
        ({"y": "exact"}, "y is 'exact'; it must be 'rounded' or 'unrounded'"),
        ({"scaling": "static"}, "scale is missing; with scaling='static'"),
        ({"scale": SCALE}, "scale is given; with scaling='per_row'"),
        ({"scaling": "static", "scale": 0 * SCALE}, "scale is 0.0; it must be positive and finite"),
        ({"scaling": "static", "scale": -SCALE}, "scale is -1.0; it must be positive and finite"),
        ({"scaling": "static", "scale": np.nan * SCALE}, "scale is nan; it must be positive and finite"),
        ({"scaling": "static", "scale": SCALE.astype(np.float16)}, "scale is float16 of shape [1]; it must be float32"),
        ({"scale_ub": -1.0}, "scale_ub is -1.0; it must be positive"),
        ({"scaling": "mx"}, "x has shape [3, 40]; with scaling='mx' its last axis must be a multiple of 32"),
    ],
)
def test_what_cannot_be_quantised_is_refused(changed, words):
    arguments = {"x": jnp.ones((3, 40))} | changed
    with pytest.raises(ValueError, match=re.escape(words)):
        quantised_rms_norm(**arguments)
    with pytest.raises(ValueError, match=re.escape(words)):
        quantised_add_rms_norm(residual=jnp.ones((3, 40)), **arguments)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(("dtype", "type_"), [("float8_e4m3fn", "f8E4M3FN"), ("float8_e5m2", "f8E5M2"), ("int8", "i8")])
def test_it_lowers_and_y_is_rounded_before_it_is_quantised(platform, dtype, type_):
    """XLA may drop a pair of casts; it never drops reduce_precision."""
    x = jnp.ones((4, 128), jnp.bfloat16)
    how = {"quantised_dtype": dtype, "scaling": "per_group_128"}
    text = {}
    for y in ("rounded", "unrounded"):
        function = jax.jit(partial(quantised_rms_norm, order="scale_then_cast", y=y, **how))
        text[y] = function.trace(x).lower(lowering_platforms=(platform,)).as_text()
        assert f"tensor<4x128x{type_}>" in text[y]
    assert [each.count("reduce_precision") for each in text.values()] == [1, 0]
