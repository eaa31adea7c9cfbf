"""impl_jax as JAX code: pure functions under every transform, nnx modules, and one rounding that XLA cannot drop.

What the numbers are worth is asked elsewhere, by the kit itself: see test_ports_conform.
"""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax import Array

import reference
from impl_jax import LayerNorm, RMSNorm, layer_norm, rms_norm
from impl_jax.rows import round_to

OPS = {"rms_norm": rms_norm, "layer_norm": layer_norm}
PARAMETERS = {"rms_norm": [[], ["weight"]], "layer_norm": [[], ["weight"], ["bias"], ["weight", "bias"]]}
CALLS = [(op, names) for op, choices in PARAMETERS.items() for names in choices]
CLASSES = (RMSNorm, LayerNorm)
SHAPES = [(9,), (0, 9), (3, 9), (2, 3, 2, 9)]
SCALARS = {"eps": 1e-3, "weight_offset": 1.0}  # far from every default

# Of an array's largest value: some dozens of roundings.
NOISE = {"float32": 64 * 2.0**-24, "float64": 64 * 2.0**-53}


@pytest.fixture
def _x64():
    with jax.enable_x64(True):
        yield


def draw(names: list[str], *shape: int, dtype: str = "float32") -> dict[str, Array]:
    """Draw x and the parameters named."""
    rng = np.random.default_rng(0)
    shapes = {"x": shape} | {name: shape[-1:] for name in names}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def draw_like(x: Array) -> Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=x.shape), x.dtype)


def plain(x: Array, weight: Array | None = None, bias: Array | None = None, *, centre: bool, eps: float, weight_offset: float):
    """The definition, its derivatives left to autodiff."""
    x = x - jnp.mean(x, axis=-1, keepdims=True) if centre else x
    y = x / jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    y = y if weight is None else y * (weight + weight_offset)
    return y if bias is None else y + bias


def assert_close(actual: Array, expected: Array, dtype: str = "float32") -> None:
    """Compare dtypes and shapes, then values, to a share of the largest."""
    assert (actual.shape, actual.dtype) == (expected.shape, dtype)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=NOISE[dtype] * np.max(np.abs(expected), initial=0))


@pytest.mark.usefixtures("_x64")
@pytest.mark.parametrize("dtype", NOISE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("op", "names"), CALLS)
def test_values_and_gradients_are_the_references(op, names, shape, dtype):
    inputs = draw(names, *shape, dtype=dtype)
    dy = draw_like(inputs["x"])
    y, pullback = jax.vjp(lambda inputs: OPS[op](**inputs, **SCALARS), inputs)
    [gradients] = pullback(dy)

    exact = {name: np.asarray(array, np.float64) for name, array in inputs.items()}
    assert_close(y, getattr(reference, op)(**exact, **SCALARS).y, dtype)
    expected = getattr(reference, f"{op}_vjp")(np.asarray(dy, np.float64), **exact, **SCALARS)
    for name, gradient in gradients.items():
        assert_close(gradient, getattr(expected, f"d{name}"), dtype)


@pytest.mark.usefixtures("_x64")
@pytest.mark.parametrize(("op", "names"), CALLS)
def test_derivatives_are_those_of_the_plain_formula(op, names):
    """The first, and the second: reverse over reverse, forward over reverse."""
    inputs = draw(names, 3, 9, dtype="float64")
    tangent = jax.tree.map(draw_like, inputs)

    def derivatives(function):
        def gradient(inputs):
            return jax.grad(lambda inputs: jnp.sum(function(**inputs, **SCALARS) ** 3))(inputs)

        def its_square(inputs):
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient(inputs)))

        return gradient(inputs), jax.grad(its_square)(inputs), jax.jvp(gradient, (inputs,), (tangent,))[1]

    ours, autodiffs = derivatives(OPS[op]), derivatives(partial(plain, centre=op == "layer_norm"))
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(autodiffs), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * np.max(np.abs(expected)))


@pytest.mark.parametrize(("op", "names"), CALLS)
def test_a_parameter_that_is_none_has_no_gradient(op, names):
    given = draw(names, 3, 9)
    inputs = [given.get(name) for name in ("x", *PARAMETERS[op][-1])]
    y, pullback = jax.vjp(OPS[op], *inputs)
    for tensor, gradient in zip(inputs, pullback(y), strict=True):
        assert (gradient is None) == (tensor is None)


@pytest.mark.parametrize("op", OPS)
def test_scalars_may_be_python_numbers_or_traced(op):
    """Traced, a new value needs no new program."""
    inputs = draw(PARAMETERS[op][-1], 3, 9)
    norm = jax.jit(OPS[op])
    for scalars in ({"eps": 1e-5, "weight_offset": 0.0}, {"eps": 0.5, "weight_offset": 1.0}, {"eps": 1, "weight_offset": 2}):
        traced = {name: float(value) for name, value in scalars.items()}
        assert_close(norm(**inputs, **traced), OPS[op](**inputs, **scalars))
    assert norm._cache_size() == 1


