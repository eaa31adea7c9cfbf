"""The transformer block in float64: Pre-LN, or with its norms in another place.

Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", arXiv:2002.04745, compare Pre-LN and Post-LN.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from reference.arguments import check_alike, check_float64, check_shape
from reference.attention import attention, attention_vjp
from reference.block_config import BlockConfig
from reference.feed_forward import geglu, geglu_vjp, gelu, gelu_vjp, swiglu, swiglu_vjp
from reference.layer_norm import layer_norm, layer_norm_vjp
from reference.rms_norm import rms_norm, rms_norm_vjp
from reference.rope import rope, rope_vjp
from reference.rows import sum_rows

Array = np.ndarray
Parameters = dict[str, Array]
SUM_NORMS = {"attn": "attention_norm", "ffn": "ffn_norm"}  # in Post-LN, by what the sum was added from


class PreLNBlock(NamedTuple):
    """The output of `pre_ln_block`, and all intermediates by name in data-flow order, `out` too, and the norms' statistics."""

    out: Float64[Array, "*batch s d_model"]
    intermediates: dict[str, Array]


def pre_ln_block(
    x: Float64[Array, "*batch s d_model"],
    parameters: Parameters,
    config: BlockConfig,
    *,
    position: int = 0,
    k_cache: Float64[Array, "*batch past h_kv d_head"] | None = None,
    v_cache: Float64[Array, "*batch past h_kv d_head"] | None = None,
    key_mask: Bool[Array, "*batch t"] | None = None,
) -> PreLNBlock:
    r"""Attention and feed-forward, each on a normalised copy of a stream that only ever gets sums.

    $$ h = x + \mathrm{attention}(\mathrm{norm}_1(x)), \qquad out = h + \mathrm{feed\_forward}(\mathrm{norm}_2(h)) $$

    So it is with the norms placed before (`pre`). With f for either of the two, the other placements are

    $$ \begin{aligned}
       post&: \mathrm{norm}(x + f(x)) & sandwich&: x + \mathrm{norm}'(f(\mathrm{norm}(x))) \\
       branch&: x + \mathrm{norm}'(f(x)) & none&: x + f(x) \\
       parallel&: x + \mathrm{attention}(n) + \mathrm{feed\_forward}(n), & n &= \mathrm{norm}(x)
    \end{aligned} $$

    `position` is that of x's first row, cached keys (which are rotated already) and values included. `key_mask` is False for
    padding, over cached and new keys. The intermediates: attention_norm, q, k, v (with `qk_norm` q_norm, k_norm), q_rope,
    k_rope, scores (scaled, not yet masked), capped (with a `softcap`), probs, attn (heads merged), attn_out, h, ffn_norm, gate
    (SwiGLU), up, act, ffn_out, out; and mean, var and rstd of the block's norms. Norms of a branch are attn_out_norm and
    ffn_out_norm. Where a sum is normalised, it is attn_sum or ffn_sum, and h and out are what comes of it. In parallel there is
    no h. Heads stand before features: q is [*batch, s, h, d_head].

    Raises `ValueError` where the parameters are not those of the config, or a shape does not fit.
    """
    _check("pre_ln_block", x, parameters, config, k_cache, v_cache)
    p, taps, statistics = parameters, dict[str, Array](), dict[str, Array]()
    positions = np.arange(position, position + x.shape[-2], dtype=np.float64)  # s

    read = x
    if config.norms_before:
        read = taps["attention_norm"] = _block_norm(x, p, "attention_norm", config, statistics)
    for name in "qkv":
        taps[name] = _heads(_linear(read, p, f"attention.{name}"), config.d_head)
    q, k, v = taps["q"], taps["k"], taps["v"]
    if config.qk_norm:
        q = taps["q_norm"] = _qk_norm(q, p, "attention.q_norm", config)
        k = taps["k_norm"] = _qk_norm(k, p, "attention.k_norm", config)
    if config.rope != "none":
        q = taps["q_rope"] = rope(q, positions, **config.rope_constants)
        k = taps["k_rope"] = rope(k, positions, **config.rope_constants)
    k, v = _with_cache(k_cache, k), _with_cache(v_cache, v)
    attended = attention(q, k, v, p.get("attention.sink"), key_mask=key_mask, **config.attention_constants)
    taps["scores"] = attended.scores
    taps |= {} if config.softcap is None else {"capped": attended.capped}
    taps["probs"] = attended.probs
    taps["attn"] = _merge(attended.y)
    taps["attn_out"] = _linear(taps["attn"], p, "attention.o")
    h = x
    if config.placement != "parallel":
        h = taps["h"] = _join(x, "attn", taps, p, config, statistics)
        read = h
        if config.norms_before:
            read = taps["ffn_norm"] = _block_norm(h, p, "ffn_norm", config, statistics)

    if config.gated:
        gate = taps["gate"] = _linear(read, p, "feed_forward.gate")
        up = taps["up"] = _linear(read, p, "feed_forward.up")
        taps["act"] = swiglu(gate, up) if config.feed_forward == "swiglu" else geglu(gate, up, approximate=True)
    else:
        up = taps["up"] = _linear(read, p, "feed_forward.up")
        taps["act"] = gelu(up, approximate=config.feed_forward == "gelu_tanh")
    taps["ffn_out"] = _linear(taps["act"], p, "feed_forward.down")
    if config.placement == "parallel":
        out = taps["out"] = x + taps["attn_out"] + taps["ffn_out"]
    else:
        out = taps["out"] = _join(h, "ffn", taps, p, config, statistics)
    return PreLNBlock(out, taps | statistics)


