"""The linen modules are the functions, with parameters named as everywhere here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import impl_jax
from impl_jax import linen

X = jax.random.normal(jax.random.key(0), (2, 3, 33), jnp.bfloat16)


@pytest.mark.parametrize(
    ("module", "function", "names"),
    [
        (linen.RMSNorm(), impl_jax.rms_norm, {"weight"}),
        (linen.LayerNorm(), impl_jax.layer_norm, {"weight", "bias"}),
        (linen.LayerNorm(use_bias=False), impl_jax.layer_norm, {"weight"}),
        (linen.RMSNorm(weight_offset=1.0, order="scale_then_cast", param_dtype=jnp.bfloat16), None, {"weight"}),
    ],
)
def test_a_module_is_its_function(module, function, names):
    parameters = module.init(jax.random.key(1), X)["params"]
    assert parameters.keys() == names
    parameters = {name: jax.random.normal(jax.random.key(2), (33,), value.dtype) for name, value in parameters.items()}
    function = function or (lambda x, weight: impl_jax.rms_norm(x, weight, order="scale_then_cast", weight_offset=1.0))
    expected = function(X, *(parameters[name] for name in ("weight", "bias") if name in parameters))
    actual = module.apply({"params": parameters}, X)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_effective_weight_begins_as_ones(offset):
    parameters = linen.RMSNorm(weight_offset=offset).init(jax.random.key(0), X)["params"]
    np.testing.assert_array_equal(parameters["weight"] + offset, np.ones(33))


def test_a_block_is_its_function():
    config = impl_jax.BlockConfig(16, n_heads=2, n_kv_heads=1, d_head=8, d_ff=24, norm="layer_norm", qkv_bias=True)
    module, x = linen.PreLNBlock(config), X[..., :16]
    parameters = module.init(jax.random.key(1), x)["params"]
    assert jax.tree.map(jnp.shape, parameters) == config.parameters()
    out, taps = module.apply({"params": parameters}, x, position=3, taps=True)
    expected = impl_jax.pre_ln_block(x, parameters, config=config, position=3)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(taps["out"], expected)
