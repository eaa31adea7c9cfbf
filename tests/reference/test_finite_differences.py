"""The gradients against central differences of the norms, and what is known of them exactly."""

import math

import numpy as np
import pytest

import reference

Array = np.ndarray

# A step h leaves h²/6 of a third derivative, of the order of rstd³·|dy·weight|, and rounding, eps·|y·dy| / h. They
# balance at h = eps^(1/3), where both are some h²: rows below have a deviation of about one, and the largest error
# is 4 h². A gradient with a term missing is off by 1e-2 or more, which is 1e8 h².
H = 2.0**-17
TOLERANCE = 20 * H**2

SHAPES = [(7,), (3, 5), (2, 3, 4), (3, 1, 2, 5)]
PARAMETERS = {"rms_norm": [[], ["weight"]], "layer_norm": [[], ["weight"], ["bias"], ["weight", "bias"]]}
CASES = [(op, parameters) for op, choices in PARAMETERS.items() for parameters in choices]
SCALARS = [{"eps": 1e-5}, {"eps": 0.5, "weight_offset": 1.0}]


def draw(shape: tuple[int, ...], parameters: list[str]) -> tuple[Array, dict[str, Array]]:
    """Draw dy, and x with its parameters: none of them ones, for those annihilate most of a gradient."""
    rng = np.random.default_rng(shape)
    dy, x = rng.normal(size=(2, *shape))
    return dy, {"x": 1.5 * x + 0.7} | {name: rng.normal(size=shape[-1:]) for name in parameters}


def central_difference(op: str, dy: Array, arguments: dict[str, Array], name: str, **scalars: float) -> Array:
    """Differentiate ⟨y, dy⟩ along every element of one argument."""

    def y(index: tuple[int, ...], step: float) -> Array:
        moved = arguments[name].copy()
        moved[index] += step
        return getattr(reference, op)(**arguments | {name: moved}, **scalars).y

    difference = np.empty_like(arguments[name])
    for index in np.ndindex(difference.shape):
        difference[index] = math.fsum(((y(index, H) - y(index, -H)) * dy).ravel()) / (2 * H)
    return difference


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("op", "parameters"), CASES)
@pytest.mark.parametrize("scalars", SCALARS, ids=["no offset", "offset 1"])
def test_gradients_are_central_differences(op, parameters, shape, scalars):
    dy, arguments = draw(shape, parameters)
    gradients = getattr(reference, f"{op}_vjp")(dy, **arguments, **scalars)._asdict()
    assert {name for name, gradient in gradients.items() if gradient is not None} == {f"d{name}" for name in arguments}
    for name in arguments:
        difference = central_difference(op, dy, arguments, name, **scalars)
        np.testing.assert_allclose(gradients[f"d{name}"], difference, rtol=0, atol=TOLERANCE, strict=True)


def test_layer_norm_of_one_feature_has_no_gradient():
    """A single feature is its own mean: x_hat is zero wherever x moves."""
    dy, arguments = draw((6, 1), ["weight", "bias"])
    gradients = reference.layer_norm_vjp(dy, **arguments, eps=1e-5)
    assert not gradients.dx.any()
    assert not gradients.dweight.any()
    assert gradients.dbias == pytest.approx(dy.sum())


@pytest.mark.parametrize("d", [2, 5, 64])
def test_layer_norm_annihilates_a_dy_of_ones(d):
    """The outputs of a row add up to zero whatever x is; only the rounding of that sum is left."""
    x = np.random.default_rng(d).normal(size=(4, d))
    dx = reference.layer_norm_vjp(np.ones_like(x), x, np.ones(d), eps=1e-5).dx
    _, _, rstd, x_hat = reference.layer_norm(x, eps=1e-5)
    assert np.all(np.abs(dx) <= 4 * np.finfo(np.float64).eps * rstd * np.abs(x_hat))


def test_dx_keeps_the_symmetries_of_the_norms():
    """A row moved along itself changes only its share of eps; moved along the ones it leaves LayerNorm as it is."""
    eps = 0.25
    dy, arguments = draw((3, 5), ["weight"])
    g = dy * arguments["weight"]

    forward, dx = reference.rms_norm(**arguments, eps=eps), reference.rms_norm_vjp(dy, **arguments, eps=eps).dx
    share = eps * forward.rstd[:, 0] ** 2 * np.sum(g * forward.x_hat, axis=1)
    np.testing.assert_allclose(np.sum(dx * arguments["x"], axis=1), share, rtol=1e-13)

    dx = reference.layer_norm_vjp(dy, **arguments, eps=eps).dx
    np.testing.assert_allclose(dx.sum(axis=1), 0, atol=1e-14)


@pytest.mark.parametrize(("op", "parameters"), CASES)
def test_gradients_are_linear_in_dy(op, parameters):
    """Doubling is exact in binary; a sum is as good as its rounding."""
    dy, arguments = draw((2, 3, 4), parameters)
    other = np.flip(dy)

    def vjp(dy: Array) -> list[Array]:
        gradients = getattr(reference, f"{op}_vjp")(dy, **arguments, eps=1e-5)
        return [gradient for gradient in gradients if gradient is not None]

    for gradient, doubled in zip(vjp(dy), vjp(2 * dy), strict=True):
        np.testing.assert_array_equal(doubled, 2 * gradient, strict=True)
    for gradient, more, both in zip(vjp(dy), vjp(other), vjp(dy + other), strict=True):
        np.testing.assert_allclose(both, gradient + more, rtol=0, atol=1e-13)


@pytest.mark.parametrize("op", PARAMETERS)
def test_rows_are_independent(op):
    """A row alone gives the very bits that it gives among others; dweight and dbias add the rows up."""
    dy, arguments = draw((2, 3, 4), PARAMETERS[op][-1])
    norm, vjp, x = getattr(reference, op), getattr(reference, f"{op}_vjp"), arguments.pop("x")
    rows = list(np.ndindex(x.shape[:-1]))

    among = norm(x, **arguments, eps=1e-5)
    for row in rows:
        for field_alone, field in zip(norm(x[row], **arguments, eps=1e-5), among, strict=True):
            np.testing.assert_array_equal(field_alone, field[row], strict=True)

    dx, *sums = vjp(dy, x, **arguments, eps=1e-5)
    alone = [vjp(dy[row], x[row], **arguments, eps=1e-5) for row in rows]
    np.testing.assert_array_equal(np.reshape([gradients.dx for gradients in alone], dx.shape), dx, strict=True)
    for total, *shares in zip(sums, *(gradients[1:] for gradients in alone), strict=True):
        np.testing.assert_allclose(np.sum(shares, axis=0), total, rtol=0, atol=1e-14, strict=True)