def pre_ln_block_vjp(
    dout: Float64[Array, "*batch s d_model"],
    x: Float64[Array, "*batch s d_model"],
    parameters: Parameters,
    config: BlockConfig,
    *,
    position: int = 0,
    k_cache: Float64[Array, "*batch past h_kv d_head"] | None = None,
    v_cache: Float64[Array, "*batch past h_kv d_head"] | None = None,
    key_mask: Bool[Array, "*batch t"] | None = None,
) -> dict[str, Array]:
    """Pull a cotangent of `out` back to x and every parameter: `dx`, and `d` before each parameter's name.

    The cache is a constant. Raises as `pre_ln_block` does.
    """
    _check("pre_ln_block_vjp", x, parameters, config, k_cache, v_cache)
    check_alike("pre_ln_block_vjp", x=x, dout=dout)
    cache: dict[str, Any] = {"position": position, "k_cache": k_cache, "v_cache": v_cache, "key_mask": key_mask}
    _, taps = pre_ln_block(x, parameters, config, **cache)
    p, gradients = parameters, dict[str, Any]()
    positions = np.arange(position, position + x.shape[-2], dtype=np.float64)  # s

    parallel = config.placement == "parallel"
    h, to_attention = taps.get("h", x), taps.get("attention_norm", x)
    to_feed_forward = to_attention if parallel else taps.get("ffn_norm", h)

    dh, dffn_out = (dout, dout) if parallel else _join_vjp(dout, "ffn", taps, p, config, gradients)
    dact = _linear_vjp(dffn_out, taps["act"], p, "feed_forward.down", gradients)
    if config.gated:
        gate, up = taps["gate"], taps["up"]
        silu_gate = config.feed_forward == "swiglu"
        dgate, dup = swiglu_vjp(dact, gate, up) if silu_gate else geglu_vjp(dact, gate, up, approximate=True)
        dread = _linear_vjp(dgate, to_feed_forward, p, "feed_forward.gate", gradients)
        dread += _linear_vjp(dup, to_feed_forward, p, "feed_forward.up", gradients)
    else:
        dup = gelu_vjp(dact, taps["up"], approximate=config.feed_forward == "gelu_tanh")
        dread = _linear_vjp(dup, to_feed_forward, p, "feed_forward.up", gradients)
    if parallel:
        dstream, dattn_out = dout, dout
    else:
        dh = dh + (_norm_vjp(dread, h, p, "ffn_norm", config, gradients) if config.norms_before else dread)
        dstream, dattn_out = _join_vjp(dh, "attn", taps, p, config, gradients)

    dattn = _linear_vjp(dattn_out, taps["attn"], p, "attention.o", gradients)
    q = taps.get("q_rope", taps.get("q_norm", taps["q"]))
    k = taps.get("k_rope", taps.get("k_norm", taps["k"]))
    keys, values = _with_cache(k_cache, k), _with_cache(v_cache, taps["v"])
    how: dict[str, Any] = config.attention_constants | {"key_mask": key_mask}
    dq, dk, dv, dsink = attention_vjp(_heads(dattn, config.d_head), q, keys, values, p.get("attention.sink"), **how)
    gradients |= {} if dsink is None else {"dattention.sink": dsink}
    past = keys.shape[-3] - x.shape[-2]
    dk, dv = dk[..., past:, :, :], dv[..., past:, :, :]
    if config.rope != "none":
        dq = rope_vjp(dq, positions, **config.rope_constants)
        dk = rope_vjp(dk, positions, **config.rope_constants)
    if config.qk_norm:
        dq = _qk_norm_vjp(dq, taps["q"], p, "attention.q_norm", config, gradients)
        dk = _qk_norm_vjp(dk, taps["k"], p, "attention.k_norm", config, gradients)
    dread = dread if parallel else np.zeros_like(x)
    for name, d in {"q": dq, "k": dk, "v": dv}.items():
        dread += _linear_vjp(_merge(d), to_attention, p, f"attention.{name}", gradients)
    dx = dstream + (_norm_vjp(dread, x, p, "attention_norm", config, gradients) if config.norms_before else dread)
    return {"dx": dx} | {f"d{name}": gradients[f"d{name}"] for name in config.parameters()}


