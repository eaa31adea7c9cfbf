"""Attention by itself, the transformer block, and blocks one after another, written down on a tape."""

from typing import Any

import numpy as np

from ports.numpy.attention import dot_products, mix, rope, soft_cap, softmax
from ports.numpy.feed_forward import geglu, gelu, swiglu
from ports.numpy.rows import Array, Backward, layer_norm, linear, rms_norm, widen
from ports.numpy.tape import Tape
from reference.block_config import BlockConfig

Parameters = dict[str, Array]
SUM_NORMS = {"attn": "attention_norm", "ffn": "ffn_norm"}  # in Post-LN, by what the sum was added from


def attention(
    q: Array, k: Array, v: Array, key_mask: Array | None, sink: Array | None = None, **how: Any
) -> tuple[Array, Backward]:
    r"""Average the values with weights that the queries and keys agree on.

    $$ y = \mathrm{softmax}(q k^\top / \sqrt{d_{head}})\, v $$
    """
    tape = Tape(q=q, k=k, v=v, key_mask=key_mask, sink=sink)
    _attend(tape, "q", "k", "v", "sink", **how)

    def backward(dy: Array) -> tuple[Any, ...]:
        d = tape.backward("_heads", dy)
        return d["q"], d["k"], d["v"], None, *([] if sink is None else [d["sink"]])

    return tape.values["_heads"], backward


def pre_ln_block(
    x: Array,
    parameters: Parameters,
    k_cache: Array | None = None,
    v_cache: Array | None = None,
    key_mask: Array | None = None,
    *,
    config: BlockConfig,
    position: int,
    taps: dict[str, Array] | None = None,
) -> tuple[Array, Backward]:
    r"""Attention and feed-forward, each on a normalised copy of a stream that only ever gets sums.

    $$ h = x + \mathrm{attention}(\mathrm{norm}_1(x)), \qquad out = h + \mathrm{feed\_forward}(\mathrm{norm}_2(h)) $$

    So it is with the norms placed before (`pre`); `BlockConfig` says where else they may stand. `taps`, where given, is filled
    with the intermediates.
    """
    tape = Tape(x=x, k_cache=k_cache, v_cache=v_cache, key_mask=key_mask, **parameters)
    rows = x.shape[:-1]  # *batch s

    read = "x"
    if config.norms_before:
        _norm(tape, "attention_norm", "x", "attention_norm", config)
        read = "attention_norm"
    for name in "qkv":
        _linear(tape, f"_{name}", read, f"attention.{name}")
        tape.step(name, _reshape, f"_{name}", shape=(*rows, -1, config.d_head))
    q, k = "q", "k"
    if config.qk_norm:
        _qk_norm(tape, q, config)
        _qk_norm(tape, k, config)
        q, k = "q_norm", "k_norm"
    if config.rope != "none":
        tape.step("q_rope", rope, q, position=position, **config.rope_constants)
        tape.step("k_rope", rope, k, position=position, **config.rope_constants)
        q, k = "q_rope", "k_rope"
    tape.step("_keys", _append, "k_cache", k)
    tape.step("_values", _append, "v_cache", "v")
    _attend(tape, q, "_keys", "_values", "attention.sink", **config.attention_constants)
    tape.step("attn", _reshape, "_heads", shape=(*rows, -1))
    _linear(tape, "attn_out", "attn", "attention.o")
    if config.placement != "parallel":
        _join(tape, "h", "x", "attn", config)
        read = "h"
        if config.norms_before:
            _norm(tape, "ffn_norm", "h", "ffn_norm", config)
            read = "ffn_norm"

    _linear(tape, "up", read, "feed_forward.up")
    if config.gated:
        _linear(tape, "gate", read, "feed_forward.gate")
    if config.feed_forward == "swiglu":
        tape.step("act", swiglu, "gate", "up")
    elif config.gated:
        tape.step("act", geglu, "gate", "up", approximate=True)
    else:
        tape.step("act", gelu, "up", approximate=config.feed_forward == "gelu_tanh")
    _linear(tape, "ffn_out", "act", "feed_forward.down")
    if config.placement == "parallel":
        tape.step("out", _add, "x", "attn_out", "ffn_out")
    else:
        _join(tape, "out", "h", "ffn", config)

    if taps is not None:
        taps |= {name: tape.values[name] for name, _, _ in tape.steps if not name.startswith("_")}

    def backward(dout: Array) -> tuple[Any, ...]:
        d = tape.backward("out", dout)
        return d["x"], {name: d[name] for name in parameters}, None, None, None

    return tape.values["out"], backward


