"""BatchNorm's golden against PyTorch in float64, ONNX's own cases, LayerNorm turned, and what it refuses."""

import re

import numpy as np
import pytest
import torch
from onnx.backend.test.case.node import batch_normalization  # noqa: F401 - importing it makes the cases
from onnx_cases import cases_of

import reference

Array = np.ndarray

SHAPES = [(2, 33), (4, 5, 3), (2, 3, 4, 7)]
PARAMETERS = [[], ["weight"], ["bias"], ["weight", "bias"]]


def draw(shape: tuple[int, ...], parameters: list[str] | None = None) -> tuple[Array, dict[str, Array | None]]:
    """Draw dy, and x with its parameters and running statistics."""
    rng = np.random.default_rng(shape)
    dy, x = rng.normal(size=(2, *shape))
    wanted = ["weight", "bias"] if parameters is None else parameters
    arguments = {name: rng.normal(size=shape[-1]) if name in wanted else None for name in ("weight", "bias")}
    running = {"running_mean": rng.normal(size=shape[-1]), "running_var": rng.uniform(0.5, 2, size=shape[-1])}
    return dy, {"x": 1.5 * x + 0.7} | arguments | running


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_torchs(shape, parameters, training):
    dy, given = draw(shape, parameters)
    golden = reference.batch_norm(**given, eps=1e-3, training=training, momentum=0.3)
    gradients = reference.batch_norm_vjp(dy, **given, eps=1e-3, training=training)

    tensors = {name: None if a is None else torch.tensor(a) for name, a in given.items()}
    leaves = {name: tensors[name].requires_grad_() for name in ("x", *parameters)}
    channels_first = tensors["x"].movedim(-1, 1)
    names = ("running_mean", "running_var", "weight", "bias")
    y = torch.nn.functional.batch_norm(channels_first, *(tensors[name] for name in names), training, 0.3, 1e-3).movedim(1, -1)
    (y * torch.tensor(dy)).sum().backward()

    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(golden.y, y.detach(), **close)
    np.testing.assert_allclose(golden.running_mean, tensors["running_mean"], **close)
    np.testing.assert_allclose(golden.running_var, tensors["running_var"], **close)
    for name in ("x", "weight", "bias"):
        gradient = getattr(gradients, f"d{name}")
        assert (gradient is None) == (name not in leaves)
        if gradient is not None:
            np.testing.assert_allclose(gradient, leaves[name].grad, **close)


@pytest.mark.parametrize("case", cases_of("BatchNormalization"), ids=lambda case: case.name)
def test_it_is_onnxs(case):
    """ONNX has the channels on axis 1, momentum for the share of the old, and keeps the biased variance."""
    x, weight, bias, mean, var = (a.astype(np.float64) for a in case.inputs.values())
    attributes = {"epsilon": 1e-5, "momentum": 0.9, "training_mode": 0} | case.attributes
    made = reference.batch_norm(
        np.moveaxis(x, 1, -1),
        *(weight, bias, mean, var),
        eps=attributes["epsilon"],
        training=bool(attributes["training_mode"]),
        momentum=1 - attributes["momentum"],
        unbiased=False,
    )
    golden = [np.moveaxis(made.y, -1, 1), made.running_mean, made.running_var]
    for expected, value in zip(case.outputs.values(), golden, strict=False):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def test_onnx_has_cases_of_both_modes():
    modes = {case.attributes.get("training_mode", 0) for case in cases_of("BatchNormalization")}
    assert modes == {0, 1}


def test_in_training_it_is_layer_norm_turned():
    """Without parameters: the columns of x are the rows of its transpose."""
    dy, given = draw((6, 33), [])
    turned = reference.layer_norm(given["x"].T.copy(), eps=1e-3)
    golden = reference.batch_norm(**given, eps=1e-3, training=True)
    np.testing.assert_allclose(golden.y, turned.y.T, rtol=1e-12)
    gradients = reference.batch_norm_vjp(dy, **given, eps=1e-3, training=True)
    dx = reference.layer_norm_vjp(dy.T.copy(), given["x"].T.copy(), eps=1e-3).dx
    np.testing.assert_allclose(gradients.dx, dx.T, rtol=1e-9, atol=1e-12)


def test_a_batch_moves_the_running_statistics_by_its_share():
    _, given = draw((6, 3))
    values = [reference.batch_norm(**given, eps=1e-3, training=True, momentum=m) for m in (0.0, 0.5, 1.0)]
    rows = given["x"]
    np.testing.assert_array_equal(values[0].running_mean, given["running_mean"])
    np.testing.assert_allclose(values[1].running_mean, (given["running_mean"] + rows.mean(axis=0)) / 2)
    np.testing.assert_allclose(values[2].running_var, rows.var(axis=0, ddof=1))
    biased = reference.batch_norm(**given, eps=1e-3, training=True, momentum=1.0, unbiased=False)
    np.testing.assert_allclose(biased.running_var, rows.var(axis=0))


def test_what_was_kept_by_training_is_evaluated_by():
    """After a batch with momentum 1 and the biased variance, evaluation of that batch is its training."""
    _, given = draw((6, 3))
    trained = reference.batch_norm(**given, eps=1e-3, training=True, momentum=1.0, unbiased=False)
    kept = {"running_mean": trained.running_mean, "running_var": trained.running_var}
    np.testing.assert_allclose(reference.batch_norm(**given | kept, eps=1e-3, training=False).y, trained.y, rtol=1e-12)


def test_nothing_given_is_changed():
    dy, given = draw((6, 3))
    before = {name: a.copy() for name, a in given.items()}
    reference.batch_norm(**given, eps=1e-3, training=True)
    reference.batch_norm_vjp(dy, **given, eps=1e-3, training=True)
    for name, a in given.items():
        np.testing.assert_array_equal(a, before[name])


@pytest.mark.parametrize(("rows", "unbiased"), [(0, False), (0, True), (1, True)])
def test_too_small_a_batch_is_not_trained_on(rows, unbiased):
    _, given = draw((6, 3))
    given["x"] = given["x"][:rows]
    wanted = "two rows, for an unbiased variance" if unbiased else "a row"
    message = f"batch_norm: x has shape ({rows}, 3); to train on, it must hold at least {wanted}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        reference.batch_norm(**given, eps=1e-3, training=True, unbiased=unbiased)
    assert reference.batch_norm(**given, eps=1e-3, training=False).y.shape == (rows, 3)


@pytest.mark.parametrize("op", ["batch_norm", "batch_norm_vjp"])
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_an_array_of_another_shape_or_dtype_is_refused(op, name):
    dy, given = draw((4, 5, 3))
    first = [dy] if op == "batch_norm_vjp" else []
    for wrong, message in [
        (np.zeros(5), f"{op}: {name} has shape (5,); with x of shape (4, 5, 3) it must be (3,)"),
        (np.zeros(3, np.float32), f"{op}: {name} is float32; the golden computes in float64 only"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            getattr(reference, op)(*first, **given | {name: wrong}, eps=1e-3, training=True)
