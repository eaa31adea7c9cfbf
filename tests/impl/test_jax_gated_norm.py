"""impl_jax's norm and gate, and its norms of groups: the reference's values and gradients, what a TPU rounds, refusals.

What the numbers are worth is asked elsewhere, by the kit itself: see test_ports_conform.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

import reference
from impl_jax import LayerNorm, RMSNorm, RMSNormGated, gated_rms_norm, layer_norm, rms_norm

HOW = [
    {"norm_before_gate": first, "activation": activation, "group_size": group}
    for first, activation, group in [(True, "silu", None), (True, "sigmoid", 3), (False, "silu", 3), (False, "sigmoid", None)]
]
of_all = pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(map(str, how.values())))
GROUPED = {rms_norm: RMSNorm, layer_norm: LayerNorm}


@pytest.fixture
def _x64():
    with jax.enable_x64(True):
        yield


def draw(*shape: int, dtype: str) -> dict[str, Array]:
    """Draw x, the gate and the weight."""
    rng = np.random.default_rng(0)
    shapes = {"x": shape, "gate": shape, "weight": shape[-1:]}
    return {name: jnp.asarray(rng.normal(size=each), dtype) for name, each in shapes.items()}


@pytest.mark.usefixtures("_x64")
@of_all
def test_values_and_gradients_are_the_references(how):
    inputs = draw(2, 3, 6, dtype="float64")
    y, pullback = jax.vjp(lambda inputs: gated_rms_norm(**inputs, eps=1e-3, **how), inputs)
    dy = jnp.asarray(np.random.default_rng(1).normal(size=y.shape))
    [gradients] = pullback(dy)
    exact = {name: np.asarray(array) for name, array in inputs.items()}
    np.testing.assert_allclose(y, reference.gated_rms_norm(**exact, eps=1e-3, **how).y, rtol=1e-12)
    expected = reference.gated_rms_norm_vjp(np.asarray(dy), **exact, eps=1e-3, **how)._asdict()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[f"d{name}"], rtol=1e-11, atol=1e-13)


@pytest.mark.usefixtures("_x64")
@pytest.mark.parametrize("norm", GROUPED)
def test_a_grouped_norm_is_the_plain_one_of_every_group(norm):
    rng = np.random.default_rng(0)
    x, *parameters = (jnp.asarray(rng.normal(size=shape)) for shape in ((3, 12), *[(12,)] * (1 + (norm is layer_norm))))
    dy = jnp.asarray(rng.normal(size=x.shape))
    y, pullback = jax.vjp(partial(norm, group_size=4), x, *parameters)
    for group in range(3):
        part = slice(4 * group, 4 * group + 4)
        of_group, pullback_of_group = jax.vjp(norm, x[:, part], *(each[part] for each in parameters))
        np.testing.assert_allclose(y[:, part], of_group, rtol=1e-14)
        for actual, expected in zip(pullback(dy), pullback_of_group(dy[:, part]), strict=True):
            np.testing.assert_allclose(actual[..., part], expected, rtol=1e-12)
    ones = [jnp.ones(12), jnp.zeros(12)][: len(parameters)]
    module = GROUPED[norm](12, group_size=4, param_dtype="float64")
    np.testing.assert_array_equal(module(x), norm(x, *ones, group_size=4))


@of_all
def test_a_module_is_its_function(how):
    inputs = draw(4, 6, dtype="float32")
    module = RMSNormGated(6, eps=1e-3, **how, rngs=nnx.Rngs(0))
    module.weight.set_value(inputs["weight"])
    expected = gated_rms_norm(**inputs, eps=1e-3, **how)
    np.testing.assert_array_equal(module(inputs["x"], inputs["gate"]), expected)
    assert {name: getattr(module, name) for name in how} == how


@pytest.mark.parametrize("first", [True, False])
def test_lowers_for_a_tpu_with_the_roundings_of_its_order(first):
    """`reduce_precision` is what no compiler drops."""
    inputs = draw(4, 24, dtype="bfloat16")
    for order, rounds in {"cast_then_scale": True, "scale_then_cast": False}.items():
        function = partial(gated_rms_norm, norm_before_gate=first, order=order, group_size=8)
        text = jax.jit(function).trace(**inputs).lower(lowering_platforms=("tpu",)).as_text()
        assert ("reduce_precision" in text) == rounds


@pytest.mark.parametrize("norm", [gated_rms_norm, RMSNormGated(8)], ids=lambda norm: type(norm).__name__)
def test_a_gate_that_would_broadcast_or_promote_is_refused(norm):
    with pytest.raises(ValueError, match=re.escape("gate has shape [8]; with x of shape [3, 8] it must be [3, 8]")):
        norm(jnp.ones((3, 8)), jnp.ones(8))
    with pytest.raises(TypeError, match="gate is float32; with x of bfloat16 it must be bfloat16"):
        norm(jnp.ones((3, 8), "bfloat16"), jnp.ones((3, 8)))
    with pytest.raises(TypeError, match="x is int32"):
        norm(jnp.arange(8, dtype="int32"), jnp.arange(8, dtype="int32"))


def test_an_unknown_activation_is_refused():
    for norm in (lambda how: gated_rms_norm(jnp.ones(8), jnp.ones(8), **how), lambda how: RMSNormGated(8, **how)):
        with pytest.raises(ValueError, match="activation is 'relu'; it must be 'silu' or 'sigmoid'"):
            norm({"activation": "relu"})


@pytest.mark.parametrize("norm", [*GROUPED, lambda x, **how: gated_rms_norm(x, x, **how)])
@pytest.mark.parametrize("group_size", [0, 5, -4])
def test_a_group_that_does_not_divide_the_row_is_refused(norm, group_size):
    message = f"group_size is {group_size}; with x of shape [3, 8] it must divide 8"
    with pytest.raises(ValueError, match=re.escape(message)):
        norm(jnp.ones((3, 8)), group_size=group_size)
