"""The gradients of the block and of its ops against differences along random directions, and what is known of them exactly."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from block_inputs import draw

import reference
from reference import PRESETS, BlockConfig, small

Array = np.ndarray

# Four points leave h⁴/30 of a fifth derivative, and rounding, some eps·|y·dy| / h. Along a unit vector the two balance near
# this h, and the largest error is 2e-11 of the gradient's length. A term missing, of one feature or one head, is 1e-3.
H = 2.0**-11
TOLERANCE = 1e-10

LLAMA, GPT2, MINIMIND = small(PRESETS["llama"]), small(PRESETS["gpt2"]), small(PRESETS["minimind"])
CONFIGS = {name: small(config) for name, config in PRESETS.items()} | {
    "interleaved": replace(LLAMA, rope="interleaved"),
    "multi_query": replace(LLAMA, n_kv_heads=1),
    "no_rope": replace(LLAMA, rope="none"),
    "not_causal": replace(LLAMA, causal=False),
    "weight_offset": replace(LLAMA, weight_offset=1.0, qk_norm=True),
    "biases": replace(LLAMA, qkv_bias=True, o_bias=True, feed_forward_bias=True),
    "gelu": replace(GPT2, feed_forward="gelu"),
    "capped": replace(LLAMA, softcap=1.5, attention_scale=0.5, window=2, sink=True),
    "qk_norm_over_all_heads": replace(LLAMA, qk_norm=True, qk_norm_over="all_heads", weight_offset=1.0, qk_norm_offset=False),
    "layer_norm_swiglu_qk_norm": replace(GPT2, feed_forward="swiglu", rope="half_split", qk_norm=True),
}
PAST, S = 2, 3
CONTEXTS = ["plain", "cached", "masked"]


def draw_context(context: str, config: BlockConfig) -> dict[str, int | Array]:
    """Draw a cache, and a mask that hides from the first sequence's first queries, or from all, whatever they might see."""
    rng = np.random.default_rng(1)
    k_cache, v_cache = rng.normal(size=(2, 2, PAST, config.n_kv_heads, config.d_head))
    key_mask = np.ones((2, PAST + S), dtype=bool)
    key_mask[0, : PAST + 1] = key_mask[1, PAST] = False
    cached = {"position": 4999, "k_cache": k_cache, "v_cache": v_cache}
    return {"plain": {}, "cached": cached, "masked": cached | {"key_mask": key_mask}}[context]


def central_difference(f: Callable[[Array], Array], value: Array, step: Array, dy: Array) -> float:
    """Differentiate ⟨f, dy⟩ along a step: twice what two near points say, less what two far points do."""
    near, far = (math.fsum(((f(value + n * step) - f(value - n * step)) * dy).ravel()) for n in (1, 2))
    return (8 * near - far) / 12


def assert_gradients(y: Callable[..., Array], arguments: dict[str, Array], dy: Array, gradients: dict[str, Array]) -> None:
    """Compare with the slope of ⟨y, dy⟩ along three directions of each argument."""
    rng = np.random.default_rng(2)
    assert gradients.keys() == {f"d{name}" for name in arguments}
    for name, value in arguments.items():
        gradient = gradients[f"d{name}"]
        assert gradient.shape == value.shape
        for direction in rng.normal(size=(3, *value.shape)):
            direction /= np.linalg.norm(direction)
            slope = central_difference(lambda a, name=name: y(**arguments | {name: a}), value, H * direction, dy) / H
            error = abs(slope - math.fsum((gradient * direction).ravel()))
            assert error <= TOLERANCE * max(1, np.linalg.norm(gradient)), name


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_block(config, context):
    x, parameters, dout = draw(config, (2, S))
    how = draw_context(context, config)

    def out(x: Array, **parameters: Array) -> Array:
        return reference.pre_ln_block(x, parameters, config, **how).out

    assert_gradients(out, {"x": x} | parameters, dout, reference.pre_ln_block_vjp(dout, x, parameters, config, **how))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("t", [3, 5])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=str)
