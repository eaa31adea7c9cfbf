"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) for PyTorch.

With grouped queries: Ainslie et al. 2023, "GQA", arXiv:2305.13245. And with what today's models add: a window (Mistral), sinks
(gpt-oss), a soft cap and a scale of one's own (Gemma 2).
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from impl_torch.rows import compute_dtype

KeyMask = Bool[Tensor, "*batch t"] | Float[Tensor, "*batch t"]


class Attention(NamedTuple):
    """The output of `attention_in_steps` and the intermediates on the way to it."""

    y: Float[Tensor, "*batch s h d_head"]
    scores: Float[Tensor, "*batch h s t"]
    capped: Float[Tensor, "*batch h s t"]
    probs: Float[Tensor, "*batch h s t"]


def visible_keys(
    s: int,
    t: int,
    key_mask: KeyMask | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    device: torch.device | None = None,
) -> Bool[Tensor, "*#batch 1 s t"]:
    """Which of t keys each of s queries may attend to.

    The queries are the last s of the t positions (the others are cached), so query i stands at position t − s + i, and
    `causal` shows it the keys up to there. Of these a `window` leaves the last ones, so many, its own included. `key_mask` is
    False, or zero, for keys that are padding.
    """
    visible = torch.ones(1, s, t, dtype=torch.bool, device=device)
    visible = visible.tril(t - s) if causal else visible
    visible = visible if window is None else visible.triu(t - s - window + 1)
    return visible if key_mask is None else visible & (key_mask != 0)[..., None, None, :]


def dot_products(
    q: Float[Tensor, "*batch s h d_head"], k: Float[Tensor, "*batch t h_kv d_head"]
) -> Float[Tensor, "*batch h s t"]:
    """Every query with every key of its group, in float32 or wider: query head h reads key head h // (h / h_kv)."""
    compute = compute_dtype(q)
    return torch.einsum("...shd,...thd->...hst", q.to(compute), repeat_heads(k, q.shape[-2]).to(compute))


def softmax(
    scores: Float[Tensor, "*batch h s t"], visible: Bool[Tensor, "*#batch 1 s t"], sink: Float[Tensor, " h"] | None = None
) -> Float[Tensor, "*batch h s t"]:
    """Exponentials of the visible scores, normalised over the keys; a row that sees no key is all zeros.

    A `sink` is the score of one more key, which every query of its head sees, and which has no value.
    """
    if sink is not None:
        sunk = sink.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)  # *batch h s 1
        seen = torch.cat([scores.masked_fill(~visible, -torch.inf), sunk], dim=-1)  # *batch h s t+1
        return torch.softmax(seen, dim=-1)[..., :-1]
    visible, blind = _sighted(visible)
    return torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1).masked_fill(blind, 0.0)


def mix(probs: Float[Tensor, "*batch h s t"], v: Float[Tensor, "*batch t h_kv d_head"]) -> Float[Tensor, "*batch s h d_head"]:
    """The values, averaged with the probabilities in their dtype, and rounded once."""
    values = repeat_heads(v, probs.shape[-3]).to(probs.dtype)  # *batch t h d_head
    return torch.einsum("...hst,...thd->...shd", probs, values).to(v.dtype)


def repeat_heads(kv: Float[Tensor, "*batch t h_kv d_head"], h: int) -> Float[Tensor, "*batch t h d_head"]:
    """Each key or value head as often as there are query heads in its group, one after the other."""
    return kv.repeat_interleave(h // kv.shape[-2], dim=-2)


def attention(
    q: Float[Tensor, "*batch s h d_head"],
    k: Float[Tensor, "*batch t h_kv d_head"],
    v: Float[Tensor, "*batch t h_kv d_head"],
    key_mask: KeyMask | None = None,
    sink: Float[Tensor, " h"] | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    attention_scale: float | None = None,
) -> Float[Tensor, "*batch s h d_head"]:
    r"""Average the values with weights that the queries and keys agree on.

    $$ y = \mathrm{softmax}(q k^\top / \sqrt{d_{head}})\, v $$

    Grouped-query where h_kv < h, multi-query where it is 1. A query that may see no key at all gives zeros, and no gradient.
    torch's own attention, whose `is_causal` would align s queries with the first s of t keys: here they are the last.

    Of a `window` of w keys a query sees its own and the w − 1 before it; `attention_scale` stands for 1/√d_head. With a
    `softcap` c, scores become c · tanh(scores / c) before any is hidden; a `sink` is one more score a head, of no key: torch's
    own attention has neither, and it is computed in steps.
    Raises `ValueError` for heads that do not group, keys and values of unlike shapes, or more queries than keys.
    """
    if softcap is not None or sink is not None:
        how: dict[str, Any] = {"window": window, "softcap": softcap, "attention_scale": attention_scale}
        return attention_in_steps(q, k, v, key_mask, sink, causal=causal, **how).y
    _check(q, k, v)
    s, t = q.shape[-3], k.shape[-3]
    grouped: Any = {"enable_gqa": True} if q.shape[-2] != k.shape[-2] else {}  # said where not so, it would rule kernels out
    grouped |= {} if attention_scale is None else {"scale": attention_scale}
    q, k, v = (tensor.transpose(-3, -2) for tensor in (q, k, v))  # *batch h s d_head
    if key_mask is None and window is None and (s == 1 or not causal):
        y = scaled_dot_product_attention(q, k, v, **grouped)
    elif key_mask is None and window is None and s == t:
        y = scaled_dot_product_attention(q, k, v, is_causal=True, **grouped)
    else:
        visible, blind = _sighted(visible_keys(s, t, key_mask, causal=causal, window=window, device=q.device))
        visible = visible.expand(*q.shape[:-3], 1, s, t)  # fused kernels want a mask of the queries' rank
        y = scaled_dot_product_attention(q, k, v, attn_mask=visible, **grouped).masked_fill(blind, 0.0)
    return y.transpose(-3, -2)


def attention_in_steps(
    q: Float[Tensor, "*batch s h d_head"],
    k: Float[Tensor, "*batch t h_kv d_head"],
    v: Float[Tensor, "*batch t h_kv d_head"],
    key_mask: KeyMask | None = None,
    sink: Float[Tensor, " h"] | None = None,
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
    capped = scores if softcap is None else softcap * torch.tanh(scores / softcap)  # *batch h s t
    visible = visible_keys(q.shape[-3], k.shape[-3], key_mask, causal=causal, window=window, device=q.device)
    probs = softmax(capped, visible, sink)  # *batch h s t
    return Attention(mix(probs, v), scores, capped, probs)


def _sighted(visible: Bool[Tensor, "*batch 1 s t"]) -> tuple[Bool[Tensor, "*batch 1 s t"], Bool[Tensor, "*batch 1 s 1"]]:
    """Show all keys to the queries that see none, and say which they are: 0 / 0 must not occur, or its gradient is NaN."""
    blind = ~visible.any(dim=-1, keepdim=True)  # *batch 1 s 1
    return visible | blind, blind


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if k.shape != v.shape:
        raise ValueError(f"attention: k has shape {list(k.shape)} and v {list(v.shape)}; they must be the same")
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(f"attention: {q.shape[-2]} query heads do not share {k.shape[-2]} key heads evenly")
    if q.shape[-3] > k.shape[-3]:
        raise ValueError(f"attention: {q.shape[-3]} queries are more than {k.shape[-3]} keys, the last of which are their own")
