"""Scaled dot-product attention in float64: Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762.

With grouped queries: Ainslie et al. 2023, "GQA", arXiv:2305.13245.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from reference.arguments import check_alike, check_float64, check_shape

Array = np.ndarray


class Attention(NamedTuple):
    """The output of `attention` and the intermediates on the way to it."""

    y: Float64[Array, "*batch s h d_head"]
    scores: Float64[Array, "*batch h s t"]
    probs: Float64[Array, "*batch h s t"]


class AttentionGradients(NamedTuple):
    """The gradients of ⟨y, dy⟩."""

    dq: Float64[Array, "*batch s h d_head"]
    dk: Float64[Array, "*batch t h_kv d_head"]
    dv: Float64[Array, "*batch t h_kv d_head"]


def visible_keys(
    s: int, t: int, *, causal: bool = True, key_mask: Bool[Array, "*batch t"] | None = None
) -> Bool[Array, "*#batch 1 s t"]:
    """Which of t keys each of s queries may attend to.

    The queries are the last s of the t positions (the others are cached), so query i stands at position t − s + i, and
    `causal` shows it the keys up to there. `key_mask` is False for keys that are padding.
    """
    visible = np.tri(s, t, t - s, dtype=bool) if causal else np.ones((s, t), dtype=bool)  # s t
    return visible[None] if key_mask is None else visible & key_mask[..., None, None, :]


def dot_products(
    q: Float64[Array, "*batch s h d_head"], k: Float64[Array, "*batch t h_kv d_head"]
) -> Float64[Array, "*batch h s t"]:
    """Every query with every key of its group: query head h reads key head h // (h / h_kv)."""
    return np.einsum("...shd,...thd->...hst", q, repeat_heads(k, q.shape[-2]))


def softmax(scores: Float64[Array, "*batch h s t"], visible: Bool[Array, "*#batch 1 s t"]) -> Float64[Array, "*batch h s t"]:
    """Exponentials of the visible scores, normalised over the keys; a row that sees no key is all zeros."""
    seen = np.where(visible, scores, -np.inf)
    top = np.max(seen, axis=-1, keepdims=True, initial=-np.inf)  # *batch h s 1
    exponentials = np.exp(seen - np.where(np.isfinite(top), top, 0.0))  # *batch h s t
    total = np.sum(exponentials, axis=-1, keepdims=True)  # *batch h s 1
    return exponentials / np.where(total == 0, 1.0, total)


def softmax_vjp(
    dprobs: Float64[Array, "*batch h s t"], probs: Float64[Array, "*batch h s t"]
) -> Float64[Array, "*batch h s t"]:
    r"""Pull a cotangent back to the scores.

    $$ ds = p\,(dp - \textstyle\sum_t p\, dp) $$
    """
    return probs * (dprobs - np.sum(probs * dprobs, axis=-1, keepdims=True))


def mix(
    probs: Float64[Array, "*batch h s t"], v: Float64[Array, "*batch t h_kv d_head"]
) -> Float64[Array, "*batch s h d_head"]:
    """The values, averaged with the probabilities."""
    return np.einsum("...hst,...thd->...shd", probs, repeat_heads(v, probs.shape[-3]))


def mix_vjp(
    dy: Float64[Array, "*batch s h d_head"], probs: Float64[Array, "*batch h s t"], h_kv: int
) -> Float64[Array, "*batch t h_kv d_head"]:
    """Pull a cotangent of the averages back to the values: every query gives its share of dy, and a group adds up."""
    return sum_groups(np.einsum("...hst,...shd->...thd", probs, dy), h_kv)


