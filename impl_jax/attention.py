"""Scaled dot-product attention (Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762) for JAX.

With grouped queries: Ainslie et al. 2023, "GQA", arXiv:2305.13245. And with what today's models add: a window (Mistral), sinks
(gpt-oss), a soft cap and a scale of one's own (Gemma 2).
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from impl_jax.linear import contract
from impl_jax.rows import round_to

KeyMask = Bool[Array, "*batch t"] | Float[Array, "*batch t"]


class Attention(NamedTuple):
    """The output of `attention_in_steps` and the intermediates on the way to it."""

    y: Float[Array, "*batch s h d_head"]
    scores: Float[Array, "*batch h s t"]
    capped: Float[Array, "*batch h s t"]
    probs: Float[Array, "*batch h s t"]


def visible_keys(
    s: int, t: int, *, causal: bool = True, window: int | None = None, key_mask: KeyMask | None = None
) -> Bool[Array, "*#batch 1 s t"]:
    """Which of t keys each of s queries may attend to.

    The queries are the last s of the t positions (the others are cached), so query i stands at position t − s + i, and
    `causal` shows it the keys up to there. Of these a `window` leaves the last ones, so many, its own included. `key_mask` is
    False, or 0, for keys that are padding.
    """
    position = jnp.arange(t - s, t)[:, None] if causal else jnp.full((s, 1), t)
    visible = jnp.arange(t) <= position  # s t
    if window is not None:
        visible = visible & (jnp.arange(t) > jnp.arange(t - s, t)[:, None] - window)
    return visible[None] if key_mask is None else visible & key_mask.astype(bool)[..., None, None, :]


def dot_products(q: Float[Array, "*batch s h d_head"], k: Float[Array, "*batch t h_kv d_head"]) -> Float[Array, "*batch h s t"]:
    """Every query with every key of its group: query head h reads key head h // (h / h_kv)."""
    *batch, s, h, d_head = q.shape
    grouped = q.reshape(*batch, s, k.shape[-2], -1, d_head)  # *batch s h_kv group d_head
    return contract("...skgd,...tkd->...kgst", grouped, k).reshape(*batch, h, s, -1)


def softmax(
    scores: Float[Array, "*batch h s t"], visible: Bool[Array, "*#batch 1 s t"], sink: Float[Array, " h"] | None = None
) -> Float[Array, "*batch h s t"]:
    """Exponentials of the visible scores, normalised over the keys; a row that sees no key is zeros, and so is its gradient.

    A `sink` is one more score of every row of its head, of no key: it has its share of one, and no value.
    """
    seen = jnp.where(visible, scores, -jnp.inf)
    top = jnp.max(seen, axis=-1, keepdims=True, initial=-jnp.inf)  # *batch h s 1
    sunk = None if sink is None else sink.astype(scores.dtype)[:, None, None]  # h 1 1
    top = lax.stop_gradient(top if sunk is None else jnp.maximum(top, sunk))  # *batch h s 1
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    exponentials = jnp.exp(seen - top)  # *batch h s t
    total = jnp.sum(exponentials, axis=-1, keepdims=True)  # *batch h s 1
    total = total if sunk is None else total + jnp.exp(sunk - top)
    return exponentials / jnp.where(total == 0, 1.0, total)


def mix(probs: Float[Array, "*batch h s t"], v: Float[Array, "*batch t h_kv d_head"]) -> Float[Array, "*batch s h d_head"]:
    """The values, averaged with the probabilities."""
    *batch, h, s, t = probs.shape
    grouped = probs.reshape(*batch, v.shape[-2], -1, s, t)  # *batch h_kv group s t
    return contract("...kgst,...tkd->...skgd", grouped, v).reshape(*batch, s, h, -1)


def attention(
    q: Float[Array, "*batch s h d_head"],
    k: Float[Array, "*batch t h_kv d_head"],
    v: Float[Array, "*batch t h_kv d_head"],
    key_mask: KeyMask | None = None,
    sink: Float[Array, " h"] | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    attention_scale: float | None = None,
) -> Float[Array, "*batch s h d_head"]:
    r"""Average the values with weights that the queries and keys agree on.

    $$ y = \mathrm{softmax}(q k^\top / \sqrt{d_{head}})\, v $$

    Grouped-query where h_kv < h, multi-query where it is 1. Scores, softmax and sums are in float32 (float64 for float64),
    and y is rounded once, to q's dtype. A query that may see no key at all gives zeros, and no gradient.

    Of a `window` of w keys a query sees its own and the w − 1 before it; `attention_scale` stands for 1/√d_head. With a
    `softcap` c, scores become c · tanh(scores / c) before any is hidden; a `sink` is one more score a head, of no key.
    Raises `ValueError` for heads that do not group, keys and values of unlike shapes, or more queries than keys.
    """
    how: dict[str, Any] = {"window": window, "softcap": softcap, "attention_scale": attention_scale}
    return attention_in_steps(q, k, v, key_mask, sink, causal=causal, **how).y


def attention_in_steps(
    q: Float[Array, "*batch s h d_head"],
    k: Float[Array, "*batch t h_kv d_head"],
    v: Float[Array, "*batch t h_kv d_head"],
    key_mask: KeyMask | None = None,
    sink: Float[Array, " h"] | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    attention_scale: float | None = None,
) -> Attention:
    """`attention` with its scores, capped or not, and probabilities, which are float32 (float64 for float64)."""
    _check(q, k, v)
    products = dot_products(q, k)  # *batch h s t
    scores = products / math.sqrt(q.shape[-1]) if attention_scale is None else products * attention_scale  # *batch h s t
    capped = scores if softcap is None else softcap * jnp.tanh(scores / softcap)  # *batch h s t
    visible = visible_keys(q.shape[-3], k.shape[-3], causal=causal, window=window, key_mask=key_mask)  # *#batch 1 s t
    probs = softmax(capped, visible, sink)  # *batch h s t
    return Attention(round_to(mix(probs, v), q.dtype), scores, capped, probs)


def _check(q: Array, k: Array, v: Array) -> None:
    if k.shape != v.shape:
        raise ValueError(f"attention: k has shape {list(k.shape)} and v {list(v.shape)}; they must be the same")
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(f"attention: {q.shape[-2]} query heads do not share {k.shape[-2]} key heads evenly")
    if q.shape[-3] > k.shape[-3]:
        raise ValueError(f"attention: {q.shape[-3]} queries are more than {k.shape[-3]} keys, the last of which are their own")
