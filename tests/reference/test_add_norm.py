"""A residual and a norm in one op: what it is made of, its gradients against central differences, and what it refuses."""

import math

import numpy as np
import pytest

import reference

Array = np.ndarray

# As in test_finite_differences: a step, and what it leaves of a third derivative and of rounding.
H = 2.0**-17
TOLERANCE = 20 * H**2

PARAMETERS = {"add_rms_norm": ["weight"], "add_layer_norm": ["weight", "bias"]}
each_op = pytest.mark.parametrize("op", PARAMETERS)


def draw(op: str, shape: tuple[int, ...] = (3, 5)) -> tuple[Array, Array, dict[str, Array]]:
    """dy, dresidual_out, and the arguments."""
    rng = np.random.default_rng(0)
    dy, dresidual_out, x, residual = rng.normal(size=(4, *shape))
    return dy, dresidual_out, {"x": x, "residual": residual} | {name: rng.normal(size=shape[-1:]) for name in PARAMETERS[op]}


@each_op
def test_it_is_the_norm_of_the_sum_and_the_sum(op):
    *_, arguments = draw(op)
    outputs = getattr(reference, op)(**arguments, eps=1e-5)
    s = arguments.pop("x") + arguments.pop("residual")
    np.testing.assert_array_equal(outputs.residual_out, s)
    np.testing.assert_array_equal(outputs.y, getattr(reference, op.removeprefix("add_"))(s, **arguments, eps=1e-5).y)


@each_op
@pytest.mark.parametrize("unread", ["", "dy", "dresidual_out"])
def test_gradients_are_central_differences(op, unread):
    """Of both outputs, or of one where nothing reads the other."""
    dy, dresidual_out, arguments = draw(op)
    cotangents = {"dy": dy, "dresidual_out": dresidual_out} | ({unread: None} if unread else {})
    gradients = getattr(reference, f"{op}_vjp")(**cotangents, **arguments, eps=1e-5, weight_offset=1.0)._asdict()

    def product(name: str, index: tuple[int, ...], step: float) -> float:
        moved = arguments[name].copy()
        moved[index] += step
        outputs = getattr(reference, op)(**arguments | {name: moved}, eps=1e-5, weight_offset=1.0)
        pairs = zip(outputs, cotangents.values(), strict=True)
        return math.fsum(float(np.sum(y * d)) for y, d in pairs if d is not None)

    for name, argument in arguments.items():
        difference = np.empty_like(argument)
        for index in np.ndindex(difference.shape):
            difference[index] = (product(name, index, H) - product(name, index, -H)) / (2 * H)
        np.testing.assert_allclose(gradients[f"d{name}"], difference, rtol=0, atol=20 * TOLERANCE, strict=True)


@each_op
def test_a_sum_that_is_rounded_first_is_what_the_norm_reads(op):
    *_, arguments = draw(op)
    outputs = getattr(reference, op)(**arguments, eps=1e-5, round_sum=np.rint)
    s = np.rint(arguments.pop("x") + arguments.pop("residual"))
    np.testing.assert_array_equal(outputs.y, getattr(reference, op.removeprefix("add_"))(s, **arguments, eps=1e-5).y)


@each_op
def test_what_is_added_must_be_like_x(op):
    *_, arguments = draw(op)
    with pytest.raises(ValueError, match=r"residual has shape \(2, 5\); with x of shape \(3, 5\) it must be \(3, 5\)"):
        getattr(reference, op)(**arguments | {"residual": np.zeros((2, 5))}, eps=1e-5)
    with pytest.raises(ValueError, match="residual is float32; the golden computes in float64 only"):
        getattr(reference, op)(**arguments | {"residual": np.zeros((3, 5), np.float32)}, eps=1e-5)
    with pytest.raises(ValueError, match="dresidual_out has shape"):
        getattr(reference, f"{op}_vjp")(None, np.zeros((1, 5)), **arguments, eps=1e-5)
