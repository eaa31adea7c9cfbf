"""impl_jax's Pre-LN block is the golden's: to the last bits in float64, stage by stage in the other dtypes."""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import reference
from impl_jax import BlockConfig, PreLNBlock, PreLNStack, attention, gelu, pre_ln_block, pre_ln_stack, rope, swiglu
from impl_jax.linear import linear
from reference import PRESETS, small
from reference.attention import attention_vjp, dot_products, mix, softmax, visible_keys

Array = np.ndarray
Arrays = dict[str, Array]

GQA = small(PRESETS["qwen3"])
CONFIGS = {name: small(config) for name, config in PRESETS.items()} | {  # and what no preset has
    "interleaved": replace(GQA, rope="interleaved", feed_forward="gelu", weight_offset=1.0),
    "all_of_today": replace(
        GQA,
        qk_norm=True,
        weight_offset=1.0,
        window=3,
        sink=True,
        softcap=1.5,
        attention_scale=0.3,
        rotary_features=4,
        qk_norm_over="all_heads",
        qk_norm_offset=False,
    ),
    "biases": replace(
        GQA,
        norm="layer_norm",
        n_kv_heads=1,
        qkv_bias=True,
        o_bias=True,
        feed_forward_bias=True,
        causal=False,
        order="scale_then_cast",
    ),
}
UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}  # half the distance from 1 to the next number
STATISTICS = ("mean", "var", "rstd")  # of the golden's intermediates, not taps


block = jax.jit(pre_ln_block, static_argnames=("config", "taps"))


@pytest.fixture
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def _quickly():
    """Compile in half the time, where what the optimizer does is not asked."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def draw(config: BlockConfig, *, n_layers: int | None = None, dtype: str = "float64") -> tuple[Array, Arrays]:
    """x and parameters, none of them ones or zeros, and the scores neither all alike nor one-hot."""
    rng = np.random.default_rng(0)
    prefixes = [""] if n_layers is None else [f"{i}." for i in range(n_layers)]
    shapes = {prefix + name: shape for prefix in prefixes for name, shape in config.parameters().items()}
    parameters = {name: rng.normal(size=s) / (np.sqrt(s[-1]) if len(s) == 2 else 1) for name, s in shapes.items()}
    x = rng.normal(size=(2, 5, config.d_model))
    return jax.tree.map(lambda array: array.astype(jnp.dtype(dtype)), (x, parameters))


def cached(config: BlockConfig) -> Arrays:
    """Three cached positions, and a mask that hides every key from the first two rows."""
    rng = np.random.default_rng(1)
    k_cache, v_cache = rng.normal(size=(2, 2, 3, config.n_kv_heads, config.d_head))
    return {"k_cache": k_cache, "v_cache": v_cache, "key_mask": np.arange(8) >= np.array([[5], [1]])}


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("_x64", "_quickly")
@pytest.mark.parametrize(
    ("name", "situation"), [*((name, "decode") for name in CONFIGS), ("qwen3", "prefill"), ("gpt2", "prefill")]
)
def test_the_block_is_the_references(name, situation):
    """Every tap and every gradient, to a few thousand of float64's roundings; a decode has cache, mask and position."""
    config, dout = CONFIGS[name], np.random.default_rng(2).normal(size=(2, 5, CONFIGS[name].d_model))
    x, parameters = draw(config)
    given, position = (cached(config), 3) if situation == "decode" else ({}, 0)
    expected = reference.pre_ln_block(x, parameters, config, position=position, **given).intermediates
    expected = {tap: array for tap, array in expected.items() if not tap.endswith(STATISTICS)}
    gradients = reference.pre_ln_block_vjp(dout, x, parameters, config, position=position, **given)

    def taps_and_gradients(x, parameters, given, position):
        function = partial(pre_ln_block, **given, config=config, position=position, taps=True)
        _, pullback, taps = jax.vjp(function, x, parameters, has_aux=True)
        return taps, pullback(dout)

    taps, (dx, dparameters) = jax.jit(taps_and_gradients)(x, parameters, given, position)
    assert list(taps) == list(expected)
    actual = taps | {"dx": dx} | {f"d{name}": gradient for name, gradient in dparameters.items()}
    for name, array in (expected | gradients).items():
        assert (actual[name].shape, actual[name].dtype) == (array.shape, "float64")
        # A bias of k moves all scores of a row alike: but for rounding, its gradient is zero.
        np.testing.assert_allclose(actual[name], array, rtol=0, atol=1e-12 * max(1, np.max(np.abs(array))), err_msg=name)


