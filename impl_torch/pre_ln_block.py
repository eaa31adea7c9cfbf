"""The transformer block for PyTorch: Pre-LN (Xiong et al. 2020, arXiv:2002.04745), or with its norms in another place."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.functional import linear

from impl_torch.attention import KeyMask, attention, attention_in_steps
from impl_torch.block_config import BlockConfig
from impl_torch.feed_forward import geglu, gelu, swiglu
from impl_torch.layer_norm import layer_norm
from impl_torch.ranks import gathered, scattered, whole
from impl_torch.rms_norm import rms_norm
from impl_torch.rope import rope
from impl_torch.rows import as_stored, compute_dtype

Parameters = Mapping[str, Tensor]
Taps = dict[str, Tensor]
SUM_NORMS = {"attn": "attention_norm", "ffn": "ffn_norm"}  # in Post-LN, by what the sum was added from
Cache = tuple[Float[Tensor, "*batch t h_kv d_head"], Float[Tensor, "*batch t h_kv d_head"]]


def pre_ln_block(
    x: Float[Tensor, "*batch s d_model"],
    parameters: Parameters,
    k_cache: Float[Tensor, "*batch past h_kv d_head"] | None = None,
    v_cache: Float[Tensor, "*batch past h_kv d_head"] | None = None,
    key_mask: KeyMask | None = None,
    *,
    config: BlockConfig,
    position: int | Tensor = 0,
    taps: bool = False,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*batch s d_model"] | tuple[Float[Tensor, "*batch s d_model"], Taps]:
    r"""Attention and feed-forward, each on a normalised copy of a stream that only ever gets sums.

    $$ h = x + \mathrm{attention}(\mathrm{norm}_1(x)), \qquad out = h + \mathrm{feed\_forward}(\mathrm{norm}_2(h)) $$

    So it is with the norms placed before (`pre`); `BlockConfig` says where else they may stand.

    `position` is that of x's first row, cached keys (which are rotated already) and values included. `key_mask` is False, or
    zero, for padding, over cached and new keys. x and the parameters, named as `config.parameters()` names them, share a dtype.

    With `taps`, also the intermediates by name in data-flow order: attention_norm, q, k, v (with `qk_norm` q_norm, k_norm),
    q_rope, k_rope, scores (scaled, not yet masked), capped (with a `softcap`), probs, attn (heads merged), attn_out, h,
    ffn_norm, gate (SwiGLU), up, act, ffn_out, out. A norm of a branch is attn_out_norm or ffn_out_norm. A sum that is
    normalised is attn_sum or ffn_sum, and h and out are what comes of it. In parallel there is no h. Each is what the next
    stage was given, rounded as it is stored; scores, capped and probs are float32 in half precision. Attention is then
    computed in steps.

    The ranks of a `process_group` have each an even part of x's sequence, and of the heads and d_ff, of which alone `config` is
    (Korthikanti et al. 2022, arXiv:2205.05198): q, k, v, gate and up have a part of their outputs, o and down of their inputs;
    norms and the biases of o and down are whole, as are their gradients. `position` is that of rank 0's first row.

    Raises `ValueError` where the parameters are not those of the config, or a shape does not fit; for taps of several ranks.
    """
    _check(x, parameters, config)
    if taps and process_group is not None:
        raise ValueError("pre_ln_block: taps are those of one process, and a process_group has several")
    given = x, parameters, k_cache, v_cache, key_mask
    out, _, kept = _block(*given, config=config, position=position, taps=taps, group=process_group)
    return (out, kept) if taps else out


class PreLNBlock(nn.Module):
    """`pre_ln_block` with parameters of its own, under the names of `config.parameters()`.

    Its submodules hold parameters, and compute nothing.
    """

    def __init__(
        self, config: BlockConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        for name, shape in config.parameters().items():
            holder: nn.Module = self
            *path, kind = name.split(".")
            for part in path:
                if part not in dict(holder.named_children()):
                    holder.add_module(part, nn.Module())
                holder = holder.get_submodule(part)
            holder.register_parameter(kind, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make norms weigh one and biases zero, and draw the others with a deviation of 0.02, as GPT-2 and Llama do."""
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.constant_(parameter, 1.0 - self.config.offset_of(name))
            else:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        x: Float[Tensor, "*batch s d_model"],
        k_cache: Float[Tensor, "*batch past h_kv d_head"] | None = None,
        v_cache: Float[Tensor, "*batch past h_kv d_head"] | None = None,
        key_mask: KeyMask | None = None,
        position: int | Tensor = 0,
        *,
        return_cache: bool = False,
    ) -> Float[Tensor, "*batch s d_model"] | tuple[Float[Tensor, "*batch s d_model"], Cache]:
        """As `pre_ln_block`; with `return_cache`, also the keys and values, those that were cached and the new."""
        p = dict(self.named_parameters())
        _check(x, p, self.config)
        given = x, p, k_cache, v_cache, key_mask
        out, cache, _ = _block(*given, config=self.config, position=position, taps=False)
        return (out, cache) if return_cache else out

    def extra_repr(self) -> str:
        """Its configuration."""
        return str(self.config)