def pre_ln_stack(
    x: Array,
    parameters: Parameters,
    key_mask: Array | None = None,
    *,
    config: BlockConfig,
    position: int,
    n_layers: int,
    taps: dict[str, Array] | None = None,
) -> tuple[Array, Backward]:
    """Blocks one after another; the names of their parameters and taps begin with their number."""
    backwards: list[Backward] = []
    for layer in range(n_layers):
        own = {name.removeprefix(f"{layer}."): p for name, p in parameters.items() if name.startswith(f"{layer}.")}
        seen: dict[str, Array] = {}
        x, backward = pre_ln_block(x, own, None, None, key_mask, config=config, position=position, taps=seen)
        backwards.append(backward)
        if taps is not None:
            taps |= {f"{layer}.{name}": tap for name, tap in seen.items()}

    def backward_through_all(d: Array) -> tuple[Any, ...]:
        gradients: dict[str, Array] = {}
        for layer, backward in reversed(list(enumerate(backwards))):
            d, own, *_ = backward(d)
            gradients |= {f"{layer}.{name}": gradient for name, gradient in own.items()}
        return d, gradients, None

    return x, backward_through_all


def _attend(
    tape: Tape,
    q: str,
    k: str,
    v: str,
    sink: str,
    *,
    causal: bool,
    window: int | None = None,
    softcap: float | None = None,
    attention_scale: float | None = None,
) -> None:
    scores = "scores"
    tape.step("scores", dot_products, q, k, attention_scale=attention_scale)
    if softcap is not None:
        scores = "capped"
        tape.step("capped", soft_cap, "scores", cap=softcap)
    tape.step("probs", softmax, scores, "key_mask", sink, causal=causal, window=window)
    tape.step("_heads", mix, "probs", v)


def _join(tape: Tape, name: str, stream: str, branch: str, config: BlockConfig) -> None:
    """The stream and what the branch gives to it, with the norms that stand behind."""
    given = f"{branch}_out"
    if config.norms_branch:
        _norm(tape, f"{given}_norm", given, f"{given}_norm", config)
        given = f"{given}_norm"
    if config.placement == "post":
        tape.step(f"{branch}_sum", _add, stream, given)
        _norm(tape, name, f"{branch}_sum", SUM_NORMS[branch], config)
    else:
        tape.step(name, _add, stream, given)


def _qk_norm(tape: Tape, name: str, config: BlockConfig) -> None:
    """Of every head, or of all of them side by side."""
    how: dict[str, Any] = config.qk_norm_constants | {"order": config.order}
    rows, weight = tape.values[name].shape, f"attention.{name}_norm.weight"
    if config.qk_norm_over == "head":
        tape.step(f"{name}_norm", rms_norm, name, weight, **how)
        return
    tape.step(f"_{name}_norm", rms_norm, f"_{name}", weight, **how)
    tape.step(f"{name}_norm", _reshape, f"_{name}_norm", shape=rows)


def _norm(tape: Tape, name: str, x: str, parameter: str, config: BlockConfig) -> None:
    how: dict[str, Any] = config.norm_constants | {"order": config.order}
    if config.norm == "layer_norm":
        tape.step(name, layer_norm, x, f"{parameter}.weight", f"{parameter}.bias", **how)
    else:
        tape.step(name, rms_norm, x, f"{parameter}.weight", **how)


def _linear(tape: Tape, name: str, x: str, parameter: str) -> None:
    tape.step(name, linear, x, f"{parameter}.weight", f"{parameter}.bias")


def _add(stream: Array, *updates: Array) -> tuple[Array, Backward]:
    return sum(map(widen, updates), widen(stream)).astype(stream.dtype), lambda d: (d,) * (1 + len(updates))


def _append(cache: Array | None, new: Array) -> tuple[Array, Backward]:
    """What is new after what is cached, which is a constant."""
    together = new if cache is None else np.concatenate([cache, new], axis=-3)
    return together, lambda d: (None, d[..., -new.shape[-3] :, :, :])


def _reshape(x: Array, *, shape: tuple[int, ...]) -> tuple[Array, Backward]:
    return x.reshape(shape), lambda d: (d.reshape(x.shape),)