def stages(x: Array, p: Arrays, taps: Arrays, config: BlockConfig) -> Iterator[tuple[str, Array, int]]:
    """Every tap, exactly, from the taps before it, and how often it is rounded to x's dtype."""
    x, p, t = jax.tree.map(lambda array: np.asarray(array, np.float64), (x, p, dict(taps)))
    causal, d_head = config.causal, config.d_head
    turn = {"base": config.rope_base, "interleaved": config.rope == "interleaved"}

    def norm(x: Array, name: str) -> tuple[Array, int]:
        op = reference.layer_norm if f"{name}.bias" in p else reference.rms_norm
        parameters = [p[f"{name}.{kind}"] for kind in ("weight", "bias") if f"{name}.{kind}" in p]
        return op(x, *parameters, **config.norm_constants).y, 2 if config.order == "cast_then_scale" else 1

    def project(x: Array, name: str) -> Array:
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)

    yield "attention_norm", *norm(x, "attention_norm")
    for name in "qkv":
        yield name, project(t["attention_norm"], f"attention.{name}").reshape(t[name].shape), 1
    q, k = t["q"], t["k"]
    if config.qk_norm:
        yield "q_norm", *norm(q, "attention.q_norm")
        yield "k_norm", *norm(k, "attention.k_norm")
        q, k = t["q_norm"], t["k_norm"]
    if config.rope != "none":
        yield "q_rope", reference.rope(q, np.arange(5.0), **turn), 1
        yield "k_rope", reference.rope(k, np.arange(5.0), **turn), 1
        q, k = t["q_rope"], t["k_rope"]
    yield "scores", dot_products(q, k) / np.sqrt(d_head), 0
    yield "probs", softmax(t["scores"], visible_keys(5, 5, causal=causal)), 0
    yield "attn", mix(t["probs"], t["v"]).reshape(t["attn"].shape), 1
    yield "attn_out", project(t["attn"], "attention.o"), 1
    yield "h", x + t["attn_out"], 1
    yield "ffn_norm", *norm(t["h"], "ffn_norm")
    if config.feed_forward == "swiglu":
        yield "gate", project(t["ffn_norm"], "feed_forward.gate"), 1
    yield "up", project(t["ffn_norm"], "feed_forward.up"), 1
    if config.feed_forward == "swiglu":
        yield "act", reference.swiglu(t["gate"], t["up"]), 1
    else:
        yield "act", reference.gelu(t["up"], approximate=config.feed_forward == "gelu_tanh"), 1
    yield "ffn_out", project(t["act"], "feed_forward.down"), 1
    yield "out", t["h"] + t["ffn_out"], 1


def assert_rounded(actual: Array, exact: Array, dtype: str, name: str, *, roundings: int = 1) -> None:
    """Hold every element to so many roundings, on top of float32's: of the largest, one for each of the longest sum's terms."""
    noise = 64 * UNIT["float32"] * np.max(np.abs(exact))
    bound = noise + roundings * UNIT[dtype] * (np.abs(exact) + noise)
    assert (actual.shape, actual.dtype) == (exact.shape, dtype if roundings else "float32"), name
    assert np.max(np.abs(np.asarray(actual, np.float64) - exact) / bound) <= 1, name


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_every_stage_is_rounded_once(name, dtype):
    """A tap is what the next stage was given, whatever the compiler fuses: from one to the next, all is as exact as can be."""
    config = CONFIGS[name]
    x, parameters = draw(config, dtype=dtype)
    out, taps = block(x, parameters, config=config, taps=True)
    np.testing.assert_array_equal(out, taps["out"])
    checked = []
    for stage, exact, roundings in stages(x, parameters, taps, config):
        assert_rounded(taps[stage], exact, dtype, stage, roundings=roundings)
        checked.append(stage)
    assert checked == list(taps)


def test_taps_change_nothing():
    """Asked for or not, the roundings are the same; float32 sums may be fused otherwise, which few of them show."""
    x, parameters = draw(GQA, dtype="bfloat16")
    out, (tapped, _) = (block(x, parameters, config=GQA, taps=taps) for taps in (False, True))
    assert np.mean(np.asarray(out != tapped)) < 1e-2