def repeat_heads(kv: Float64[Array, "*batch t h_kv d_head"], h: int) -> Float64[Array, "*batch t h d_head"]:
    """Each key or value head as often as there are query heads in its group, one after the other."""
    return np.repeat(kv, h // kv.shape[-2], axis=-2)


def sum_groups(d: Float64[Array, "*batch t h d_head"], h_kv: int) -> Float64[Array, "*batch t h_kv d_head"]:
    """The transpose of `repeat_heads`: the gradients of a group, added up."""
    *batch, h, d_head = d.shape
    return d.reshape(*batch, h_kv, h // h_kv, d_head).sum(axis=-2)


def attention(
    q: Float64[Array, "*batch s h d_head"],
    k: Float64[Array, "*batch t h_kv d_head"],
    v: Float64[Array, "*batch t h_kv d_head"],
    *,
    causal: bool = True,
    key_mask: Bool[Array, "*batch t"] | None = None,
) -> Attention:
    r"""Average the values with weights that the queries and keys agree on.

    $$ y = \mathrm{softmax}(q k^\top / \sqrt{d_{head}})\, v $$

    Grouped-query where h_kv < h, multi-query where it is 1. A query that may see no key at all gives zeros, and no gradient:
    the policy of this kit, and of torch's scaled_dot_product_attention.
    Raises `ValueError` for heads that do not group, keys and values of unlike shapes, more queries than keys, or a key mask
    that is not of bools and shape [*batch, t].
    """
    _check("attention", q, k, v, key_mask)
    scores = dot_products(q, k) / np.sqrt(q.shape[-1])  # *batch h s t
    probs = softmax(scores, visible_keys(q.shape[-3], k.shape[-3], causal=causal, key_mask=key_mask))  # *batch h s t
    return Attention(mix(probs, v), scores, probs)


def attention_vjp(
    dy: Float64[Array, "*batch s h d_head"],
    q: Float64[Array, "*batch s h d_head"],
    k: Float64[Array, "*batch t h_kv d_head"],
    v: Float64[Array, "*batch t h_kv d_head"],
    *,
    causal: bool = True,
    key_mask: Bool[Array, "*batch t"] | None = None,
) -> AttentionGradients:
    r"""Pull a cotangent dy of y back to q, k and v.

    $$ dp = dy\, v^\top, \qquad ds = p\,(dp - \textstyle\sum_t p\, dp) / \sqrt{d_{head}}, \qquad
       dq = ds\, k, \qquad dk = ds^\top q, \qquad dv = p^\top dy $$

    A key or value head gets the sum over its group.
    """
    _check("attention_vjp", q, k, v, key_mask)
    check_alike("attention_vjp", q=q, dy=dy)
    _, _, probs = attention(q, k, v, causal=causal, key_mask=key_mask)
    dscores = softmax_vjp(dot_products(dy, v), probs) / np.sqrt(q.shape[-1])  # *batch h s t
    dq = mix(dscores, k)  # *batch s h d_head
    dk = mix_vjp(q, dscores, k.shape[-2])  # *batch t h_kv d_head
    dv = mix_vjp(dy, probs, v.shape[-2])  # *batch t h_kv d_head
    return AttentionGradients(dq, dk, dv)


def _check(op: str, q: Array, k: Array, v: Array, key_mask: Array | None) -> None:
    for name, heads in (("q", q), ("k", k)):
        if heads.ndim < 3:
            raise ValueError(f"{op}: {name} has shape {heads.shape}; it must be [*batch, s, h, d_head]")
    check_shape(op, "k", k, (*q.shape[:-3], *k.shape[-3:-1], q.shape[-1]), q=q)
    check_alike(op, k=k, v=v)
    check_float64(op, q=q)
    (s, h), (t, h_kv) = q.shape[-3:-1], k.shape[-3:-1]
    if h_kv == 0 or h % h_kv:
        raise ValueError(f"{op}: {h} query heads do not share {h_kv} key heads evenly")
    if s > t:
        raise ValueError(f"{op}: {s} queries are more than {t} keys, the last of which are their own")
    if key_mask is not None:
        check_shape(op, "key_mask", key_mask, k.shape[:-2], k=k)
        if key_mask.dtype != np.bool:
            raise ValueError(f"{op}: key_mask is {key_mask.dtype}; it must be bool")