def _linear(x: Array, p: Parameters, name: str) -> Array:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)


def _linear_vjp(dy: Array, x: Array, p: Parameters, name: str, gradients: dict[str, Any]) -> Array:
    """The cotangent of x; those of weight and bias join the gradients."""
    gradients[f"d{name}.weight"] = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    if f"{name}.bias" in p:
        gradients[f"d{name}.bias"] = sum_rows(dy)
    return dy @ p[f"{name}.weight"]


def _join(
    stream: Array, branch: str, taps: dict[str, Array], p: Parameters, config: BlockConfig, statistics: dict[str, Array]
) -> Array:
    """The stream and what `branch`, attn or ffn, gives to it, with the norms that stand behind."""
    given = taps[f"{branch}_out"]
    if config.norms_branch:
        given = taps[f"{branch}_out_norm"] = _block_norm(given, p, f"{branch}_out_norm", config, statistics)
    joined = stream + given
    if config.placement == "post":
        taps[f"{branch}_sum"] = joined
        joined = _block_norm(joined, p, SUM_NORMS[branch], config, statistics)
    return joined


def _join_vjp(
    dy: Array, branch: str, taps: dict[str, Array], p: Parameters, config: BlockConfig, gradients: dict[str, Any]
) -> tuple[Array, Array]:
    """The cotangents of the stream and of what the branch gives; those of the norms' parameters join the gradients."""
    if config.placement == "post":
        dy = _norm_vjp(dy, taps[f"{branch}_sum"], p, SUM_NORMS[branch], config, gradients)
    if config.norms_branch:
        return dy, _norm_vjp(dy, taps[f"{branch}_out"], p, f"{branch}_out_norm", config, gradients)
    return dy, dy


