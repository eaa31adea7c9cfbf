"""impl_jax.BatchNorm beside flax.nnx.BatchNorm, step after step, and its function beside the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

import reference
from impl_jax import BatchNorm, batch_norm

ROWS, D = 6, 5
EPS = 1e-3  # far from the default
NOISE = 64 * 2.0**-24


def draw(seed: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_close(actual, expected) -> None:
    """Compare shapes and dtypes, then values, to a share of the largest."""
    assert (actual.shape, actual.dtype) == (expected.shape, jnp.float32)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=NOISE * np.max(np.abs(expected)))


def twins(share: float = 0.1, **arguments) -> tuple[BatchNorm, nnx.BatchNorm]:
    """One of ours, which keeps the variance that flax keeps, and flax's, with equal parameters and running statistics.

    `share` is that of the new.
    """
    ours = BatchNorm(D, eps=EPS, momentum=share, unbiased=False, **arguments)
    flaxs = nnx.BatchNorm(D, epsilon=EPS, momentum=1 - share, use_fast_variance=False, rngs=nnx.Rngs(0), **arguments)
    weight, bias, mean, var = draw(0, D), draw(1, D), draw(2, D), jnp.abs(draw(3, D)) + 0.5
    ours.weight[...], ours.bias[...], ours.mean[...], ours.var[...] = weight, bias, mean, var
    flaxs.scale[...], flaxs.bias[...], flaxs.mean[...], flaxs.var[...] = weight, bias, mean, var
    return ours, flaxs


def step(module, x: Array, dy: Array):
    """y, and the gradients of ⟨y, dy⟩, of the weight and the bias in this order; the running statistics move."""

    def loss(module, x):
        y = module(x)
        return jnp.sum(y * dy), y

    (_, y), (dmodule, dx) = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)(module, x)
    gradients = nnx.to_pure_dict(dmodule)
    return y, dx, gradients.get("weight", gradients.get("scale")), gradients["bias"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("how", [lambda function: function, nnx.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("share", [0.1, 0.7])
@pytest.mark.parametrize("shape", [(ROWS, D), (2, 3, D)], ids=str)
def test_it_trains_and_evaluates_as_flaxs_does(shape, share, how):
    """Three steps, then evaluation: outputs, gradients, and the running statistics."""
    ours, flaxs = twins(share)
    stepping = how(step)
    for i in range(4):
        if i == 3:
            ours.eval()
            flaxs.eval()
        x, dy = draw(10 + i, *shape), draw(20 + i, *shape)
        for actual, expected in zip(stepping(ours, x, dy), stepping(flaxs, x, dy), strict=True):
            assert_close(actual, expected)
        assert_close(ours.mean[...], flaxs.mean[...])
        assert_close(ours.var[...], flaxs.var[...])


@pytest.mark.parametrize("of_the_module", [True, False])
def test_a_calls_own_use_running_average_comes_before_the_modules(of_the_module):
    ours, flaxs = twins(use_running_average=of_the_module)
    x = draw(4, ROWS, D)
    for of_the_call in (None, True, False):
        assert_close(ours(x, use_running_average=of_the_call), flaxs(x, use_running_average=of_the_call))
        assert_close(ours.var[...], flaxs.var[...])


def test_evaluation_moves_nothing():
    ours, _ = twins(use_running_average=True)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(ours)))
    ours(draw(4, ROWS, D))
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(ours)), before)


def test_parameters_are_of_the_dtype_asked_for_and_apart_from_what_runs():
    module = BatchNorm(D, param_dtype=jnp.bfloat16)
    assert nnx.to_pure_dict(nnx.state(module, nnx.Param)).keys() == {"weight", "bias"}
    running = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
    assert running.keys() == {"mean", "var"}
    module(draw(4, ROWS, D).astype(jnp.bfloat16))
    assert {each.dtype for each in jax.tree.leaves(nnx.to_pure_dict(nnx.state(module)))} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("names", [[], ["weight"], ["bias"], ["weight", "bias"]], ids="+".join)
def test_values_and_gradients_are_the_references(names, training):
    x, dy = draw(4, 2, 3, D), draw(5, 2, 3, D)
    parameters = [draw(6, D) if name in names else None for name in ("weight", "bias")]
    given = [x, *parameters, draw(7, D), jnp.abs(draw(8, D)) + 0.5]
    exact = [None if each is None else np.asarray(each, np.float64) for each in given]
    settings = {"eps": EPS, "training": training}
    made, pullback = jax.vjp(lambda *given: batch_norm(*given, **settings), *given)
    expected = reference.batch_norm(*exact, **settings)
    if training:
        y, mean, var = made
        assert_close(mean, expected.running_mean)
        assert_close(var, expected.running_var)
        gradients = pullback((dy, jnp.ones(D), jnp.ones(D)))  # what runs is no function of x
    else:
        y, gradients = made, pullback(dy)
    assert_close(y, expected.y)
    vjp = reference.batch_norm_vjp(np.asarray(dy, np.float64), *exact, **settings)
    for name, gradient in zip(("dx", "dweight", "dbias"), gradients, strict=False):
        assert (gradient is None) == (getattr(vjp, name) is None)
        if gradient is not None:
            assert_close(gradient, getattr(vjp, name))


@pytest.mark.parametrize(("rows", "unbiased"), [(1, True), (0, True), (0, False)])
def test_too_few_rows_to_train_on_are_refused(rows, unbiased):
    with pytest.raises(ValueError, match=f"{rows} rows are too few to train on with unbiased={unbiased}"):
        BatchNorm(D, unbiased=unbiased)(jnp.ones((rows, D)))


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_what_would_broadcast_or_truncate_is_refused(name):
    given = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), jnp.ones(D)) | {name: jnp.ones(1)}
    with pytest.raises(ValueError, match=rf"{name} has shape \[1\]"):
        batch_norm(jnp.ones((ROWS, D)), **given)
    with pytest.raises(TypeError, match="x is int32"):
        batch_norm(jnp.ones((ROWS, D), jnp.int32), **given)