def test_attention(heads, t, masked, causal):
    (h, h_kv), rng = heads, np.random.default_rng(t)
    q, dy = rng.normal(size=(2, 2, 3, h, 2))
    k, v = rng.normal(size=(2, 2, t, h_kv, 2))
    key_mask = np.arange(t) >= [[1], [t]] if masked else None  # the second sequence sees nothing

    def y(**arrays: Array) -> Array:
        return reference.attention(**arrays, causal=causal, key_mask=key_mask).y

    arguments = {"q": q, "k": k, "v": v}
    gradients = reference.attention_vjp(dy, **arguments, causal=causal, key_mask=key_mask)
    assert gradients.dsink is None
    assert_gradients(y, arguments, dy, {name: gradient for name, gradient in gradients._asdict().items() if name != "dsink"})


@pytest.mark.parametrize("how", [{"window": 2}, {"softcap": 0.5}, {"attention_scale": 2.0}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_a_sink(how, masked):
    rng = np.random.default_rng(0)
    q, dy = rng.normal(size=(2, 2, 3, 4, 2))
    k, v = rng.normal(size=(2, 2, 5, 2, 2))
    arguments = {"q": q, "k": k, "v": v, "sink": rng.normal(size=4)}
    how = how | {"key_mask": np.arange(5) >= [[1], [5]] if masked else None}
    gradients = reference.attention_vjp(dy, **arguments, **how)
    assert_gradients(lambda **arrays: reference.attention(**arrays, **how).y, arguments, dy, gradients._asdict())


@pytest.mark.parametrize("rotary_features", [None, 4])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(interleaved, rotary_features):
    x, dy = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 6))
    how = {"base": 1e6, "interleaved": interleaved, "rotary_features": rotary_features}
    positions = np.array([0.0, 1.0, 4999.0])
    dx = reference.rope_vjp(dy, positions, **how)
    assert_gradients(lambda x: reference.rope(x, positions, **how), {"x": x}, dy, {"dx": dx})


def test_swiglu():
    gate, up, dy = np.random.default_rng(0).normal(size=(3, 2, 3, 5))
    dgate, dup = reference.swiglu_vjp(dy, gate, up)
    assert_gradients(reference.swiglu, {"gate": gate, "up": up}, dy, {"dgate": dgate, "dup": dup})


@pytest.mark.parametrize("approximate", [False, True])
def test_geglu(approximate):
    gate, up, dy = np.random.default_rng(0).normal(size=(3, 2, 3, 5))
    geglu = partial(reference.geglu, approximate=approximate)
    dgate, dup = reference.geglu_vjp(dy, gate, up, approximate=approximate)
    assert_gradients(geglu, {"gate": gate, "up": up}, dy, {"dgate": dgate, "dup": dup})


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu(approximate):
    x, dy = np.random.default_rng(0).normal(size=(2, 2, 3, 5))
    dx = reference.gelu_vjp(dy, x, approximate=approximate)
    assert_gradients(lambda x: reference.gelu(x, approximate=approximate), {"x": x}, dy, {"dx": dx})


def test_a_bias_of_keys_that_are_not_rotated_has_no_gradient():
    """It adds the same to all scores of a query, and a softmax does not know what all have in common."""
    x, parameters, dout = draw(GPT2, (2, S))
    gradients = reference.pre_ln_block_vjp(dout, x, parameters, GPT2)
    np.testing.assert_allclose(gradients["dattention.k.bias"], 0, atol=1e-14)
    assert np.linalg.norm(gradients["dattention.q.bias"]) > 0.1


def test_what_is_not_seen_has_no_gradient():
    """Exactly: neither the keys that are padding, nor the queries in front, who see nothing else."""
    q, k, v, dy = np.random.default_rng(0).normal(size=(4, 2, 3, 4, 2))
    key_mask = np.array([[False, True, True], [False, False, False]])
    for gradient in reference.attention_vjp(dy, q, k, v, key_mask=key_mask)[:3]:
        assert not gradient[~key_mask].any()
        assert gradient[0, 2].all()
