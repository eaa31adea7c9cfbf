"""Attention, rotary embedding, SwiGLU, GELU and the Pre-LN block with one thing wrong, as people write them in JAX."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from conformance.numbers.rounding import HALF
from reference import BlockConfig
from tests.judge.written.collection import Collection
from tests.judge.written.fault import Fault
from tests.judge.written.jax_norms import layer_norm, rms_norm, wide

Parameters = Mapping[str, Array]

written = Collection("jax")


def grouped_scores(q: Array, k: Array) -> Array:
    """Scaled scores, [*batch, h, s, t]: every query head with the key head of its group."""
    k = jnp.repeat(wide(k), q.shape[-2] // k.shape[-2], axis=-2)
    return jnp.einsum("...shd,...thd->...hst", wide(q), k) / math.sqrt(q.shape[-1])


def visible_keys(s: int, t: int, key_mask: Array | None, *, causal: bool) -> Array:
    """Which keys a query sees; the queries are the last of the positions."""
    visible = jnp.tril(jnp.ones((1, s, t), bool), t - s) if causal else jnp.ones((1, s, t), bool)
    return visible if key_mask is None else visible & (key_mask != 0)[..., None, None, :]


def masked_softmax(scores: Array, visible: Array) -> Array:
    """Softmax over the visible keys; zeros where a query sees none."""
    blind = ~jnp.any(visible, axis=-1, keepdims=True)
    probs = jax.nn.softmax(jnp.where(visible | blind, scores, -jnp.inf), axis=-1)
    return jnp.where(blind, 0.0, probs)


def mixed_values(probs: Array, v: Array) -> Array:
    """The values under the probabilities, in v's dtype."""
    values = jnp.repeat(wide(v), probs.shape[-3] // v.shape[-2], axis=-2)
    return jnp.einsum("...hst,...thd->...shd", probs, values).astype(v.dtype)


def attention(q: Array, k: Array, v: Array, key_mask: Array | None, *, causal: bool) -> Array:
    """Attention in four steps."""
    visible = visible_keys(q.shape[-3], k.shape[-3], key_mask, causal=causal)
    return mixed_values(masked_softmax(grouped_scores(q, k), visible), v)


def angles_of(x: Array, *, position: int, base: float) -> Array:
    """The angle of every position and pair, [s, d/2]."""
    d = x.shape[-1]
    frequency = jnp.asarray([base ** (-i / d) for i in range(0, d, 2)], wide(x).dtype)
    return (position + jnp.arange(x.shape[-3], dtype=frequency.dtype))[:, None] * frequency


def turned(x: Array, angles: Array, *, interleaved: bool) -> Array:
    """Every pair of x turned by its angle, in x's dtype."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    x32 = wide(x)
    if interleaved:
        first, second = x32[..., 0::2], x32[..., 1::2]
        pairs = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return pairs.reshape(x.shape).astype(x.dtype)
    first, second = jnp.split(x32, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rope(x: Array, *, position: int, base: float, interleaved: bool) -> Array:
    """Rotary embedding."""
    return turned(x, angles_of(x, position=position, base=base), interleaved=interleaved)


def swiglu(gate: Array, up: Array) -> Array:
    """The gate's SiLU times up, cast once."""
    return (jax.nn.silu(wide(gate)) * wide(up)).astype(gate.dtype)


def gelu(x: Array, *, approximate: bool) -> Array:
    """jax.nn.gelu, cast once; the error function by its complement, which does not cancel."""
    x32 = wide(x)
    if approximate:
        return jax.nn.gelu(x32, approximate=True).astype(x.dtype)
    return (x32 * lax.erfc(-x32 / math.sqrt(2)) / 2).astype(x.dtype)


def linear(x: Array, p: Parameters, name: str) -> Array:
    """A projection, its products added up in the compute dtype, in x's dtype."""
    y = jnp.einsum("...i,oi->...o", wide(x), wide(p[f"{name}.weight"].astype(x.dtype)))
    bias = p.get(f"{name}.bias")
    return (y if bias is None else y + wide(bias)).astype(x.dtype)


def normed(x: Array, p: Parameters, name: str, config: BlockConfig) -> Array:
    """The norm of this name, in x's dtype."""
    weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
    norm = rms_norm if bias is None else layer_norm
    return norm(x, weight, bias, eps=config.eps, weight_offset=config.weight_offset, order=config.order).astype(x.dtype)


def attended(
    x: Array, p: Parameters, k_cache: Array | None, v_cache: Array | None, key_mask: Array | None, c: BlockConfig, position: int
) -> Array:
    """The attention branch, of a normalised x."""
    q, k, v = (linear(x, p, f"attention.{name}").reshape(*x.shape[:-1], -1, c.d_head) for name in "qkv")
    if c.qk_norm:
        q, k = normed(q, p, "attention.q_norm", c), normed(k, p, "attention.k_norm", c)
    if c.rope != "none":
        turn = partial(rope, position=position, base=c.rope_base, interleaved=c.rope == "interleaved")
        q, k = turn(q), turn(k)
    if k_cache is not None:
        k, v = jnp.concatenate([k_cache, k], axis=-3), jnp.concatenate([v_cache, v], axis=-3)
    y = attention(q, k, v, key_mask, causal=c.causal)
    return linear(y.reshape(*x.shape[:-1], -1), p, "attention.o")


def fed_forward(x: Array, p: Parameters, c: BlockConfig) -> Array:
    """The feed-forward branch, of a normalised x."""
    up = linear(x, p, "feed_forward.up")
    if c.feed_forward == "swiglu":
        act = swiglu(linear(x, p, "feed_forward.gate"), up)
    else:
        act = gelu(up, approximate=c.feed_forward == "gelu_tanh")
    return linear(act, p, "feed_forward.down")


def pre_ln_block(x, parameters, k_cache, v_cache, key_mask, *, config, position):
    """Two branches, each of a normalised copy of the stream."""
    p = parameters
    h = x + attended(normed(x, p, "attention_norm", config), p, k_cache, v_cache, key_mask, config, position)
    return h + fed_forward(normed(h, p, "ffn_norm", config), p, config)


HONEST = (
    Fault("jax/attention", "nothing", "attention", "jax", attention),
    Fault("jax/rope", "nothing", "rope", "jax", rope),
    Fault("jax/swiglu", "nothing", "swiglu", "jax", swiglu),
    Fault("jax/gelu", "nothing", "gelu", "jax", gelu),
    Fault("jax/pre_ln_block", "nothing", "pre_ln_block", "jax", pre_ln_block),
)


@written.fault("attention", "scale_missing")
def attention_without_scale(q, k, v, key_mask, *, causal):
    """The scores are not divided by the root of d_head."""
    scores = grouped_scores(q, k) * math.sqrt(q.shape[-1])
    visible = visible_keys(q.shape[-3], k.shape[-3], key_mask, causal=causal)
    return mixed_values(masked_softmax(scores, visible), v)


@written.fault("attention", "scale_twice")
def attention_scaled_by_d_head(q, k, v, key_mask, *, causal):
    """The queries are scaled before attention, which scales them again."""
    scaled = wide(q) / math.sqrt(q.shape[-1])
    return attention(scaled, k, v, key_mask, causal=causal)


@written.fault("attention", "causal_mask_without_cache", dtypes=("float32",))
def attention_mask_from_the_first_key(q, k, v, key_mask, *, causal):
    """jnp.tril is called without the offset of the cached keys."""
    s, t = q.shape[-3], k.shape[-3]
    visible = visible_keys(s, t, key_mask, causal=False)
    visible = visible & jnp.tril(jnp.ones((s, t), bool)) if causal else visible
    return mixed_values(masked_softmax(grouped_scores(q, k), visible), v)


@written.fault("attention", "causal_mask_one_too_few")
def attention_without_its_own_key(q, k, v, key_mask, *, causal):
    """The mask compares with < where <= belongs, so a query does not see its own key."""
    s, t = q.shape[-3], k.shape[-3]
    visible = visible_keys(s, t, key_mask, causal=False)
    visible = visible & jnp.tril(jnp.ones((s, t), bool), t - s - 1) if causal else visible
    return mixed_values(masked_softmax(grouped_scores(q, k), visible), v)


@written.fault("attention", "key_heads_tiled")
def attention_tiles_heads(q, k, v, key_mask, *, causal):
    """jnp.tile stands where jnp.repeat belongs, for keys and values."""
    times = (1,) * (k.ndim - 2) + (q.shape[-2] // k.shape[-2], 1)
    return attention(q, jnp.tile(k, times), jnp.tile(v, times), key_mask, causal=causal)


@written.fault("attention", "softmax_over_queries")
def attention_softmax_over_queries(q, k, v, key_mask, *, causal):
    """jax.nn.softmax is given axis=-2."""
    visible = visible_keys(q.shape[-3], k.shape[-3], key_mask, causal=causal)
    blind = ~jnp.any(visible, axis=-2, keepdims=True)
    probs = jax.nn.softmax(jnp.where(visible | blind, grouped_scores(q, k), -jnp.inf), axis=-2)
    return mixed_values(jnp.where(blind, 0.0, probs), v)


@written.fault("attention", "mask_after_softmax")
def attention_masks_probabilities(q, k, v, key_mask, *, causal):
    """The mask multiplies the probabilities, after the softmax has run over all keys."""
    visible = visible_keys(q.shape[-3], k.shape[-3], key_mask, causal=causal)
    return mixed_values(jax.nn.softmax(grouped_scores(q, k), axis=-1) * visible, v)


@written.fault("attention", "mask_multiplies")
def attention_mask_multiplies_scores(q, k, v, key_mask, *, causal):
    """Hidden scores are multiplied by zero."""
    visible = visible_keys(q.shape[-3], k.shape[-3], key_mask, causal=causal)
    return mixed_values(jax.nn.softmax(grouped_scores(q, k) * visible, axis=-1), v)


@written.fault("attention", "key_mask_ignored", dtypes=("float32",))
def attention_ignores_padding(q, k, v, key_mask, *, causal):
    """The key mask is an argument that nothing reads."""
    return attention(q, k, v, None, causal=causal)


@written.fault("attention", "hidden_row_is_nan", dtypes=("float32",))
def attention_without_a_guard(q, k, v, key_mask, *, causal):
    """A query that sees no key is divided by zero."""
    visible = visible_keys(q.shape[-3], k.shape[-3], key_mask, causal=causal)
    return mixed_values(jax.nn.softmax(jnp.where(visible, grouped_scores(q, k), -jnp.inf), axis=-1), v)


@written.fault("attention", "softmax_without_gradient", group="backward")
def attention_stops_the_probabilities(q, k, v, key_mask, *, causal):
    """The probabilities are under stop_gradient, so q and k get none."""
    visible = visible_keys(q.shape[-3], k.shape[-3], key_mask, causal=causal)
    return mixed_values(lax.stop_gradient(masked_softmax(grouped_scores(q, k), visible)), v)


@written.fault("attention", "softmax_backward_without_sum", group="backward")
def attention_softmax_backward_without_sum(q, k, v, key_mask, *, causal):
    """The softmax's own backward pass is p·dp; the row's sum is not subtracted."""
    visible = visible_keys(q.shape[-3], k.shape[-3], key_mask, causal=causal)

    @jax.custom_vjp
    def softmax(scores: Array) -> Array:
        return masked_softmax(scores, visible)

    def save(scores: Array) -> tuple[Array, Array]:
        probs = masked_softmax(scores, visible)
        return probs, probs

    softmax.defvjp(save, lambda probs, dprobs: (probs * dprobs,))
    return mixed_values(softmax(grouped_scores(q, k)), v)


@written.fault("attention", "softmax_blocks_of_2_not_rescaled", group="forward")
def attention_flash_without_rescaling(q, k, v, key_mask, *, causal):
    """A flash kernel takes keys two by two and does not rescale what it has when the maximum grows."""

    def flash(q: Array, k: Array, v: Array, key_mask: Array | None) -> Array:
        visible = visible_keys(q.shape[-3], k.shape[-3], key_mask, causal=causal)
        scores = jnp.where(visible, grouped_scores(q, k), -jnp.inf)
        values = jnp.repeat(wide(v), q.shape[-2] // v.shape[-2], axis=-2)
        top = jnp.full((*scores.shape[:-1], 1), -1e30, scores.dtype)
        total, mixed = jnp.zeros_like(top), 0.0
        for start in range(0, k.shape[-3], 2):
            block = scores[..., start : start + 2]
            top = jnp.maximum(top, jnp.max(block, axis=-1, keepdims=True))
            exponentials = jnp.exp(block - top)
            total = total + jnp.sum(exponentials, axis=-1, keepdims=True)
            mixed = mixed + jnp.einsum("...hst,...thd->...hsd", exponentials, values[..., start : start + 2, :, :])
        return jnp.swapaxes(mixed / jnp.where(total == 0, 1, total), -2, -3).astype(v.dtype)

    @jax.custom_vjp
    def kernel(*tensors: Array | None) -> Array:
        return flash(*tensors)

    def save(*tensors: Array | None) -> tuple[Array, tuple[Array | None, ...]]:
        return flash(*tensors), tensors

    def pull(tensors: tuple[Array | None, ...], dy: Array) -> tuple[Array | None, ...]:
        right = partial(attention, causal=causal)
        return jax.vjp(right, *tensors)[1](dy)

    kernel.defvjp(save, pull)
    return kernel(q, k, v, key_mask)


@written.fault("rope", "rope_pairs_swapped")
def rope_pairs_of_the_other_kind(x, *, position, base, interleaved):
    """Halves are turned where neighbours should be, and the reverse."""
    return rope(x, position=position, base=base, interleaved=not interleaved)


@written.fault("rope", "rope_base_1e4")
def rope_with_the_usual_base(x, *, position, base, interleaved):
    """The base of the configuration is not passed on, so it is 10000."""
    return rope(x, position=position, base=1e4, interleaved=interleaved)


@written.fault("rope", "rope_exponent_halved")
def rope_arange_of_half(x, *, position, base, interleaved):
    """The exponent is i / d for i in arange(d / 2), where 2i / d belongs."""
    d = x.shape[-1]
    frequency = base ** (-jnp.arange(d // 2, dtype=wide(x).dtype) / d)
    positions = position + jnp.arange(x.shape[-3], dtype=frequency.dtype)
    return turned(x, positions[:, None] * frequency, interleaved=interleaved)


@written.fault("rope", "rope_sign")
def rope_turned_the_other_way(x, *, position, base, interleaved):
    """The minus stands before the wrong sine."""
    return turned(x, -angles_of(x, position=position, base=base), interleaved=interleaved)


@written.fault("rope", "rope_positions_in_bfloat16", dtypes=("float32", *HALF))
def rope_positions_in_bfloat16(x, *, position, base, interleaved):
    """The positions are an arange of bfloat16."""
    d = x.shape[-1]
    frequency = jnp.asarray([base ** (-i / d) for i in range(0, d, 2)], wide(x).dtype)
    positions = (position + jnp.arange(x.shape[-3])).astype(jnp.bfloat16).astype(frequency.dtype)
    return turned(x, positions[:, None] * frequency, interleaved=interleaved)


@written.fault("rope", "rope_by_linspace")
def rope_by_linspace(x, *, position, base, interleaved):
    """The exponents are a linspace from zero to one with its end included."""
    exponents = jnp.linspace(0, 1, x.shape[-1] // 2, dtype=wide(x).dtype)
    positions = position + jnp.arange(x.shape[-3], dtype=exponents.dtype)
    return turned(x, positions[:, None] * base**-exponents, interleaved=interleaved)


@written.fault("rope", "rope_backward_forward", group="backward")
def rope_backward_turns_forward(x, *, position, base, interleaved):
    """The backward pass calls the forward kernel with the same angles."""
    angles = angles_of(x, position=position, base=base)

    @jax.custom_vjp
    def kernel(x: Array) -> Array:
        return turned(x, angles, interleaved=interleaved)

    kernel.defvjp(lambda x: (kernel(x), None), lambda _, dy: (turned(dy, angles, interleaved=interleaved),))
    return kernel(x)


@written.fault("swiglu", "gate_and_up_swapped")
def swiglu_of_up(gate, up):
    """The halves of the fused projection are taken in the wrong order."""
    return swiglu(up, gate)


@written.fault("swiglu", "gelu_for_silu")
def swiglu_is_geglu(gate, up):
    """The gate goes through GELU."""
    return (jax.nn.gelu(wide(gate), approximate=False) * wide(up)).astype(gate.dtype)


@written.fault("swiglu", "sigmoid_for_silu")
def swiglu_is_glu(gate, up):
    """The gate goes through a sigmoid."""
    return (jax.nn.sigmoid(wide(gate)) * wide(up)).astype(gate.dtype)


@written.fault("swiglu", "silu_of_1.702")
def swiglu_of_quick_gelu(gate, up):
    """The gate goes through x·sigmoid(1.702 x)."""
    gate32 = wide(gate)
    return (gate32 * jax.nn.sigmoid(1.702 * gate32) * wide(up)).astype(gate.dtype)


@written.fault("swiglu", "gate_clamped")
def swiglu_clamps_the_gate(gate, up):
    """The gate is clamped from above at 7, as gpt-oss has it."""
    return (jax.nn.silu(jnp.minimum(wide(gate), 7.0)) * wide(up)).astype(gate.dtype)


@written.fault("gelu", "gelu_of_the_other_formula")
def gelu_by_jax_default(x, *, approximate):
    """jax.nn.gelu is called with its default, which is the hyperbolic tangent; asked for that, the error function."""
    return gelu(x, approximate=not approximate)


@written.fault("gelu", "gelu_by_sigmoid")
def gelu_quick(x, *, approximate):
    """GELU is x·sigmoid(1.702 x)."""
    x32 = wide(x)
    return (x32 * jax.nn.sigmoid(1.702 * x32)).astype(x.dtype)


@written.fault("gelu", "silu_for_gelu")
def gelu_is_silu(x, *, approximate):
    """SiLU is called in GELU's place."""
    return jax.nn.silu(wide(x)).astype(x.dtype)


@written.fault("pre_ln_block", "second_residual_from_x")
def block_adds_x_again(x, parameters, k_cache, v_cache, key_mask, *, config, position):
    """The second sum starts from x, a variable of the wrong name."""
    p = parameters
    h = x + attended(normed(x, p, "attention_norm", config), p, k_cache, v_cache, key_mask, config, position)
    return x + fed_forward(normed(h, p, "ffn_norm", config), p, config)


@written.fault("pre_ln_block", "parallel_branches")
def block_in_parallel(x, parameters, k_cache, v_cache, key_mask, *, config, position):
    """Both branches read x, as in GPT-J, each by its own norm."""
    p = parameters
    attn = attended(normed(x, p, "attention_norm", config), p, k_cache, v_cache, key_mask, config, position)
    return x + attn + fed_forward(normed(x, p, "ffn_norm", config), p, config)


@written.fault("pre_ln_block", "post_ln")
def block_post_ln(x, parameters, k_cache, v_cache, key_mask, *, config, position):
    """The sums are normalised, as in the first transformer."""
    p = parameters
    h = normed(x + attended(x, p, k_cache, v_cache, key_mask, config, position), p, "attention_norm", config)
    return normed(h + fed_forward(h, p, config), p, "ffn_norm", config)


@written.fault("pre_ln_block", "norm_weights_shared")
def block_with_one_norm(x, parameters, k_cache, v_cache, key_mask, *, config, position):
    """One norm module is called twice."""
    p = parameters
    h = x + attended(normed(x, p, "attention_norm", config), p, k_cache, v_cache, key_mask, config, position)
    return h + fed_forward(normed(h, p, "attention_norm", config), p, config)


@written.fault("pre_ln_block", "norm_eps_1e-6")
def block_with_default_eps(x, parameters, k_cache, v_cache, key_mask, *, config, position):
    """The norms are built with flax's eps of 1e-6."""
    usual = replace(config, eps=1e-6)
    return pre_ln_block(x, parameters, k_cache, v_cache, key_mask, config=usual, position=position)


@written.fault("pre_ln_block", "attention_residual_without_gradient", group="backward")
def block_stops_the_stream(x, parameters, k_cache, v_cache, key_mask, *, config, position):
    """The stream is under stop_gradient where attention's output is added to it."""
    p = parameters
    attn = attended(normed(x, p, "attention_norm", config), p, k_cache, v_cache, key_mask, config, position)
    h = lax.stop_gradient(x) + attn
    return h + fed_forward(normed(h, p, "ffn_norm", config), p, config)


FAULTS = tuple(written.faults)
