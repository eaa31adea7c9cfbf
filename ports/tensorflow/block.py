"""The block's ops and the block, of `tf.nn`'s softmax, silu and gelu; the form is impl_jax's."""

import math
from typing import Any

import tensorflow as tf

from ports.tensorflow.rows import layer_norm, linear, rms_norm, widen
from reference.block_config import BlockConfig

Tensor = Any  # what type checkers know of tf.Tensor is partly wrong
Parameters = dict[str, Tensor]
SUM_NORMS = {"attn": "attention_norm", "ffn": "ffn_norm"}  # in Post-LN, by what the sum was added from


def rope(x: Tensor, *, position: int, base: float, interleaved: bool) -> Tensor:
    """Every pair of features turned by p·base^(−2i/d_head); the frequencies are Python's, in float64 and rounded once."""
    wide, s, d = widen(x), x.shape[-3], x.shape[-1]
    frequencies = tf.constant([base ** (-i / d) for i in range(0, d, 2)], wide.dtype)  # d_head/2
    positions = tf.reshape(tf.range(position, position + s, dtype=wide.dtype), (s, 1, 1))
    angles = positions * frequencies  # s 1 d_head/2
    cos, sin = tf.cos(angles), tf.sin(angles)
    if interleaved:
        first, second = wide[..., 0::2], wide[..., 1::2]
        y = tf.reshape(tf.stack([first * cos - second * sin, second * cos + first * sin], axis=-1), x.shape)
    else:
        first, second = tf.split(wide, 2, axis=-1)
        y = tf.concat([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return tf.cast(y, x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, *, causal: bool) -> Tensor:
    """softmax(q·kᵀ/√d_head)·v, rounded once."""
    return attention_in_steps(q, k, v, key_mask, causal=causal)[0]


def attention_in_steps(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention, scores and probabilities; query head i reads key head i // (h / h_kv)."""
    group = q.shape[-2] // k.shape[-2]
    keys, values = (widen(tf.repeat(heads, group, axis=-2)) for heads in (k, v))  # *batch t h d_head
    scores = tf.einsum("...she,...the->...hst", widen(q), keys) / math.sqrt(q.shape[-1])
    s, t = q.shape[-3], k.shape[-3]
    visible = (
        tf.range(t) <= tf.reshape(tf.range(t - s, t), (s, 1)) if causal else tf.ones((s, t), tf.bool)
    )  # the queries are last
    if key_mask is not None:
        visible = visible & (key_mask != 0)[..., None, None, :]  # *batch 1 s t
    # Show all keys to a query that sees none, then blot out its probabilities: an empty softmax is NaN, and so is its gradient.
    blind = ~tf.reduce_any(visible, axis=-1, keepdims=True)
    probs = tf.nn.softmax(tf.where(visible | blind, scores, -math.inf))
    probs = tf.where(blind, tf.zeros_like(probs), probs)  # *batch h s t
    return tf.cast(tf.einsum("...hst,...the->...she", probs, values), q.dtype), scores, probs


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate)·up, rounded once."""
    return tf.cast(tf.nn.silu(widen(gate)) * widen(up), gate.dtype)


def gelu(x: Tensor, *, approximate: bool) -> Tensor:
    """`tf.nn.gelu`, rounded once."""
    return tf.cast(tf.nn.gelu(widen(x), approximate), x.dtype)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """`tf.nn.gelu` of the gate, by tanh, times up, rounded once."""
    return tf.cast(tf.nn.gelu(widen(gate), approximate=True) * widen(up), gate.dtype)


def pre_ln_block(
    x: Tensor,
    parameters: Parameters,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
    key_mask: Tensor | None = None,
    *,
    config: BlockConfig,
    position: int,
    taps: bool = False,
) -> Any:
    """h = x + attention(norm(x)), out = h + feed_forward(norm(h)), or with the norms in another place.

    With `taps`, also every intermediate by name.
    """
    p, seen = parameters, dict[str, Tensor]()
    stream, read = _branches(x, 2)
    if config.norms_before:
        read = seen["attention_norm"] = _norm(read, p, "attention_norm", config)
    to_feed_forward, *to_heads = _branches(read, 4)
    for name, branch in zip("qkv", to_heads, strict=True):
        rows = _linear(branch, p, f"attention.{name}")
        seen[name] = tf.reshape(rows, (*x.shape[:-1], -1, config.d_head))
    q, k, v = seen["q"], seen["k"], seen["v"]
    if config.qk_norm:
        q = seen["q_norm"] = _norm(q, p, "attention.q_norm", config)
        k = seen["k_norm"] = _norm(k, p, "attention.k_norm", config)
    if config.rope != "none":
        turn: dict[str, Any] = {"position": position, "base": config.rope_base, "interleaved": config.rope == "interleaved"}
        q, k = seen["q_rope"], seen["k_rope"] = rope(q, **turn), rope(k, **turn)
    k, v = (new if old is None else tf.concat([old, new], axis=-3) for old, new in ((k_cache, k), (v_cache, v)))
    heads, seen["scores"], seen["probs"] = attention_in_steps(q, k, v, key_mask, causal=config.causal)
    seen["attn"] = tf.reshape(heads, (*x.shape[:-1], -1))
    seen["attn_out"] = _linear(seen["attn"], p, "attention.o")
    if config.placement != "parallel":
        seen["h"] = _join(stream, "attn", p, seen, config)
        stream, to_feed_forward = _branches(seen["h"], 2)
        if config.norms_before:
            to_feed_forward = seen["ffn_norm"] = _norm(to_feed_forward, p, "ffn_norm", config)

    to_gate, to_up = _branches(to_feed_forward, 2)
    up = seen["up"] = _linear(to_up, p, "feed_forward.up")
    if config.gated:
        gate = seen["gate"] = _linear(to_gate, p, "feed_forward.gate")
        seen["act"] = swiglu(gate, up) if config.feed_forward == "swiglu" else geglu(gate, up)
    else:
        seen["act"] = gelu(up, approximate=config.feed_forward == "gelu_tanh")
    seen["ffn_out"] = _linear(seen["act"], p, "feed_forward.down")
    parallel = config.placement == "parallel"
    seen["out"] = _add(stream, seen["attn_out"], seen["ffn_out"]) if parallel else _join(stream, "ffn", p, seen, config)
    return (seen["out"], seen) if taps else seen["out"]


def pre_ln_stack(
    x: Tensor,
    parameters: Parameters,
    key_mask: Tensor | None = None,
    *,
    config: BlockConfig,
    position: int,
    n_layers: int,
    taps: bool = False,
) -> Any:
    """Blocks one after another; the names of their parameters and taps begin with their number."""
    seen: dict[str, Tensor] = {}
    for layer in range(n_layers):
        own = {name.removeprefix(f"{layer}."): p for name, p in parameters.items() if name.startswith(f"{layer}.")}
        x, values = pre_ln_block(x, own, None, None, key_mask, config=config, position=position, taps=True)
        seen |= {f"{layer}.{name}": value for name, value in values.items()}
    return (x, seen) if taps else x


def _branches(x: Tensor, n: int) -> list[Tensor]:
    """The same x for each of n uses, whose gradients are then added in float32; the tape would add them in x's dtype."""
    wide = widen(x)
    return [tf.cast(wide, x.dtype) for _ in range(n)]


def _join(stream: Tensor, branch: str, p: Parameters, seen: dict[str, Tensor], config: BlockConfig) -> Tensor:
    """The stream and what the branch gives to it, with the norms that stand behind."""
    given = seen[f"{branch}_out"]
    if config.norms_branch:
        given = seen[f"{branch}_out_norm"] = _norm(given, p, f"{branch}_out_norm", config)
    if config.placement == "post":
        seen[f"{branch}_sum"] = _add(stream, given)
        return _norm(seen[f"{branch}_sum"], p, SUM_NORMS[branch], config)
    return _add(stream, given)


def _norm(x: Tensor, p: Parameters, name: str, config: BlockConfig) -> Tensor:
    weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
    how: dict[str, Any] = config.norm_constants | {"order": config.order}
    return layer_norm(x, weight, bias, **how) if config.norm == "layer_norm" else rms_norm(x, weight, **how)


def _linear(x: Tensor, p: Parameters, name: str) -> Tensor:
    return linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def _add(stream: Tensor, *updates: Tensor) -> Tensor:
    return tf.cast(sum(map(widen, updates), widen(stream)), stream.dtype)
