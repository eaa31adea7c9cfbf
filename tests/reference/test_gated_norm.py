"""A norm and a gate in one op, and statistics of groups: what they are made of, their gradients, fifty digits, refusals."""

import re

import numpy as np
import pytest
from mp_norms import mp, mpf, normalise, to_mp

import reference

Array = np.ndarray

H = 2.0**-17  # as in test_finite_differences
STEP = mpf("1e-30")  # leaves fifty digits of a hundred and twenty
ULPS = 64  # of an output's largest value, of which dx has cancelled the most

how = pytest.mark.parametrize(
    "how",
    [
        {"norm_before_gate": first, "activation": activation, "group_size": group}
        for first in (True, False)
        for activation in ("silu", "sigmoid")
        for group in (None, 3)
    ],
    ids=lambda how: "-".join(map(str, how.values())),
)
each_norm = pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])


def draw() -> tuple[Array, dict[str, Array]]:
    """dy, and the arguments; gates of both signs, large and small."""
    rng = np.random.default_rng(0)
    dy, x = rng.normal(size=(2, 2, 6))
    return dy, {"x": x, "gate": 4 * rng.normal(size=(2, 6)), "weight": rng.normal(size=6)}


def sigmoid(g: mpf) -> mpf:
    return 1 / (1 + mp.exp(-g))


def definition(
    x: Array, gate: Array, weight: Array, *, norm_before_gate: bool, activation: str, group_size: int | None
) -> Array:
    """y at fifty digits, as it is defined, of arrays of mpf."""
    a = np.vectorize(lambda g: g * sigmoid(g) if activation == "silu" else sigmoid(g), otypes=[object])(gate)
    s = x if norm_before_gate else x * a
    size = group_size or x.shape[-1]
    groups = [normalise(list(group), mpf(1e-5), centre=False).x_hat for group in s.reshape(-1, size)]
    z = np.array(groups, dtype=object).reshape(x.shape) * weight
    return z * a if norm_before_gate else z


@how
def test_outputs_and_gradients_have_float64s_digits(how):
    """Against the definition, and differences of it, at fifty digits."""
    dy, arguments = draw()
    exact = {name: to_mp(argument) for name, argument in arguments.items()}
    golden = reference.gated_rms_norm(**arguments, eps=1e-5, **how)
    gradients = reference.gated_rms_norm_vjp(dy, **arguments, eps=1e-5, **how)._asdict()
    assert_close(golden.y, definition(**exact, **how))
    for name, argument in exact.items():
        difference = np.empty_like(argument)
        for index in np.ndindex(argument.shape):
            ends = []
            for step in (STEP, -STEP):
                moved = argument.copy()
                moved[index] += step
                ends.append((definition(**exact | {name: moved}, **how) * to_mp(dy)).sum())
            difference[index] = (ends[0] - ends[1]) / (2 * STEP)
        assert_close(gradients[f"d{name}"], difference)


def assert_close(golden: Array, exact: Array) -> None:
    ulp = np.spacing(float(np.max(np.abs(exact))))
    assert float(np.max(np.abs(to_mp(golden) - exact))) <= ULPS * ulp


@how
def test_gradients_are_central_differences(how):
    dy, arguments = draw()
    gradients = reference.gated_rms_norm_vjp(dy, **arguments, eps=1e-5, **how)._asdict()
    for name, argument in arguments.items():
        difference = np.empty_like(argument)
        for index in np.ndindex(argument.shape):
            ends = []
            for step in (H, -H):
                moved = argument.copy()
                moved[index] += step
                ends.append(np.sum(reference.gated_rms_norm(**arguments | {name: moved}, eps=1e-5, **how).y * dy))
            difference[index] = (ends[0] - ends[1]) / (2 * H)
        np.testing.assert_allclose(gradients[f"d{name}"], difference, rtol=0, atol=1e-7)


def test_a_gate_may_be_as_large_as_it_likes():
    """Neither exponential overflows: what is asked for is finite."""
    gate = np.array([[-1e4, -750.0, 0.0, 750.0, 1e4]])
    for activation, expected in {"silu": [0, 0, 0, 750, 1e4], "sigmoid": [0, 0, 0.5, 1, 1]}.items():
        a, slope = getattr(reference.gated_norm, activation)(gate)
        np.testing.assert_allclose(a, [expected], atol=1e-300)
        assert np.all(np.isfinite(slope))


@each_norm
def test_a_grouped_norm_is_the_plain_one_of_every_group(op):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 3, 12))
    weight = rng.normal(size=12)
    norm, vjp = getattr(reference, op), getattr(reference, f"{op}_vjp")
    grouped, gradients = norm(x, weight, eps=1e-5, group_size=4), vjp(dy, x, weight, eps=1e-5, group_size=4)
    for number in range(3):
        of_group = np.s_[..., 4 * number : 4 * number + 4]
        alone = norm(x[of_group], weight[of_group], eps=1e-5)
        np.testing.assert_array_equal(grouped.y[of_group], alone.y)
        np.testing.assert_array_equal(grouped.rstd[..., number : number + 1], alone.rstd)
        expected = vjp(dy[of_group], x[of_group], weight[of_group], eps=1e-5)
        np.testing.assert_array_equal(gradients.dx[of_group], expected.dx)
        np.testing.assert_array_equal(gradients.dweight[of_group], expected.dweight)
    np.testing.assert_array_equal(norm(x, weight, eps=1e-5, group_size=12).y, norm(x, weight, eps=1e-5).y)


@each_norm
@pytest.mark.parametrize("group_size", [0, 5, 24, -4])
def test_a_group_must_divide_the_row(op, group_size):
    message = f"{op}: group_size is {group_size}; with x of shape (2, 12) it must divide 12"
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(reference, op)(np.ones((2, 12)), eps=1e-5, group_size=group_size)


def test_what_is_no_gate_is_refused():
    _, arguments = draw()
    how = {"eps": 1e-5, "norm_before_gate": True, "activation": "silu"}
    with pytest.raises(ValueError, match=re.escape("gate has shape (6,); with x of shape (2, 6) it must be (2, 6)")):
        reference.gated_rms_norm(**arguments | {"gate": np.ones(6)}, **how)
    with pytest.raises(ValueError, match="gate is float32; the golden computes in float64 only"):
        reference.gated_rms_norm(**arguments | {"gate": np.ones((2, 6), np.float32)}, **how)
    with pytest.raises(ValueError, match="gated_rms_norm: activation is 'relu'; it must be one of silu, sigmoid"):
        reference.gated_rms_norm(**arguments, **how | {"activation": "relu"})
    with pytest.raises(ValueError, match=re.escape("dy has shape (1, 6)")):
        reference.gated_rms_norm_vjp(np.ones((1, 6)), **arguments, **how)
