"""Laws of the block and its ops, and the names, order and shapes that its intermediates are known by."""

from dataclasses import replace

import numpy as np
import pytest
from block_inputs import draw

import reference
from reference import PRESETS, BlockConfig, small

Array = np.ndarray

CONFIGS = {name: small(config) for name, config in PRESETS.items()}
CAUSAL = {name: replace(config, causal=True) for name, config in CONFIGS.items()}
LLAMA = CONFIGS["llama"]
CONFIGS |= {
    "capped": replace(LLAMA, softcap=1.5, attention_scale=0.5),
    "qk_norm_over_all_heads": replace(LLAMA, qk_norm=True, qk_norm_over="all_heads", weight_offset=1.0, qk_norm_offset=False),
}
SHAPE = (2, 5)  # batch s
ROUNDING = 1e-13  # sums of 64 terms near 1, some of them in another order; a wrong key or position is 1e-2


def assert_close(a: Array, b: Array) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING, strict=True)


@pytest.mark.parametrize("rope", ["half_split", "none"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_intermediates_come_in_data_flow_order(config, rope):
    config = replace(config, rope=rope)
    x, parameters, _ = draw(config, SHAPE)
    taps = reference.pre_ln_block(x, parameters, config).intermediates

    heads, kv_heads = (config.n_heads, config.d_head), (config.n_kv_heads, config.d_head)
    d, placement = (config.d_model,), config.placement
    expected: dict[str, tuple[int, ...]] = {"attention_norm": d} if placement in ("pre", "sandwich", "parallel") else {}
    expected |= {"q": heads, "k": kv_heads, "v": kv_heads}
    expected |= {"q_norm": heads, "k_norm": kv_heads} if config.qk_norm else {}
    expected |= {"q_rope": heads, "k_rope": kv_heads} if rope != "none" else {}
    expected |= {"scores": ()} | ({"capped": ()} if config.softcap else {})
    expected |= {"probs": (), "attn": (config.n_heads * config.d_head,), "attn_out": d}
    expected |= behind("attn", placement, d) | ({"h": d} if placement != "parallel" else {})
    expected |= {"ffn_norm": d} if placement in ("pre", "sandwich") else {}
    expected |= {"gate": (config.d_ff,)} if config.gated else {}
    expected |= {"up": (config.d_ff,), "act": (config.d_ff,), "ffn_out": d}
    expected |= behind("ffn", placement, d) | {"out": d}
    expected |= {f"{norm}.{name}": (1,) for norm in block_norms(config) for name in ("mean", "var", "rstd")}
    shapes = {name: SHAPE + features for name, features in expected.items()}
    shapes |= {name: (2, config.n_heads, 5, 5) for name in ("scores", "capped", "probs") if name in shapes}
    assert [(name, tap.shape) for name, tap in taps.items()] == list(shapes.items())


def behind(branch: str, placement: str, d: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """What there is between a branch's output and the stream."""
    norm = {f"{branch}_out_norm": d} if placement in ("sandwich", "branch") else {}
    return norm | ({f"{branch}_sum": d} if placement == "post" else {})


def block_norms(config: BlockConfig) -> list[str]:
    """The norms that are not of queries or keys, in data-flow order."""
    weights = [name.removesuffix(".weight") for name in config.parameters() if name.endswith("norm.weight")]
    return [name for name in weights if not name.startswith("attention.")]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_statistics_are_those_of_the_norms(config):
    x, parameters, _ = draw(config, SHAPE)
    out, taps = reference.pre_ln_block(x, parameters, config)
    assert out is taps["out"]
    post = config.placement == "post"
    reads = {"attention_norm": taps["attn_sum"] if post else x, "ffn_norm": taps.get("ffn_sum" if post else "h")}
    reads |= {f"{branch}_norm": taps[branch] for branch in ("attn_out", "ffn_out")}
    makes = {"attention_norm": "h", "ffn_norm": "out"} if post else {}
    for name in block_norms(config):
        rows = reads[name]
        mean, var, rstd = (taps[f"{name}.{statistic}"] for statistic in ("mean", "var", "rstd"))
        spread = var if config.norm == "layer_norm" else var + mean**2
        assert_close(rstd, 1 / np.sqrt(spread + config.eps))
        x_hat = (rows - mean if config.norm == "layer_norm" else rows) * rstd
        weight = parameters[f"{name}.weight"] + config.weight_offset
        assert_close(taps[makes.get(name, name)], x_hat * weight + parameters.get(f"{name}.bias", 0.0))


@pytest.mark.parametrize("past", [1, 4])
@pytest.mark.parametrize("config", CAUSAL.values(), ids=CAUSAL)
def test_with_a_cache_the_rest_is_as_in_one_go(config, past):
    x, parameters, _ = draw(config, SHAPE)
    whole = reference.pre_ln_block(x, parameters, config).out
    _, taps = reference.pre_ln_block(x[:, :past], parameters, config)
    cache = {"k_cache": taps.get("k_rope", taps["k"]), "v_cache": taps["v"]}
    rest = reference.pre_ln_block(x[:, past:], parameters, config, position=past, **cache).out
    assert_close(rest, whole[:, past:])


@pytest.mark.parametrize("config", CAUSAL.values(), ids=CAUSAL)
def test_padding_is_as_if_it_were_not_there(config):
    """In front, where a causal block would see it; its own rows see nothing, and attention adds zeros to them."""
    x, parameters, dout = draw(config, SHAPE)
    padded = np.concatenate([np.full((2, 2, config.d_model), 1e3), x], axis=1)
    dpadded = np.concatenate([np.zeros((2, 2, config.d_model)), dout], axis=1)
    mask = np.arange(7) >= np.full((2, 1), 2)

    alone = reference.pre_ln_block(x, parameters, config, position=2)
    out, taps = reference.pre_ln_block(padded, parameters, config, key_mask=mask)
    assert_close(out[:, 2:], alone.out)
    assert not taps["probs"][:, :, :2].any()
    assert not taps["attn"][:, :2].any()

    expected = reference.pre_ln_block_vjp(dout, x, parameters, config, position=2)
    gradients = reference.pre_ln_block_vjp(dpadded, padded, parameters, config, key_mask=mask)
    assert not gradients["dx"][:, :2].any()
    assert_close(gradients.pop("dx")[:, 2:], expected.pop("dx"))
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name])


@pytest.mark.parametrize("rope", ["half_split", "interleaved"])
def test_the_block_knows_distances_only(rope):
    """Positions are exact, angles are rounded: an ulp of 5000 is 1e-12."""
    config = replace(LLAMA, rope=rope)
    x, parameters, _ = draw(config, SHAPE)
    near, far = (reference.pre_ln_block(x, parameters, config, position=position) for position in (0, 5000))
    np.testing.assert_allclose(far.out, near.out, rtol=0, atol=1e-11)
    assert np.abs(far.intermediates["q_rope"] - near.intermediates["q_rope"]).max() > 0.1


def test_the_two_ropes_differ_by_a_permutation_of_features():
    x, positions = np.random.default_rng(0).normal(size=(2, 5, 4, 8)), np.arange(5.0)
    halves_first = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    interleaved = reference.rope(x, positions, interleaved=True)
    np.testing.assert_array_equal(interleaved[..., halves_first], reference.rope(x[..., halves_first], positions))


def test_an_interleaved_block_is_one_whose_queries_and_keys_were_permuted():
    """As checkpoints are converted: the scores are the same, the heads' features and the matrices' rows are not."""
    x, p, _ = draw(LLAMA, SHAPE)
    halves_first = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    rows = {f"attention.{name}.weight": p[f"attention.{name}.weight"].reshape(-1, 8, LLAMA.d_model) for name in "qk"}
    permuted = p | {name: heads[:, halves_first].reshape(-1, LLAMA.d_model) for name, heads in rows.items()}
    interleaved = reference.pre_ln_block(x, p, replace(LLAMA, rope="interleaved")).out
    assert_close(interleaved, reference.pre_ln_block(x, permuted, LLAMA).out)
    assert np.abs(interleaved - reference.pre_ln_block(x, p, LLAMA).out).max() > 0.1


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_weight_offset_is_that_of_every_norm(config):
    x, p, dout = draw(config, SHAPE)
    offset, config = (replace(config, weight_offset=offset, qk_norm_offset=True) for offset in (1.0, 0.0))
    plus_one = p | {name: weight + 1 for name, weight in p.items() if name.endswith("norm.weight")}
    assert_close(reference.pre_ln_block(x, p, offset).out, reference.pre_ln_block(x, plus_one, config).out)
    expected = reference.pre_ln_block_vjp(dout, x, plus_one, config)
    for name, gradient in reference.pre_ln_block_vjp(dout, x, p, offset).items():
        assert_close(gradient, expected[name])


def test_an_offset_may_be_that_of_the_blocks_own_norms_alone():
    config = replace(LLAMA, qk_norm=True, weight_offset=1.0)
    x, p, _ = draw(config, SHAPE)
    plus_one = p | {name: weight + 1 for name, weight in p.items() if name.endswith(("q_norm.weight", "k_norm.weight"))}
    alone = replace(config, qk_norm_offset=False)
    assert_close(reference.pre_ln_block(x, plus_one, alone).out, reference.pre_ln_block(x, p, config).out)


def test_of_a_window_as_wide_as_the_keys_nothing_is_seen():
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 5, 4, 8))
    whole = reference.attention(q, k, v)
    for window in (5, 9):
        np.testing.assert_array_equal(reference.attention(q, k, v, window=window).probs, whole.probs)
    narrow = reference.attention(q, k, v, window=2).probs
    assert [(row > 0).sum() for row in narrow[0, 0]] == [1, 2, 2, 2, 2]
    np.testing.assert_array_equal(reference.attention(q[:, 3:], k, v, window=2).probs, narrow[:, :, 3:])


