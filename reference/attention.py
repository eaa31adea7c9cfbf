"""Scaled dot-product attention in float64: Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762.

With grouped queries: Ainslie et al. 2023, "GQA", arXiv:2305.13245. A window: Beltagy et al. 2020, "Longformer",
arXiv:2004.05150. Sinks: OpenAI 2025, "gpt-oss", arXiv:2508.10925. A soft cap: Gemma Team 2024, "Gemma 2", arXiv:2408.00118.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from reference.arguments import check_alike, check_float64, check_shape
from reference.rows import sum_rows

Array = np.ndarray


class Attention(NamedTuple):
    """The output of `attention` and the intermediates on the way to it."""

    y: Float64[Array, "*batch s h d_head"]
    scores: Float64[Array, "*batch h s t"]
    capped: Float64[Array, "*batch h s t"]
    probs: Float64[Array, "*batch h s t"]


class AttentionGradients(NamedTuple):
    """The gradients of ⟨y, dy⟩; `dsink` is None where there is no sink."""

    dq: Float64[Array, "*batch s h d_head"]
    dk: Float64[Array, "*batch t h_kv d_head"]
    dv: Float64[Array, "*batch t h_kv d_head"]
    dsink: Float64[Array, " h"] | None


def visible_keys(
    s: int, t: int, *, causal: bool = True, window: int | None = None, key_mask: Bool[Array, "*batch t"] | None = None
) -> Bool[Array, "*#batch 1 s t"]:
    """Which of t keys each of s queries may attend to.

    The queries are the last s of the t positions (the others are cached), so query i stands at position t − s + i, and
    `causal` shows it the keys up to there. Of these a `window` leaves the last ones, so many, its own included. `key_mask` is
    False for keys that are padding.
    """
    visible = np.tri(s, t, t - s, dtype=bool) if causal else np.ones((s, t), dtype=bool)  # s t
    if window is not None:
        visible = visible & ~np.tri(s, t, t - s - window, dtype=bool)
    return visible[None] if key_mask is None else visible & key_mask[..., None, None, :]


def dot_products(
    q: Float64[Array, "*batch s h d_head"], k: Float64[Array, "*batch t h_kv d_head"]
) -> Float64[Array, "*batch h s t"]:
    """Every query with every key of its group: query head h reads key head h // (h / h_kv)."""
    return np.einsum("...shd,...thd->...hst", q, repeat_heads(k, q.shape[-2]))


def soft_cap(scores: Float64[Array, "*batch h s t"], cap: float) -> Float64[Array, "*batch h s t"]:
    r"""Bend scores so that none is beyond the cap.

    $$ c = \mathrm{cap}\, \tanh(s / \mathrm{cap}) $$
    """
    return cap * np.tanh(scores / cap)


def soft_cap_vjp(
    dcapped: Float64[Array, "*batch h s t"], scores: Float64[Array, "*batch h s t"], cap: float
) -> Float64[Array, "*batch h s t"]:
    r"""Pull a cotangent back to the scores.

    $$ ds = dc / \cosh^2(s / \mathrm{cap}) $$

    That is dc · (1 − tanh²), whose difference leaves nothing of a score far beyond the cap.
    """
    with np.errstate(over="ignore"):
        return dcapped / np.square(np.cosh(scores / cap))