def _block(
    x: Tensor,
    p: Parameters,
    k_cache: Tensor | None,
    v_cache: Tensor | None,
    key_mask: Tensor | None,
    *,
    config: BlockConfig,
    position: int | Tensor,
    taps: bool,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Cache, Taps]:
    kept: Taps = {}

    def tap(name: str, tensor: Tensor) -> Tensor:
        if taps:
            kept[name] = tensor = as_stored(tensor)
        return tensor

    def join(stream: Tensor, branch: str, given: Tensor) -> Tensor:
        if config.norms_branch:
            given = tap(f"{branch}_out_norm", _norm(given, p, f"{branch}_out_norm", config, group))
        if config.placement == "post":
            return _norm(tap(f"{branch}_sum", stream + given), p, SUM_NORMS[branch], config, group)
        return stream + given

    read = x
    if config.norms_before:
        read = tap("attention_norm", _norm(x, p, "attention_norm", config, group))  # *batch s d_model
    read = gathered(read, group)
    q, k, v = (tap(name, _heads(_linear(read, p, f"attention.{name}"), config.d_head)) for name in "qkv")
    if config.qk_norm:
        q = tap("q_norm", _qk_norm(q, p, "attention.q_norm", config, group))  # *batch s h d_head
        k = tap("k_norm", _qk_norm(k, p, "attention.k_norm", config, group))  # *batch s h_kv d_head
    if config.rope != "none":
        turn: dict[str, Any] = config.rope_constants | {"position": position}
        q, k = tap("q_rope", rope(q, **turn)), tap("k_rope", rope(k, **turn))
    k, v = _with_cache(k_cache, k), _with_cache(v_cache, v)  # *batch t h_kv d_head
    sink = p.get("attention.sink")  # h
    if taps:
        attended = attention_in_steps(q, k, v, key_mask, sink, **config.attention_constants)
        kept["scores"] = attended.scores
        kept |= {} if config.softcap is None else {"capped": attended.capped}
        kept["probs"], attn = attended.probs, attended.y
    else:
        attn = attention(q, k, v, key_mask, sink, **config.attention_constants)  # *batch s h d_head
    attn = tap("attn", _merge(attn))
    attn_out = tap("attn_out", _linear_of_parts(attn, p, "attention.o", group))  # *batch s d_model
    h = x
    if config.placement != "parallel":
        read = h = tap("h", join(x, "attn", attn_out))
        if config.norms_before:
            read = tap("ffn_norm", _norm(h, p, "ffn_norm", config, group))  # *batch s d_model
        read = gathered(read, group)

    if config.gated:
        gate = tap("gate", _linear(read, p, "feed_forward.gate"))  # *batch s d_ff
        up = tap("up", _linear(read, p, "feed_forward.up"))
        act = tap("act", swiglu(gate, up) if config.feed_forward == "swiglu" else geglu(gate, up, approximate=True))
    else:
        up = tap("up", _linear(read, p, "feed_forward.up"))  # *batch s d_ff
        act = tap("act", gelu(up, approximate=config.feed_forward == "gelu_tanh"))
    ffn_out = tap("ffn_out", _linear_of_parts(act, p, "feed_forward.down", group))  # *batch s d_model
    out = x + attn_out + ffn_out if config.placement == "parallel" else join(h, "ffn", ffn_out)
    return tap("out", out), (k, v), kept


def _linear(x: Tensor, p: Parameters, name: str) -> Tensor:
    return linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def _linear_of_parts(x: Tensor, p: Parameters, name: str, group: ProcessGroup | None) -> Tensor:
    """A product of inputs that are split over ranks: its parts are summed, then the bias is added, to each rank's own rows."""
    if group is None:
        return _linear(x, p, name)
    y, bias = scattered(linear(x, p[f"{name}.weight"]), group), p.get(f"{name}.bias")
    return y if bias is None else (y + whole(bias.to(compute_dtype(y)), group)).to(y.dtype)


def _norm(x: Tensor, p: Parameters, name: str, config: BlockConfig, group: ProcessGroup | None) -> Tensor:
    weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
    how: dict[str, Any] = config.norm_constants | {"order": config.order, "rows_group": group}
    return layer_norm(x, weight, bias, **how) if config.norm == "layer_norm" else rms_norm(x, weight, **how)


def _qk_norm(x: Tensor, p: Parameters, name: str, config: BlockConfig, group: ProcessGroup | None) -> Tensor:
    """Of every head, or of all of them side by side, which are then split over the ranks."""
    weight = p[f"{name}.weight"]
    how: dict[str, Any] = config.qk_norm_constants | {"order": config.order}
    if config.qk_norm_over == "all_heads":
        return rms_norm(_merge(x), weight, **how, process_group=group).view_as(x)
    return rms_norm(x, weight, **how, rows_group=group)


def _heads(x: Tensor, d_head: int) -> Tensor:
    return x.unflatten(-1, (-1, d_head))


def _merge(x: Tensor) -> Tensor:
    return x.flatten(start_dim=-2)


def _with_cache(cache: Tensor | None, new: Tensor) -> Tensor:
    return new if cache is None else torch.cat([cache, new], dim=-3)


def _check(x: Tensor, parameters: Parameters, config: BlockConfig) -> None:
    if config.n_heads % config.n_kv_heads:
        raise ValueError(f"pre_ln_block: n_heads is {config.n_heads}, which n_kv_heads, {config.n_kv_heads}, does not divide")
    if x.shape[-1] != config.d_model:
        raise ValueError(f"pre_ln_block: x has shape {list(x.shape)}; its last axis must be d_model, {config.d_model}")
    expected = config.parameters()
    for name in expected.keys() | parameters.keys():
        if name not in parameters:
            raise ValueError(f"pre_ln_block: parameter {name!r} is missing")
        if name not in expected:
            raise ValueError(f"pre_ln_block: parameter {name!r} is unknown; this config has {', '.join(expected)}")
        if parameters[name].shape != expected[name]:
            raise ValueError(
                f"pre_ln_block: {name} has shape {list(parameters[name].shape)}; it must be {list(expected[name])}"
            )