def draw_like(*shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(3)
    return [rng.normal(size=shape) for shape in shapes]


def linear_vjp(dy: Array, x: Array, weight: Array, _: Array) -> tuple[Array, ...]:
    return dy @ weight, np.einsum("bso,bsi->oi", dy, x), dy.sum(axis=(0, 1))


# Functions, their gradients by the golden, and inputs.
OPS: dict[str, tuple[Callable, Callable, list[Array]]] = {
    "linear": (linear, linear_vjp, draw_like((2, 5, 32), (48, 32), (48,))),
    "attention": (
        lambda q, k, v, sink: attention(q, k, v, None, sink),
        attention_vjp,
        draw_like((2, 5, 4, 8), (2, 7, 2, 8), (2, 7, 2, 8), (4,)),
    ),
    "rope": (partial(rope, position=2), lambda dy, x: [reference.rope_vjp(dy, np.arange(2.0, 7.0))], draw_like((2, 5, 4, 8))),
    "swiglu": (swiglu, reference.swiglu_vjp, draw_like((5, 44), (5, 44))),
    "gelu": (gelu, lambda dy, x: [reference.gelu_vjp(dy, x)], draw_like((5, 44))),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("op", OPS)
def test_every_gradient_is_rounded_once(op, dtype):
    """Over rows, keys and grouped heads, nothing is summed in half precision."""
    function, gradients, inputs = OPS[op]
    inputs = [jnp.asarray(array, dtype) for array in inputs]
    y = jax.eval_shape(function, *inputs)
    dy = jnp.asarray(np.random.default_rng(4).normal(size=y.shape), dtype)
    actual = jax.jit(lambda dy, *inputs: jax.vjp(function, *inputs)[1](dy))(dy, *inputs)
    expected = gradients(*(np.asarray(tensor, np.float64) for tensor in (dy, *inputs)))
    for i, (gradient, exact) in enumerate(zip(actual, expected, strict=True)):
        assert_rounded(np.asarray(gradient), exact, dtype, f"gradient {i}")


def test_the_derivative_of_silu_does_not_cancel():
    """Four roundings of float32: autodiff's 1 − σ(x) loses sixteen at x = 16."""
    gate = np.linspace(-20, 20, 4001, dtype="float32")
    derivative = jax.vmap(jax.grad(swiglu), in_axes=(0, None))(gate, jnp.ones(()))
    exact, _ = reference.swiglu_vjp(np.ones(4001), np.float64(gate), np.ones(4001))
    np.testing.assert_allclose(derivative, exact, rtol=0, atol=4 * UNIT["float32"])


def test_float32_parameters_beside_half_precision_have_float32_gradients():
    """The matrix is rounded to multiply, its gradient and the bias's are not: they are for an optimizer to add up."""
    x, weight, bias, dy = draw_like((2, 5, 32), (48, 32), (48,), (2, 5, 48))
    x, dy = (jnp.asarray(array, "bfloat16") for array in (x, dy))
    y, pullback = jax.vjp(linear, x, jnp.asarray(weight, "float32"), jnp.asarray(bias, "float32"))
    dx, dweight, dbias = pullback(dy)
    exact_x, rounded, exact_dy = (np.asarray(array, np.float64) for array in (x, weight.astype(x.dtype), dy))
    assert_rounded(y, exact_x @ rounded.T + bias, "bfloat16", "y")
    expected = linear_vjp(exact_dy, exact_x, rounded, bias)
    for actual, exact, dtype in zip((dx, dweight, dbias), expected, ("bfloat16", "float32", "float32"), strict=True):
        assert_rounded(actual, exact, dtype, "gradient")


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("dtype", UNIT)
def test_accelerators_are_asked_for_float32(dtype, platform):
    """A product of float32 is tf32 or bfloat16 there by default; and nothing is added in half precision, gradients included."""
    x, parameters = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), draw(GQA))

    def value_and_gradients(x, parameters):
        out, pullback = jax.vjp(partial(pre_ln_block, config=GQA), x, parameters)
        return out, pullback(out)

    stablehlo = jax.export.export(jax.jit(value_and_gradients), platforms=[platform])(x, parameters).mlir_module()
    products = re.findall(r"stablehlo\.dot_general.*precision = \[(.*?)\].* -> tensor<[0-9x]*x(\w+)>", stablehlo)
    sums = re.findall(r"stablehlo\.add\b.*tensor<(?:[0-9]+x)*(\w+)>", stablehlo)
    assert len(products) == stablehlo.count("stablehlo.dot_general") == 3 * 9  # seven matrices, scores and values
    assert set(products) == {("HIGHEST, HIGHEST", "f32")}
    assert "f32" in sums
    assert not {"bf16", "f16"} & set(sums)
    # XLA may drop a cast, but none of these: all taps but scores and probs, four x_hat, the gradients from seven matrices.
    roundings = 17 + 4 + 7 if dtype != "float32" else 0
    assert stablehlo.count("stablehlo.reduce_precision") == roundings


