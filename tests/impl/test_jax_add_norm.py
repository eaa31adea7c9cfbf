"""impl_jax's norms that first add a residual: the sum is rounded where `sum` says, on a TPU too, and both outputs may have
a gradient.

What the numbers are worth is asked elsewhere, by the kit itself: see test_ports_conform.
"""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

import reference
from impl_jax import AddLayerNorm, AddRMSNorm, LayerNorm, RMSNorm, add_layer_norm, add_rms_norm, layer_norm, rms_norm

OPS = {"add_rms_norm": add_rms_norm, "add_layer_norm": add_layer_norm}
NORMS = {"add_rms_norm": rms_norm, "add_layer_norm": layer_norm}
PARAMETERS = {"add_rms_norm": [[], ["weight"]], "add_layer_norm": [[], ["weight"], ["bias"], ["weight", "bias"]]}
CALLS = [(op, names) for op, choices in PARAMETERS.items() for names in choices]
CLASSES = {AddRMSNorm: RMSNorm, AddLayerNorm: LayerNorm}

SUMS = ["rounded", "unrounded", "float32"]
ORDERS = ["cast_then_scale", "scale_then_cast"]
HALF = ["bfloat16", "float16"]
SHAPES = [(9,), (0, 9), (3, 9), (2, 3, 2, 9)]
SCALARS = {"eps": 1e-3, "weight_offset": 1.0}  # far from every default

# Of an array's largest value: some dozens of roundings.
NOISE = {"float32": 64 * 2.0**-24, "float64": 64 * 2.0**-53}


@pytest.fixture
def _x64():
    with jax.enable_x64(True):
        yield


def draw(names: list[str], *shape: int, dtype: str = "float32") -> dict[str, Array]:
    """Draw x, the residual and the parameters named."""
    rng = np.random.default_rng(0)
    shapes = {"x": shape, "residual": shape} | {name: shape[-1:] for name in names}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def draw_half(dtype: str, sum: str, *shape: int) -> tuple[Array, Array, Array]:
    """Draw x, a residual of the dtype that the sum asks for, so large that rounding shows, and a weight no power of two."""
    rng = np.random.default_rng(0)
    residual_dtype = "float32" if sum == "float32" else dtype
    x, residual = rng.normal(size=shape), 8 * rng.normal(size=shape)
    weight = rng.uniform(17 / 16, 31 / 16, size=shape[-1:])
    return jnp.asarray(x, dtype), jnp.asarray(residual, residual_dtype), jnp.asarray(weight, dtype)


def draw_like(array: Array, seed: int = 1) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=array.shape), array.dtype)


def assert_close(actual: Array, expected: Array, dtype: str = "float32") -> None:
    """Compare dtypes and shapes, then values, to a share of the largest."""
    assert (actual.shape, actual.dtype) == (expected.shape, dtype)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=NOISE[dtype] * np.max(np.abs(expected), initial=0))


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("_x64")
@pytest.mark.parametrize(("shape", "dtype"), [*((shape, "float64") for shape in SHAPES), (SHAPES[-1], "float32")], ids=str)
@pytest.mark.parametrize(("op", "names"), CALLS)
def test_values_and_gradients_are_the_references(op, names, shape, dtype):
    inputs = draw(names, *shape, dtype=dtype)
    outputs, pullback = jax.vjp(lambda inputs: OPS[op](**inputs, **SCALARS), inputs)
    cotangents = tuple(draw_like(output, seed) for seed, output in enumerate(outputs, start=1))
    [gradients] = pullback(cotangents)

    exact = {name: np.asarray(array, np.float64) for name, array in inputs.items()}
    for actual, expected in zip(outputs, getattr(reference, op)(**exact, **SCALARS), strict=True):
        assert_close(actual, expected, dtype)
    expected = getattr(reference, f"{op}_vjp")(*(np.asarray(each, np.float64) for each in cotangents), **exact, **SCALARS)
    for name, gradient in gradients.items():
        assert_close(gradient, getattr(expected, f"d{name}"), dtype)


@pytest.mark.one_in(3)
@pytest.mark.usefixtures("_x64")
@pytest.mark.parametrize(("op", "names"), CALLS)
def test_derivatives_are_those_of_the_plain_formula(op, names):
    """The first, and the second: reverse over reverse, forward over reverse."""
    inputs = draw(names, 3, 9, dtype="float64")
    tangent = jax.tree.map(draw_like, inputs)

    def plain(x, residual, weight=None, bias=None, *, eps, weight_offset):
        s = x + residual
        centred = s - jnp.mean(s, axis=-1, keepdims=True) if op == "add_layer_norm" else s
        y = centred / jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
        y = y if weight is None else y * (weight + weight_offset)
        return y if bias is None else y + bias, s

    def derivatives(function):
        def loss(inputs):
            y, residual_out = function(**inputs, **SCALARS)
            return jnp.sum(y**3) + jnp.sum(residual_out**2 * y)

        def its_square(inputs):
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(loss)(inputs)))

        return jax.grad(loss)(inputs), jax.grad(its_square)(inputs), jax.jvp(jax.grad(loss), (inputs,), (tangent,))[1]

    for actual, expected in zip(*map(jax.tree.leaves, (derivatives(OPS[op]), derivatives(plain))), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * np.max(np.abs(expected)))