def with_sink(
    scores: Float64[Array, "*batch h s t"], visible: Bool[Array, "*#batch 1 s t"], sink: Float64[Array, " h"]
) -> tuple[Float64[Array, "*batch h s t+1"], Bool[Array, "*#batch 1 s t+1"]]:
    """The scores, and behind them the sink's: that of one more key, which every query of its head sees."""
    seen = np.ones((*visible.shape[:-1], 1), dtype=bool)  # *#batch 1 s 1
    column = np.broadcast_to(sink[:, None, None], (*scores.shape[:-1], 1))  # *batch h s 1
    return np.concatenate([scores, column], axis=-1), np.concatenate([visible, seen], axis=-1)


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
    sink: Float64[Array, " h"] | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    attention_scale: float | None = None,
    key_mask: Bool[Array, "*batch t"] | None = None,
) -> Attention:
    r"""Average the values with weights that the queries and keys agree on.

    $$ y = \mathrm{softmax}(q k^\top / \sqrt{d_{head}})\, v $$

    Grouped-query where h_kv < h, multi-query where it is 1. A query that may see no key at all gives zeros, and no gradient:
    the policy of this kit, and of torch's scaled_dot_product_attention.

    Today's models add to it. An `attention_scale` stands for 1/√d_head (Gemma). A `softcap` c makes c · tanh(scores / c) of the
    scaled scores, before any is hidden (Gemma 2). A `sink` is one more score a head, of no key, in the softmax (gpt-oss). Of a
    `window` of w keys a query sees its own and the w − 1 before it (Mistral).

    Raises `ValueError` for heads that do not group, keys and values of unlike shapes, more queries than keys, a key mask
    that is not of bools and shape [*batch, t], a sink that is not of shape [h], or a window of no key.
    """
    _check("attention", q, k, v, sink, key_mask, window)
    t = k.shape[-3]
    scores = _scaled(dot_products(q, k), q, attention_scale)  # *batch h s t
    capped = scores if softcap is None else soft_cap(scores, softcap)  # *batch h s t
    visible = visible_keys(q.shape[-3], t, causal=causal, window=window, key_mask=key_mask)
    probs = _probs(capped, visible, sink)[..., :t]  # *batch h s t
    return Attention(mix(probs, v), scores, capped, probs)


def attention_vjp(
    dy: Float64[Array, "*batch s h d_head"],
    q: Float64[Array, "*batch s h d_head"],
    k: Float64[Array, "*batch t h_kv d_head"],
    v: Float64[Array, "*batch t h_kv d_head"],
    sink: Float64[Array, " h"] | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    attention_scale: float | None = None,
    key_mask: Bool[Array, "*batch t"] | None = None,
) -> AttentionGradients:
    r"""Pull a cotangent dy of y back to q, k, v and the sink.

    $$ dp = dy\, v^\top, \qquad ds = p\,(dp - \textstyle\sum_t p\, dp) / \sqrt{d_{head}}, \qquad
       dq = ds\, k, \qquad dk = ds^\top q, \qquad dv = p^\top dy $$

    A key or value head gets the sum over its group.
    """
    _check("attention_vjp", q, k, v, sink, key_mask, window)
    check_alike("attention_vjp", q=q, dy=dy)
    t = k.shape[-3]
    scores = _scaled(dot_products(q, k), q, attention_scale)  # *batch h s t
    capped = scores if softcap is None else soft_cap(scores, softcap)  # *batch h s t
    visible = visible_keys(q.shape[-3], t, causal=causal, window=window, key_mask=key_mask)
    probs = _probs(capped, visible, sink)  # *batch h s t, or with a sink t + 1

    dprobs = np.zeros_like(probs)
    dprobs[..., :t] = dot_products(dy, v)
    dcapped = softmax_vjp(dprobs, probs)  # *batch h s t, or with a sink t + 1
    dscores = dcapped[..., :t] if softcap is None else soft_cap_vjp(dcapped[..., :t], scores, softcap)  # *batch h s t
    dproducts = _scaled(dscores, q, attention_scale)  # *batch h s t
    dq = mix(dproducts, k)  # *batch s h d_head
    dk = mix_vjp(q, dproducts, k.shape[-2])  # *batch t h_kv d_head
    dv = mix_vjp(dy, probs[..., :t], v.shape[-2])  # *batch t h_kv d_head
    dsink = None if sink is None else sum_rows(np.sum(dcapped[..., t], axis=-1))  # h
    return AttentionGradients(dq, dk, dv, dsink)


def _scaled(products: Array, q: Array, attention_scale: float | None) -> Array:
    return products / np.sqrt(q.shape[-1]) if attention_scale is None else products * attention_scale


def _probs(scores: Array, visible: Array, sink: Array | None) -> Array:
    """With a sink, its own behind those of the keys."""
    return softmax(scores, visible) if sink is None else softmax(*with_sink(scores, visible, sink))


def _check(op: str, q: Array, k: Array, v: Array, sink: Array | None, key_mask: Array | None, window: int | None) -> None:
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
    if window is not None and window < 1:
        raise ValueError(f"{op}: window is {window}; a query sees one key at least, its own")
    if sink is not None:
        check_shape(op, "sink", sink, (h,), q=q)
        check_float64(op, sink=sink)
    if key_mask is not None:
        check_shape(op, "key_mask", key_mask, k.shape[:-2], k=k)
        if key_mask.dtype != np.bool:
            raise ValueError(f"{op}: key_mask is {key_mask.dtype}; it must be bool")