def test_a_sink_takes_its_share_of_every_row():
    """As many times the share of a key as its exponential is; what is left is divided as before."""
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 5, 4, 8))
    sink = np.array([-1e9, 0.0, 3.0, 1e9])
    attended = reference.attention(q, k, v, sink)
    without = reference.attention(q, k, v).probs
    exponentials = np.where(np.tri(5, dtype=bool), np.exp(attended.scores), 0).sum(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):
        left = exponentials / (exponentials + np.exp(sink)[:, None, None])
    assert_close(attended.probs, without * left)
    assert not attended.y[..., 3, :].any()


def test_a_high_cap_and_the_usual_scale_change_nothing():
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 5, 4, 8))
    np.testing.assert_allclose(
        reference.attention(q, k, v, softcap=1e9, attention_scale=8**-0.5).y, reference.attention(q, k, v).y, rtol=1e-12
    )
    assert np.abs(reference.attention(100 * q, k, v, softcap=3.0).capped).max() <= 3


@pytest.mark.parametrize("interleaved", [False, True])
def test_of_rotary_features_the_first_are_turned_as_a_head_of_their_own(interleaved):
    x, positions = np.random.default_rng(0).normal(size=(2, 5, 4, 8)), np.arange(5.0)
    y = reference.rope(x, positions, interleaved=interleaved, rotary_features=6)
    np.testing.assert_array_equal(y[..., :6], reference.rope(x[..., :6], positions, interleaved=interleaved))
    np.testing.assert_array_equal(y[..., 6:], x[..., 6:])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)], ids=str)
