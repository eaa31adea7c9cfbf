"""A decoder layer's parameters under the names of other code: dictionaries renamed, their values untouched.

Only names are translated. Which pairs of features rotary embedding turns is a matter of the values: Meta's own checkpoints are
`interleaved`, and Hugging Face's, of the same models, have had the rows of q and k permuted for `half_split`.
"""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

# Hugging Face's Gemma 2 and 3; Llama, Qwen3, OLMo 2, Cohere, the attention of gpt-oss and MiniMind of 2026 have fewer norms.
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
    block's norms stand, as in `BlockConfig`: pre (Llama, Qwen3), sandwich (Gemma 2 and 3), branch (OLMo 2) or parallel
    (Cohere).
    Raises `ValueError` for a name that is unknown, or missing: every weight is needed, biases, QK-norm and sinks are not;
    and for another placement.
    Matrices that are one, as Phi's and GLM's gate and up are, must be split before: their names are unknown.
    """
    return _from(state_dict, _hf(placement), prefix)


def to_hf(parameters: Mapping[str, Value], prefix: str = "", *, placement: str = "pre") -> dict[str, Value]:
    """The inverse of `from_hf`; raises as it does."""
    return _to(parameters, _hf(placement), prefix)


def from_meta(state_dict: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """As `from_hf`, from names like Meta's `attention.wq`, of which `feed_forward.w3` is up; prefixes are `layers.3.`."""
    return _from(state_dict, META, prefix)


def to_meta(parameters: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """The inverse of `from_meta`; raises as it does."""
    return _to(parameters, META, prefix)


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
