"""Rope, softmax, SwiGLU and GELU against fifty digits, where they are hard: how many float64 ulps of its size each is off."""

import mp_ops
import numpy as np
import pytest
from mp_norms import Exact

import reference
from reference.attention import soft_cap, soft_cap_vjp, softmax, softmax_vjp, with_sink

Array = np.ndarray

# The largest error of random draws, rounded up, and one more: an exponential is one ulp off, and each op after it a half.
ROPE = {"y": 3}
SOFTMAX = {"probs": 4, "dscores": 2}
SOFT_CAP = {"capped": 3, "dscores": 4}
SWIGLU = {"y": 4, "dgate": 5, "dup": 4}
GELU = {"y": 3, "dx": 3}

# The tails, where a share is lost that is formed as one minus another; where a slope is zero; and no particular place.
NORMAL = np.random.default_rng(0).normal(size=(4, 24))
ARGUMENTS = np.concatenate(
    ([0.0, 1e-9, -1e-9, 0.5, 2.7, -2.7, -0.7518, -1.2785, 5, -5, 8, -8, 30, -30, 90, -90], 3 * NORMAL[0])
)
SCORES = {
    "benign": NORMAL[1],
    "hot": 80 * np.sign(NORMAL[1]),
    "hot_mixed": 80 * NORMAL[1] / np.abs(NORMAL[1]).max(),
    "one_hot": np.where(np.arange(24) == 7, 80.0, NORMAL[1]),
    "shifted": NORMAL[1] + 1e6,
    "beyond_exp": NORMAL[1] * 1e4,
}


def assert_within(bounds: dict[str, float], exact: dict[str, Exact], golden: dict[str, Array]) -> None:
    assert bounds.keys() == exact.keys() == golden.keys()
    errors = {name: exact[name].ulps_off(golden[name]) for name in bounds}
    assert {name: error for name, error in errors.items() if not error <= bounds[name]} == {}


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("d_head", [2, 24, 64])
@pytest.mark.parametrize("base", [1e4, 1e6])
@pytest.mark.parametrize("vjp", [False, True])
@pytest.mark.parametrize("rotary_features", [None, 2])
def test_rope(base, d_head, interleaved, vjp, rotary_features):
    positions = np.array([0.0, 1.0, 4999.0, 131_071.0])
    x = np.random.default_rng(d_head).normal(size=(4, 1, d_head))
    op = reference.rope_vjp if vjp else reference.rope
    how = {"base": base, "interleaved": interleaved, "rotary_features": rotary_features}
    exact = mp_ops.rope(x, -positions if vjp else positions, **how)
    assert_within(ROPE, {"y": exact}, {"y": op(x, positions, **how)})


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_softmax(scores):
    probs = softmax(scores[None, None], np.array([[[True]]]))[0, 0]
    dscores = softmax_vjp(NORMAL[2], probs)
    assert_within(SOFTMAX, mp_ops.softmax_and_vjp(scores, NORMAL[2]), {"probs": probs, "dscores": dscores})


@pytest.mark.parametrize("sink", [-80.0, 0.5, 80.0])
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_a_softmax_with_a_sink(scores, sink):
    """The sink is one more key, whose probability nobody asks for: its cotangent is zero."""
    probs = softmax(*with_sink(scores[None, None, None], np.ones((1, 1, 1, 24), bool), np.array([sink])))[0, 0, 0]
    dprobs = np.append(NORMAL[2], 0.0)
    exact = mp_ops.softmax_and_vjp(np.append(scores, sink), dprobs)
    assert_within(SOFTMAX, exact, {"probs": probs, "dscores": softmax_vjp(dprobs, probs)})


@pytest.mark.parametrize("cap", [1.5, 50.0])
def test_soft_cap(cap):
    dcapped = np.resize(NORMAL[2], ARGUMENTS.shape)
    golden = {"capped": soft_cap(ARGUMENTS, cap), "dscores": soft_cap_vjp(dcapped, ARGUMENTS, cap)}
    assert_within(SOFT_CAP, mp_ops.soft_cap_and_vjp(ARGUMENTS, dcapped, cap), golden)


def test_swiglu():
    up, dy = np.resize(NORMAL[1], ARGUMENTS.shape), np.resize(NORMAL[2], ARGUMENTS.shape)
    dgate, dup = reference.swiglu_vjp(dy, ARGUMENTS, up)
    golden = {"y": reference.swiglu(ARGUMENTS, up), "dgate": dgate, "dup": dup}
    assert_within(SWIGLU, mp_ops.swiglu_and_vjp(ARGUMENTS, up, dy), golden)


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu(approximate):
    dy = np.resize(NORMAL[2], ARGUMENTS.shape)
    golden = {
        "y": reference.gelu(ARGUMENTS, approximate=approximate),
        "dx": reference.gelu_vjp(dy, ARGUMENTS, approximate=approximate),
    }
    assert_within(GELU, mp_ops.gelu_and_vjp(ARGUMENTS, dy, approximate=approximate), golden)


def test_of_shares_that_vanish_nothing_is_left():
    """Far below zero all three are zeros, not NaN, and far above they are the identity."""
    x = np.array([-1e100, -1e4, 1e4, 1e100])
    ones = np.ones_like(x)
    for y, (dx, *_) in [
        (reference.swiglu(x, ones), reference.swiglu_vjp(ones, x, ones)),
        (reference.gelu(x), [reference.gelu_vjp(ones, x)]),
        (reference.gelu(x, approximate=True), [reference.gelu_vjp(ones, x, approximate=True)]),
    ]:
        np.testing.assert_array_equal(y, np.maximum(x, 0))
        np.testing.assert_array_equal(dx, x > 0)