def _block_norm(x: Array, p: Parameters, name: str, config: BlockConfig, statistics: dict[str, Array]) -> Array:
    """One of the block's own norms; its statistics join the others."""
    mean, var = np.mean(x, axis=-1, keepdims=True), np.var(x, axis=-1, keepdims=True)  # *batch s 1
    rstd = (layer_norm if config.norm == "layer_norm" else rms_norm)(x, eps=config.eps).rstd  # *batch s 1
    statistics |= {f"{name}.mean": mean, f"{name}.var": var, f"{name}.rstd": rstd}
    return _norm(x, p, name, config)


def _norm(x: Array, p: Parameters, name: str, config: BlockConfig) -> Array:
    weight, bias, how = p[f"{name}.weight"], p.get(f"{name}.bias"), config.norm_constants
    return layer_norm(x, weight, bias, **how).y if config.norm == "layer_norm" else rms_norm(x, weight, **how).y


def _norm_vjp(dy: Array, x: Array, p: Parameters, name: str, config: BlockConfig, gradients: dict[str, Any]) -> Array:
    """The cotangent of x; those of weight and bias join the gradients."""
    weight, bias, how = p[f"{name}.weight"], p.get(f"{name}.bias"), config.norm_constants
    if config.norm == "layer_norm":
        dx, gradients[f"d{name}.weight"], gradients[f"d{name}.bias"] = layer_norm_vjp(dy, x, weight, bias, **how)
    else:
        dx, gradients[f"d{name}.weight"] = rms_norm_vjp(dy, x, weight, **how)
    return dx


def _qk_norm(x: Array, p: Parameters, name: str, config: BlockConfig) -> Array:
    """Of every head, or of all of them side by side."""
    rows = _merge(x) if config.qk_norm_over == "all_heads" else x
    return rms_norm(rows, p[f"{name}.weight"], **config.qk_norm_constants).y.reshape(x.shape)


def _qk_norm_vjp(dy: Array, x: Array, p: Parameters, name: str, config: BlockConfig, gradients: dict[str, Any]) -> Array:
    """The cotangent of x; that of the weight joins the gradients."""
    rows = _merge(x) if config.qk_norm_over == "all_heads" else x
    dx, gradients[f"d{name}.weight"] = rms_norm_vjp(
        dy.reshape(rows.shape), rows, p[f"{name}.weight"], **config.qk_norm_constants
    )
    return dx.reshape(x.shape)


def _heads(x: Array, d_head: int) -> Array:
    return x.reshape(*x.shape[:-1], x.shape[-1] // d_head, d_head)


def _merge(x: Array) -> Array:
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _with_cache(cache: Array | None, new: Array) -> Array:
    return new if cache is None else np.concatenate([cache, new], axis=-3)


def _check(
    op: str, x: Array, parameters: Parameters, config: BlockConfig, k_cache: Array | None, v_cache: Array | None
) -> None:
    if config.n_heads % config.n_kv_heads:
        raise ValueError(f"{op}: n_heads is {config.n_heads}, which n_kv_heads, {config.n_kv_heads}, does not divide")
    if x.ndim < 2 or x.shape[-1] != config.d_model:
        raise ValueError(f"{op}: x has shape {x.shape}; it must be [*batch, s, {config.d_model}], for that is d_model")
    expected = config.parameters()
    for name in parameters | expected:
        if name not in parameters:
            raise ValueError(f"{op}: parameter {name!r} is missing")
        if name not in expected:
            raise ValueError(f"{op}: parameter {name!r} is unknown; this config has {', '.join(expected)}")
        if parameters[name].shape != expected[name]:
            raise ValueError(f"{op}: {name} has shape {parameters[name].shape}; it must be {expected[name]}")
    check_float64(op, x=x, **parameters)
    if (k_cache is None) != (v_cache is None):
        raise ValueError(f"{op}: {'v' if v_cache is None else 'k'}_cache is missing; keys and values are cached together")
    if k_cache is not None and v_cache is not None:
        past = k_cache.shape[-3:-2]
        check_shape(op, "k_cache", k_cache, (*x.shape[:-2], *past, config.n_kv_heads, config.d_head), x=x)
        check_alike(op, k_cache=k_cache, v_cache=v_cache)