@pytest.mark.usefixtures("_quickly")
@pytest.mark.parametrize("kind", ["bool", "float32"])
def test_a_query_that_sees_no_key_gives_zeros_and_no_gradient(kind):
    q, k, v = (jnp.asarray(array, "float32") for array in draw_like((2, 5, 4, 8), (2, 5, 2, 8), (2, 5, 2, 8)))
    key_mask = jnp.asarray([[0] * 5, [0, 1, 1, 1, 1]], kind)

    def value_and_gradients(q, k, v):
        y, pullback = jax.vjp(lambda q, k, v: attention(q, k, v, key_mask), q, k, v)
        return y, pullback(jnp.ones_like(y))

    y, (dq, dk, dv) = jax.jit(value_and_gradients)(q, k, v)
    for tensor in (y, dq):
        np.testing.assert_array_equal(tensor[0], 0)
        np.testing.assert_array_equal(tensor[1, 0], 0)
        assert np.all(np.isfinite(tensor))
    assert np.any(y[1, 1:])
    for tensor in (dk, dv):
        np.testing.assert_array_equal(tensor[0], 0)
        np.testing.assert_array_equal(tensor[1, 0], 0)
        assert np.all(np.any(tensor[1, 1:], axis=(-2, -1)))


def test_a_config_is_compiled_once():
    """`position` and every tensor are traced; the config is static, and any object with the fields will do."""
    traced = []

    @partial(jax.jit, static_argnames="config")
    def function(x, parameters, position, config):
        traced.append(config)
        return pre_ln_block(x, parameters, config=config, position=position, taps=True)

    ours = BlockConfig(**asdict(GQA))
    assert ours.parameters() == GQA.parameters()
    x, parameters = draw(GQA, dtype="float32")
    (near, taps), (far, turned) = (function(x, parameters, position, ours) for position in (0, 100))
    assert traced == [ours]
    np.testing.assert_array_equal(function(x, parameters, 0, GQA)[0], near)
    # Queries and keys turn together; the products differ by what float32's angles do, a hundred of their roundings at most.
    assert np.max(np.abs(turned["q_rope"] - taps["q_rope"])) > 1
    np.testing.assert_allclose(far, near, rtol=0, atol=100 * UNIT["float32"] * np.max(np.abs(near)))


@pytest.mark.usefixtures("_quickly")
def test_vmap_is_a_batch():
    x, parameters = draw(GQA, dtype="float32")
    given = {name: array.astype("float32") for name, array in cached(GQA).items()}

    def of_one(x, given):
        return pre_ln_block(x, parameters, **given, config=GQA)

    together, mapped = jax.jit(of_one)(x, given), jax.jit(jax.vmap(of_one))(x, given)
    np.testing.assert_allclose(mapped, together, rtol=0, atol=64 * UNIT["float32"] * np.max(np.abs(together)))