def test_any_batch_is_the_same_sequences(config, shape):
    """Parameters' gradients are sums over all sequences, so those may differ by their order."""
    x, parameters, dout = draw(config, shape)
    flat_x, flat_dout = (a.reshape(-1, 5, config.d_model) for a in (x, dout))
    values = reference.pre_ln_block(x, parameters, config).intermediates
    values |= reference.pre_ln_block_vjp(dout, x, parameters, config)
    flat = reference.pre_ln_block(flat_x, parameters, config).intermediates
    flat |= reference.pre_ln_block_vjp(flat_dout, flat_x, parameters, config)
    for name, expected in flat.items():
        assert_close(values[name].reshape(expected.shape), expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=str)
def test_of_no_rows_all_gradients_of_parameters_are_zero(config, shape):
    x, parameters, dout = draw(config, shape)
    assert reference.pre_ln_block(x, parameters, config).out.shape == x.shape
    gradients = reference.pre_ln_block_vjp(dout, x, parameters, config)
    assert gradients.pop("dx").shape == x.shape
    for name, p in parameters.items():
        np.testing.assert_array_equal(gradients[f"d{name}"], np.zeros(p.shape), strict=True)


@pytest.mark.parametrize("name", PRESETS)
def test_a_small_block_hides_no_axis(name):
    """No two dimensions are equal, and heads share keys if they share them in the preset, though never all of them one."""
    config, full = CONFIGS[name], PRESETS[name]
    assert len({config.d_model, config.n_heads, config.d_head, config.d_ff}) == 4
    assert (config.n_heads == config.n_kv_heads) == (full.n_heads == full.n_kv_heads)
    assert config.n_kv_heads > 1
    assert (config.n_heads * config.d_head == config.d_model) == (full.n_heads * full.d_head == full.d_model)