@pytest.mark.parametrize("sum", SUMS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("op", OPS)
def test_the_norm_reads_the_sum_that_was_asked_for(op, order, dtype, sum):
    x, residual, weight = draw_half(dtype, sum, 64, 33)
    y, residual_out = OPS[op](x, residual, weight, order=order, sum=sum)
    exact = x.astype("float32") + residual.astype("float32")
    assert (y.dtype, residual_out.dtype) == (dtype, residual.dtype)
    np.testing.assert_array_equal(residual_out, exact.astype(residual.dtype))
    norm = partial(NORMS[op], weight=weight, order=order, dtype=dtype)
    np.testing.assert_array_equal(y, norm(residual_out if sum == "rounded" else exact))
    other = norm(exact if sum == "rounded" else exact.astype(dtype))
    assert np.mean(np.asarray(y != other)) > 0.05


@pytest.mark.parametrize(("dtype", "platform"), [("float32", "tpu"), ("bfloat16", "tpu"), ("float16", "cuda")])
@pytest.mark.parametrize("sum", SUMS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("op", OPS)
def test_the_roundings_are_handed_to_accelerators(op, order, sum, dtype, platform):
    """XLA may drop a pair of casts, never `reduce_precision`: one for the sum that is returned, one for x_hat; and whatever
    is summed up is in float32."""

    def value_and_gradients(cotangents, *inputs):
        outputs, pullback = jax.vjp(partial(OPS[op], order=order, sum=sum), *inputs)
        return outputs, pullback(cotangents)

    x = jax.ShapeDtypeStruct((8, 3, 33), dtype)
    residual = jax.ShapeDtypeStruct(x.shape, "float32" if sum == "float32" else dtype)
    parameters = [jax.ShapeDtypeStruct((33,), dtype)] * len(PARAMETERS[op][-1])
    export = jax.export.export(jax.jit(value_and_gradients), platforms=[platform])
    stablehlo = export((x, residual), x, residual, *parameters).mlir_module()
    roundings = (order == "cast_then_scale") + (sum != "float32") if dtype in HALF else 0
    assert stablehlo.count("stablehlo.reduce_precision") == roundings
    added_up = re.findall(r"stablehlo\.reduce\(.*applies stablehlo\.add .*: \(tensor<[0-9x]*x(\w+)>,", stablehlo)
    assert set(added_up) == {"f32"}


@pytest.mark.parametrize("op", OPS)
def test_an_output_that_nothing_reads_adds_nothing(op):
    """The gradients of one output alone; the sum passes its own on whole, and the weight has none of it."""
    inputs = draw(PARAMETERS[op][-1], 3, 9)
    parameters = {name: inputs[name] for name in PARAMETERS[op][-1]}
    outputs, pullback = jax.vjp(lambda inputs: OPS[op](**inputs), inputs)
    dy, dresidual_out = draw_like(outputs[0], 1), draw_like(outputs[1], 2)

    [of_sum] = pullback((jnp.zeros_like(dy), dresidual_out))
    for name, gradient in of_sum.items():
        np.testing.assert_array_equal(gradient, 0 if name in parameters else dresidual_out)

    [of_y] = pullback((dy, jnp.zeros_like(dresidual_out)))
    s = inputs["x"] + inputs["residual"]
    ds, of_parameters = jax.vjp(lambda s, parameters: NORMS[op](s, **parameters), s, parameters)[1](dy)
    for name, expected in {"x": ds, "residual": ds, **of_parameters}.items():
        np.testing.assert_array_equal(of_y[name], expected)


@pytest.mark.parametrize("sum", SUMS)
@pytest.mark.parametrize(("op", "names"), CALLS)
def test_gradients_have_the_dtypes_of_their_inputs(op, names, sum):
    """And what is None has none."""
    given = draw(names, 3, 9, dtype="bfloat16")
    given["residual"] = given["residual"].astype("float32" if sum == "float32" else "bfloat16")
    inputs = [given.get(name) for name in ("x", "residual", *PARAMETERS[op][-1])]
    outputs, pullback = jax.vjp(partial(OPS[op], sum=sum), *inputs)
    for tensor, gradient in zip(inputs, pullback(outputs), strict=True):
        assert (gradient is None) == (tensor is None)
        assert tensor is None or gradient.dtype == tensor.dtype


@pytest.mark.parametrize("op", OPS)
def test_scalars_may_be_python_numbers_or_traced(op):
    """Traced, a new value needs no new program."""
    inputs = draw(PARAMETERS[op][-1], 3, 9)
    norm = jax.jit(OPS[op])
    for scalars in ({"eps": 1e-5, "weight_offset": 0.0}, {"eps": 0.5, "weight_offset": 1.0}):
        for actual, expected in zip(norm(**inputs, **scalars), OPS[op](**inputs, **scalars), strict=True):
            assert_close(actual, expected)
    assert norm._cache_size() == 1


@pytest.mark.one_in(2)
@pytest.mark.parametrize("mapped", [["x"], ["residual"], ["x", "residual"], ["weight"]], ids="+".join)
@pytest.mark.parametrize("op", OPS)
def test_vmap_is_a_loop(op, mapped):
    """With the gradients: no row's dweight may reach another's."""
    batch = draw([], 4, 2, 9) | {"weight": draw([], 4, 9)["x"]}
    given = {name: tensor if name in mapped else tensor[0] for name, tensor in batch.items()}

    def value_and_gradients(x, residual, weight):
        outputs, pullback = jax.vjp(OPS[op], x, residual, weight)
        return *outputs, *pullback(tuple(jnp.sin(output) for output in outputs))

    axes = tuple(0 if name in mapped else None for name in given)
    together = jax.vmap(value_and_gradients, in_axes=axes)(*given.values())
    rows = [value_and_gradients(*(tensor[i] if name in mapped else tensor for name, tensor in given.items())) for i in range(4)]
    for actual, looped in zip(together, zip(*rows, strict=True), strict=True):
        assert_close(actual, jnp.stack(looped))


@pytest.mark.parametrize("cls", CLASSES)
def test_the_constructor_takes_what_the_plain_norms_takes_but_groups_and_sum(cls):
    ours, plain = (dict(inspect.signature(norm.__init__).parameters) for norm in (cls, CLASSES[cls]))
    added = ours.pop("sum")
    del plain["group_size"]
    assert list(ours.values()) == list(plain.values())
    assert (added.kind, added.default) == (added.KEYWORD_ONLY, "rounded")


@pytest.mark.parametrize(
    ("cls", "kwargs", "sum"),
    [(AddRMSNorm, {}, "unrounded"), (AddLayerNorm, {}, "float32"), (AddLayerNorm, {"use_bias": False}, "rounded")],
)
def test_a_module_is_its_function(cls, kwargs, sum):
    """Its state is the plain module's, and so are its first parameters."""
    settings = {**SCALARS, "order": "scale_then_cast"}
    module = cls(33, **kwargs, **settings, sum=sum, param_dtype="bfloat16", rngs=nnx.Rngs(0))
    plain = CLASSES[cls](33, **kwargs, **settings, param_dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(module)), nnx.to_pure_dict(nnx.state(plain)))
    nnx.update(module, jax.tree.map(draw_like, nnx.state(module)))
    x, residual, _ = draw_half("bfloat16", sum, 5, 33)
    parameters = nnx.to_pure_dict(nnx.state(module))
    function = OPS["add_rms_norm" if cls is AddRMSNorm else "add_layer_norm"]
    for called, op in [(module, function), (nnx.jit(module), jax.jit(function, static_argnames=("order", "sum")))]:
        expected = op(x, residual, **parameters, **settings, sum=sum)
        jax.tree.map(np.testing.assert_array_equal, called(x, residual), expected)


@pytest.mark.parametrize("norm", [*OPS.values(), AddRMSNorm(8), AddLayerNorm(8)], ids=lambda norm: type(norm).__name__)
def test_a_residual_that_would_broadcast_or_promote_is_refused(norm):
    with pytest.raises(ValueError, match=r"residual has shape \[8\]; with x of shape \[3, 8\] it must be \[3, 8\]"):
        norm(jnp.ones((3, 8)), jnp.ones(8))
    expected = "residual is float32; with x of bfloat16 and sum='rounded' it must be bfloat16"
    with pytest.raises(TypeError, match=expected):
        norm(jnp.ones((3, 8), "bfloat16"), jnp.ones((3, 8)))
    with pytest.raises(TypeError, match="x is int32"):
        norm(jnp.arange(8, dtype="int32"), jnp.arange(8, dtype="int32"))


@pytest.mark.parametrize("op", OPS)
def test_a_float32_sum_has_a_float32_residual(op):
    x = jnp.ones((3, 8), "float16")
    with pytest.raises(TypeError, match="residual is float16; with x of float16 and sum='float32' it must be float32"):
        OPS[op](x, x, sum="float32")


@pytest.mark.parametrize(
    "norm",
    [
        *(lambda sum, op=op: op(jnp.ones((3, 8)), jnp.ones((3, 8)), sum=sum) for op in OPS.values()),
        *(lambda sum, cls=cls: cls(8, sum=sum) for cls in CLASSES),
    ],
)
def test_an_unknown_sum_is_refused(norm):
    with pytest.raises(ValueError, match="sum is 'whole'; it must be 'rounded', 'unrounded' or 'float32'"):
        norm(sum="whole")


@pytest.mark.parametrize("op", OPS)
def test_what_the_norm_refuses_is_refused(op):
    x = jnp.ones((3, 8))
    with pytest.raises(ValueError, match=r"weight has shape \[1\]; with x of shape \[3, 8\] it must be \[8\]"):
        OPS[op](x, x, jnp.ones(1))
    with pytest.raises(ValueError, match="order is 'sideways'"):
        OPS[op](x, x, order="sideways")