@pytest.mark.usefixtures("_x64", "_quickly")
def test_a_stack_is_its_blocks_one_after_another():
    """From flat parameters, with their gradients, and from stacked ones."""
    x, flat = draw(GQA, n_layers=2)
    names = GQA.parameters()
    key_mask = np.arange(5) >= np.array([[2], [0]])

    def one_by_one(x, flat):
        taps = OrderedDict()
        for i in range(2):
            parameters = {name: flat[f"{i}.{name}"] for name in names}
            x, of_block = pre_ln_block(x, parameters, key_mask=key_mask, config=GQA, position=4, taps=True)
            taps |= {f"{i}.{name}": tap for name, tap in of_block.items()}
        return jnp.sum(x**3), taps

    def scanned(x, parameters):
        out, taps = pre_ln_stack(x, parameters, key_mask, config=GQA, n_layers=2, position=4, taps=True)
        return jnp.sum(out**3), taps

    (_, expected), (dx, dflat) = jax.jit(jax.value_and_grad(one_by_one, (0, 1), has_aux=True))(x, flat)
    (_, taps), (its_dx, gradients) = jax.jit(jax.value_and_grad(scanned, (0, 1), has_aux=True))(x, flat)
    assert list(taps) == list(expected)
    ours, theirs = taps | {"dx": its_dx} | gradients, expected | {"dx": dx} | dflat
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=1e-12 * np.max(np.abs(array)), err_msg=name)

    stacked = {name: np.stack([flat[f"{i}.{name}"] for i in range(2)]) for name in names}
    out = jax.jit(partial(pre_ln_stack, config=GQA, n_layers=2, position=4))(x, stacked, key_mask)
    np.testing.assert_allclose(out, taps["1.out"], rtol=0, atol=1e-12 * np.max(np.abs(out)))


@pytest.mark.usefixtures("_quickly")
@pytest.mark.parametrize("n_layers", [None, 2])
def test_a_module_holds_parameters_by_their_names(n_layers):
    """It begins as it says, takes and gives the fixtures' dictionary, and is the function, with its gradients."""
    config = replace(CONFIGS["interleaved"], qk_norm=False, qkv_bias=True)
    if n_layers is None:
        module, function = PreLNBlock(config, rngs=nnx.Rngs(0)), pre_ln_block
    else:
        module, function = PreLNStack(config, n_layers, rngs=nnx.Rngs(0)), partial(pre_ln_stack, n_layers=n_layers)
    x, parameters = draw(config, n_layers=n_layers, dtype="float32")

    initial = jax.tree.map(np.asarray, module.save())
    assert initial.keys() == parameters.keys()
    for name, array in initial.items():
        assert array.shape == parameters[name].shape
        deviation = 0.02 if array.ndim == 2 else 0.0  # offset weights and biases alike begin as zeros
        assert np.std(array) == pytest.approx(deviation, rel=0.1)
    module.load(parameters)
    jax.tree.map(np.testing.assert_array_equal, module.save(), parameters)

    def loss(out):
        return jnp.sum(out**3)

    gradients = jax.jit(jax.grad(lambda parameters: loss(function(x, parameters, config=config))))(parameters)
    nnx.update(module, nnx.jit(nnx.grad(lambda module: loss(module(x))))(module))
    for name, array in module.save().items():  # what the module now holds is its gradients
        noise = 64 * UNIT["float32"] * np.max(np.abs(gradients[name]))
        np.testing.assert_allclose(array, gradients[name], rtol=0, atol=noise, err_msg=name)

    name = max(parameters)
    with pytest.raises(ValueError, match=f"parameter.*{re.escape(name)}"):
        module.load({other: array for other, array in parameters.items() if other != name})
    with pytest.raises(ValueError, match=r"has shape \[1\]; it must be"):
        module.load(parameters | {other: jnp.ones(1) for other in parameters if other.endswith(name.removeprefix("1."))})


def test_what_does_not_fit_is_refused():
    x, parameters = draw(GQA, dtype="float32")
    q, kv = jnp.ones((5, 4, 8)), jnp.ones((5, 3, 8))
    without = {name: array for name, array in parameters.items() if name != "ffn_norm.weight"}
    refused = {
        "'ffn_norm.weight' is missing": lambda: pre_ln_block(x, without, config=GQA),
        "'attention.q.bias' is unknown": lambda: pre_ln_block(x, parameters | {"attention.q.bias": q}, config=GQA),
        "ffn_norm.weight has shape": lambda: pre_ln_block(x, parameters | {"ffn_norm.weight": q}, config=GQA),
        "its last axis must be d_model": lambda: pre_ln_block(x[..., :5], parameters, config=GQA),
        "n_kv_heads, 3, does not divide": lambda: pre_ln_block(x, parameters, config=replace(GQA, n_kv_heads=3)),
        "4 query heads do not share 3": lambda: attention(q, kv, kv),
        "5 queries are more than 4 keys": lambda: attention(q, q[1:], q[1:]),
        "must be the same": lambda: attention(q, kv, kv[1:]),
        "must be even": lambda: rope(q[..., :7]),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
