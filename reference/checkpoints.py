"""A decoder layer's parameters under the names of other code: dictionaries renamed, their values untouched.

Matrices that are one, as Phi's q, k and v are, are split first, and joined after. Which pairs of features rotary embedding
turns is a matter of the values: Meta's own checkpoints are `interleaved`, and Hugging Face's, of the same models, have had the
rows of q and k permuted for `half_split`.
"""

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, TypeVar

from reference.block_config import BlockConfig

Value = TypeVar("Value")

# Hugging Face's Gemma 2 and 3; Llama, Qwen3, OLMo 2, Cohere, Phi, gpt-oss and MiniMind of 2026 have fewer norms.
HF = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention.sink": "self_attn.sinks",
    "attention.o": "self_attn.o_proj",
    "attn_out_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
    "ffn_out_norm": "post_feedforward_layernorm",
}
PRE_LN = {"ffn_norm": "post_attention_layernorm"}  # the name that a norm behind attention has elsewhere
GLM4 = HF | {
    "attn_out_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_out_norm": "post_mlp_layernorm",
}
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
NORMS = {
    "pre": ("attention_norm", "ffn_norm"),
    "sandwich": ("attention_norm", "attn_out_norm", "ffn_norm", "ffn_out_norm"),
    "branch": ("attn_out_norm", "ffn_out_norm"),
    "parallel": ("attention_norm",),
}

# Meta's Llama, and MiniMind before.
META = {
    "attention_norm": "attention_norm",
    "attention.q": "attention.wq",
    "attention.k": "attention.wk",
    "attention.v": "attention.wv",
    "attention.o": "attention.wo",
    "ffn_norm": "ffn_norm",
    "feed_forward.gate": "feed_forward.w1",
    "feed_forward.up": "feed_forward.w3",
    "feed_forward.down": "feed_forward.w2",
}

SINK = "attention.sink"  # a parameter itself, of no kind
OPTIONAL = {"attention.q_norm", "attention.k_norm", SINK}


def from_hf(state_dict: Mapping[str, Value], prefix: str = "", *, placement: str = "pre") -> dict[str, Value]:
    """The parameters of a block from a state dict of Hugging Face's.

    `prefix` picks one layer of a model, such as `model.layers.3.`; what begins otherwise is left. `placement` says where the
    block's norms stand, as in `BlockConfig`: pre (Llama, Qwen3, Phi, gpt-oss), sandwich (Gemma 2 and 3), branch (OLMo 2) or
    parallel (Cohere).
    Raises `ValueError` for a name that is unknown, or missing: every weight is needed, biases, QK-norm and sinks are not;
    and for another placement. Phi's matrices are to be split first (`split_fused`), and of gpt-oss one expert is to be chosen
    (`one_expert`).
    """
    return _from(state_dict, _hf(placement), prefix)


def to_hf(parameters: Mapping[str, Value], prefix: str = "", *, placement: str = "pre") -> dict[str, Value]:
    """The inverse of `from_hf`; raises as it does."""
    return _to(parameters, _hf(placement), prefix)