@pytest.mark.parametrize("mapped", [["x"], ["weight"], ["x", "weight"]], ids="+".join)
@pytest.mark.parametrize("op", OPS)
def test_vmap_is_a_loop(op, mapped):
    """With the gradients: no row's dweight may reach another's."""
    batch = {"x": draw([], 4, 2, 9)["x"], "weight": draw([], 4, 9)["x"]}
    given = {name: tensor if name in mapped else tensor[0] for name, tensor in batch.items()}

    def value_and_gradients(x, weight):
        y, pullback = jax.vjp(OPS[op], x, weight)
        return y, *pullback(jnp.sin(y))

    axes = tuple(0 if name in mapped else None for name in given)
    together = jax.vmap(value_and_gradients, in_axes=axes)(*given.values())
    rows = [value_and_gradients(*(tensor[i] if name in mapped else tensor for name, tensor in given.items())) for i in range(4)]
    for actual, looped in zip(together, zip(*rows, strict=True), strict=True):
        assert_close(actual, jnp.stack(looped))


@pytest.mark.parametrize("norm", [*OPS.values(), *(lambda x, order, cls=cls: cls(9, order=order)(x) for cls in CLASSES)])
def test_an_unknown_order_is_refused(norm):
    with pytest.raises(ValueError, match="order is 'cast'; it must be 'cast_then_scale' or 'scale_then_cast'"):
        norm(jnp.ones((3, 9)), order="cast")


def randomise(module: nnx.Module) -> nnx.Module:
    """Draw every parameter: ones and zeros hide mistakes."""
    rng = np.random.default_rng(2)
    nnx.update(module, jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), nnx.state(module)))
    return module


MODULES = [
    (RMSNorm, {}, ["weight"]),
    (LayerNorm, {}, ["weight", "bias"]),
    (LayerNorm, {"use_bias": False}, ["weight"]),
]


@pytest.mark.parametrize(("cls", "kwargs", "names"), MODULES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_parameters_of_a_module(cls, kwargs, names, dtype, offset):
    """Named weight and bias, of the dtype asked for; the effective weight begins at ones, the bias at zeros."""
    module = cls(9, **kwargs, param_dtype=dtype, weight_offset=offset, rngs=nnx.Rngs(0))
    initial = {"weight": 1 - offset, "bias": 0}
    state = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    assert state.keys() == set(names)
    for name, parameter in state.items():
        assert parameter.dtype == dtype
        np.testing.assert_array_equal(parameter, np.full(9, initial[name]))


@pytest.mark.parametrize(("cls", "kwargs", "names"), MODULES)
def test_a_module_is_its_function_under_every_nnx_transform(cls, kwargs, names):
    settings = {**SCALARS, "order": "scale_then_cast"}
    module, function = randomise(cls(9, **kwargs, **settings)), OPS["rms_norm" if cls is RMSNorm else "layer_norm"]
    x = draw([], 3, 9)["x"].astype(jnp.bfloat16)
    parameters = nnx.to_pure_dict(nnx.state(module))

    def loss(y: Array) -> Array:
        return jnp.sum(y.astype(jnp.float32) ** 3)

    value, gradients = jax.value_and_grad(lambda parameters: loss(function(x, **parameters, **settings)))(parameters)
    y = function(x, **parameters, **settings)
    np.testing.assert_array_equal(module(x), y)
    np.testing.assert_array_equal(nnx.merge(*nnx.split(module))(x), y)
    compiled = jax.jit(lambda parameters: function(x, **parameters, **settings))(parameters)
    np.testing.assert_array_equal(nnx.jit(lambda module: module(x))(module), compiled)
    by_module, state = nnx.value_and_grad(lambda module: loss(module(x)))(module)
    np.testing.assert_array_equal(by_module, value)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(state), gradients)
    jax.tree.map(np.testing.assert_array_equal, nnx.grad(lambda module: loss(module(x)))(module), state)


def hard_to_round(dtype: np.dtype) -> np.ndarray:
    """Float32 numbers: every number of the dtype, every middle between two with the float32 beside it, a million others."""
    numbers = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)
    finite = np.unique(numbers[np.isfinite(numbers)])
    ties = np.append((finite[:-1] / 2 + finite[1:] / 2), finite[-1] * (1 + 2.0 ** -(ml_dtypes.finfo(dtype).nmant + 2)))
    beside = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    others = np.random.default_rng(0).integers(2**32, size=2**20, dtype=np.uint32).view(np.float32)
    return np.concatenate([numbers, ties, *beside, others]).astype(np.float32)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_round_to_is_numpys_cast(dtype, compiled):
    """To the bit, with subnormals, ties, overflow and the sign of zero; a NaN stays one."""
    x = hard_to_round(dtype)
    with np.errstate(all="ignore"):
        expected = x.astype(dtype)
    rounded = jax.jit(round_to, static_argnums=1) if compiled else round_to
    actual = np.asarray(rounded(jnp.asarray(x), jnp.dtype(dtype)))
    nan = np.isnan(x)
    assert np.all(np.isnan(actual[nan]))
    np.testing.assert_array_equal(actual[~nan].view(np.uint16), expected[~nan].view(np.uint16))


@pytest.mark.parametrize("function", [rms_norm, layer_norm], ids=lambda function: function.__name__)
def test_what_would_broadcast_or_truncate_is_refused(function):
    with pytest.raises(ValueError, match=r"weight has shape \[1\]; with x of shape \[3, 8\] it must be \[8\]"):
        function(jnp.ones((3, 8)), jnp.ones(1))
    with pytest.raises(TypeError, match="x is int32"):
        function(jnp.arange(8, dtype=jnp.int32))
