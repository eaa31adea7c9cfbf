"""Rotary embedding and attention in steps; each returns y and the function that pulls dy back to its inputs.

Query heads stand in groups, group by group: [*batch, s, h, e] is read as [*batch, h_kv, group, s, e], and keys and values,
[*batch, t, h_kv, e], as [*batch, h_kv, 1, t, e], so that every product here is one of matrices.
"""

import math
from typing import Any

import numpy as np

from ports.numpy.rows import Array, Backward, widen


def rope(
    x: Array, *, position: int, base: float, interleaved: bool, rotary_features: int | None = None
) -> tuple[Array, Backward]:
    r"""Turn every pair of features by its angle; backward, by the same angle the other way.

    $$ y_1 = x_1 \cos\theta - x_2 \sin\theta, \qquad y_2 = x_2 \cos\theta + x_1 \sin\theta, \qquad
       \theta_{p,i} = p\, \mathrm{base}^{-2i/d} $$

    Of d features, all of the head, or the first `rotary_features`; the others stay.
    """
    s, d = x.shape[-3], rotary_features or x.shape[-1]
    # The frequencies in float64, rounded once: positions multiply what they are off by.
    frequencies = (float(base) ** (-np.arange(0, d, 2) / d)).astype(widen(x).dtype)  # d_head/2
    angles = np.arange(position, position + s, dtype=frequencies.dtype)[:, None, None] * frequencies  # s 1 d_head/2
    cos, sin = np.cos(angles), np.sin(angles)
    pairs = (np.s_[..., 0:d:2], np.s_[..., 1:d:2]) if interleaved else (np.s_[..., : d // 2], np.s_[..., d // 2 : d])

    def turn(a: Array, sin: Array) -> Array:
        wide, turned = widen(a), a.copy()
        first, second = (wide[pair] for pair in pairs)
        turned[pairs[0]] = first * cos - second * sin
        turned[pairs[1]] = second * cos + first * sin
        return turned

    return turn(x, sin), lambda dy: (turn(dy, -sin),)


def dot_products(q: Array, k: Array, *, attention_scale: float | None = None) -> tuple[Array, Backward]:
    """The scores, [*batch, h, s, t]: every query with every key of its group, over the root of the features, or scaled."""
    scale = 1 / math.sqrt(q.shape[-1]) if attention_scale is None else attention_scale
    queries, keys = _grouped(q, k.shape[-2]), _grouped(k, k.shape[-2])

    def backward(dscores: Array) -> tuple[Any, ...]:
        d = scale * _split(dscores, k.shape[-2])
        return _flat(d @ keys).astype(q.dtype), _flat_sum(d.mT @ queries).astype(k.dtype)

    return _heads(scale * (queries @ keys.mT)), backward


def soft_cap(scores: Array, *, cap: float) -> tuple[Array, Backward]:
    r"""Scores bent to stay below the cap.

    $$ y = c \tanh(s / c), \qquad ds = dy\,(1 - \tanh^2(s / c)) $$
    """
    tanh = np.tanh(scores / cap)
    return cap * tanh, lambda dy: (dy * (1 - np.square(tanh)),)


def softmax(
    scores: Array, key_mask: Array | None, sink: Array | None, *, causal: bool, window: int | None = None
) -> tuple[Array, Backward]:
    r"""The visible scores' exponentials over their sum; a query that sees no key has zeros, and no gradient.

    $$ p = e^s / \textstyle\sum_t e^s, \qquad ds = p\,(dp - \textstyle\sum_t p\, dp) $$

    The sum has the head's `sink` in it, if there is one: one more score, of no key.
    """
    s, t = scores.shape[-2:]
    visible = np.tri(s, t, t - s, dtype=bool) if causal else np.ones((s, t), dtype=bool)  # the queries are the last of the t
    if window is not None:
        visible = visible & ~np.tri(s, t, t - s - window, dtype=bool)
    if key_mask is not None:
        visible = visible & (key_mask != 0)[..., None, None, :]  # *batch 1 s t
    sunk = np.finfo(scores.dtype).min if sink is None else widen(sink)[:, None, None]  # h 1 1
    top = np.maximum(np.max(scores, axis=-1, keepdims=True, where=visible, initial=np.finfo(scores.dtype).min), sunk)
    exponentials = np.exp(scores - top, where=visible, out=np.zeros_like(scores))  # *batch h s t
    of_sink = np.zeros_like(top) if sink is None else np.exp(sunk - top)  # *batch h s 1
    total = np.maximum(exponentials.sum(axis=-1, keepdims=True) + of_sink, 1)  # the largest is 1, or there is none
    probs = exponentials / total

    def backward(dprobs: Array) -> tuple[Any, ...]:
        mean = np.sum(probs * dprobs, axis=-1, keepdims=True)  # *batch h s 1
        dsink = None if sink is None else -np.sum(of_sink / total * mean, axis=(*range(scores.ndim - 3), -2, -1))  # h
        return probs * (dprobs - mean), None, dsink

    return probs, backward


def mix(probs: Array, v: Array) -> tuple[Array, Backward]:
    """The values, averaged with the probabilities."""
    grouped, values = _split(probs, v.shape[-2]), _grouped(v, v.shape[-2])

    def backward(dy: Array) -> tuple[Any, ...]:
        d = _grouped(dy, v.shape[-2])
        return _heads(d @ values.mT), _flat_sum(grouped.mT @ d).astype(v.dtype)

    return _flat(grouped @ values).astype(v.dtype), backward


def _grouped(x: Array, h_kv: int) -> Array:
    """[*batch, s, h, e] to [*batch, h_kv, group, s, e], wide."""
    return _split(np.swapaxes(widen(x), -3, -2), h_kv)


def _split(x: Array, h_kv: int) -> Array:
    """[*batch, h, s, e] to [*batch, h_kv, group, s, e]."""
    return x.reshape(*x.shape[:-3], h_kv, -1, *x.shape[-2:])


def _heads(x: Array) -> Array:
    """[*batch, h_kv, group, s, e] to [*batch, h, s, e]."""
    return x.reshape(*x.shape[:-4], -1, *x.shape[-2:])


def _flat(x: Array) -> Array:
    """[*batch, h_kv, group, s, e] to [*batch, s, h, e]."""
    return np.swapaxes(_heads(x), -3, -2)


def _flat_sum(x: Array) -> Array:
    """[*batch, h_kv, group, t, e], added up over the group, to [*batch, t, h_kv, e]."""
    return np.swapaxes(x.sum(axis=-3), -3, -2)