def from_glm4(state_dict: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """As `from_hf`, from the names of Hugging Face's GLM-4, a sandwich; gate and up are to be split first (`split_fused`)."""
    return _from(state_dict, GLM4, prefix)


def to_glm4(parameters: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """The inverse of `from_glm4`; raises as it does."""
    return _to(parameters, GLM4, prefix)


def from_meta(state_dict: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """As `from_hf`, from names like Meta's `attention.wq`, of which `feed_forward.w3` is up; prefixes are `layers.3.`."""
    return _from(state_dict, META, prefix)


def to_meta(parameters: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """The inverse of `from_meta`; raises as it does."""
    return _to(parameters, META, prefix)


def split_fused(state_dict: Mapping[str, Any], config: BlockConfig) -> dict[str, Any]:
    """Hugging Face's names with q, k and v apart, and gate and up, where they are one matrix: both in Phi, the second in GLM-4.

    Of one layer or of many: what is not fused is left as it is. Raises `ValueError` where the rows are not those of the config.
    """
    keys = config.n_kv_heads * config.d_head
    rows = {"self_attn.qkv_proj": (config.n_heads * config.d_head, keys, keys), "mlp.gate_up_proj": (config.d_ff, config.d_ff)}
    split: dict[str, Any] = {}
    for name, value in state_dict.items():
        module, _, kind = name.rpartition(".")
        fused = next((fused for fused in FUSED if module.endswith(fused)), None)
        if fused is None:
            split[name] = value
            continue
        if value.shape[0] != sum(rows[fused]):
            raise ValueError(f"{name} has {value.shape[0]} rows; with this config it must have {sum(rows[fused])}")
        ends = accumulate(rows[fused])
        for part, count, end in zip(FUSED[fused], rows[fused], ends, strict=True):
            split[f"{module.removesuffix(fused)}{part}.{kind}"] = value[end - count : end]
    return split


def fuse(state_dict: Mapping[str, Value], join: Callable[[list[Value]], Value], *matrices: str) -> dict[str, Value]:
    """The inverse of `split_fused`, of a layer whose names have no prefix.

    `matrices` are `self_attn.qkv_proj`, `mlp.gate_up_proj`, or both, and `join` puts rows below rows, as `torch.cat` does.
    """
    fused = dict(state_dict)
    for matrix in matrices:
        for kind in ("weight", "bias"):
            parts = [fused.pop(f"{part}.{kind}") for part in FUSED[matrix] if f"{part}.{kind}" in state_dict]
            fused |= {f"{matrix}.{kind}": join(parts)} if parts else {}
    return fused


def one_expert(state_dict: Mapping[str, Any], number: int) -> dict[str, Any]:
    """gpt-oss's names with one expert, counted from zero, for the feed-forward layer, and no router.

    Experts' matrices are [in, out] there, and gate and up are every other column of one. What becomes of the two is not
    SwiGLU: it is gate·sigmoid(1.702·gate)·(up + 1), both clamped.
    """
    chosen: dict[str, Any] = {}
    for name, value in state_dict.items():
        before, expert, matrix = name.partition("mlp.experts.")
        if not expert:
            chosen |= {} if "mlp.router." in name else {name: value}
            continue
        kind, columns = ("bias", value[number]) if matrix.endswith("_bias") else ("weight", value[number].T)
        parts = {"down": columns} if matrix.startswith("down") else {"gate": columns[0::2], "up": columns[1::2]}
        chosen |= {f"{before}mlp.{part}_proj.{kind}": rows for part, rows in parts.items()}
    return chosen


def _hf(placement: str) -> dict[str, str]:
    if placement not in NORMS:
        raise ValueError(f"placement is {placement!r}; it must be one of {', '.join(NORMS)}")
    others = {norm for norms in NORMS.values() for norm in norms} - {*NORMS[placement]}
    names = HF | (PRE_LN if placement == "pre" else {})
    return {our: their for our, their in names.items() if our not in others}


def _from(state_dict: Mapping[str, Value], theirs: dict[str, str], prefix: str) -> dict[str, Value]:
    layer = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    return _rename(
        layer, {their: our for our, their in theirs.items()}, {theirs[our] for our in theirs.keys() - OPTIONAL}, prefix
    )


def _to(parameters: Mapping[str, Value], theirs: dict[str, str], prefix: str) -> dict[str, Value]:
    renamed = _rename(parameters, theirs, theirs.keys() - OPTIONAL, "")
    return {f"{prefix}{name}": value for name, value in renamed.items()}


def _rename(values: Mapping[str, Value], names: dict[str, str], needed: set[str], prefix: str) -> dict[str, Value]:
    known = {name + kind: names[name] + kind for name in names for kind in _kinds(name)}
    unknown = [prefix + name for name in values if name not in known]
    missing = [f"{prefix}{name}.weight" for name in names if name in needed and f"{name}.weight" not in values]
    for fault, found in {"unknown": unknown, "missing": missing}.items():
        if found:
            raise ValueError(f"parameters are {fault}: {', '.join(found)}")
    return {new: values[name] for name, new in known.items() if name in values}


def _kinds(name: str) -> tuple[str, ...]:
    """What ends the names of a layer's parameters, its own or another code's."""
    return ("",) if name in (SINK, HF[SINK]) else (".weight", ".bias")
