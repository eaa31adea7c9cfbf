"""What today's attention adds, against Hugging Face's layers, of the same weights in float64: what is added to the stream."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from block_inputs import draw

import reference
from reference import PRESETS, BlockConfig, small
from reference.rope import rope_angles

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import Gemma2Config, Gemma3TextConfig, Glm4Config, GptOssConfig, Phi3Config, PreTrainedConfig  # noqa: E402
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask  # noqa: E402
from transformers.models.gemma2 import modeling_gemma2  # noqa: E402
from transformers.models.gemma3 import modeling_gemma3  # noqa: E402
from transformers.models.glm4 import modeling_glm4  # noqa: E402
from transformers.models.gpt_oss import modeling_gpt_oss  # noqa: E402
from transformers.models.phi3 import modeling_phi3  # noqa: E402

TOLERANCE = 20 * 8 * 2.0**-53  # of the norm, as in test_transformers_layers.py
S = 7


class Theirs(NamedTuple):
    """A layer of theirs, its config, and the block of ours that it is a part of."""

    module: Any
    attention: Callable[..., Any]
    config: type[PreTrainedConfig]
    ours: BlockConfig


GEMMA3 = small(PRESETS["gemma3"])
LAYERS = {
    "gemma3": Theirs(modeling_gemma3, modeling_gemma3.Gemma3Attention, Gemma3TextConfig, GEMMA3),
    "gpt_oss": Theirs(modeling_gpt_oss, modeling_gpt_oss.GptOssAttention, GptOssConfig, small(PRESETS["gpt_oss"])),
    "glm4": Theirs(modeling_glm4, modeling_glm4.Glm4Attention, Glm4Config, small(PRESETS["glm4"])),
    "phi": Theirs(modeling_phi3, modeling_phi3.Phi3Attention, Phi3Config, small(PRESETS["phi"])),
    "gemma2": Theirs(
        modeling_gemma2,
        modeling_gemma2.Gemma2Attention,
        Gemma2Config,
        BlockConfig(32, n_heads=4, n_kv_heads=2, d_head=6, d_ff=20, window=4, softcap=1.5, attention_scale=0.3),
    ),
}


class TorchInFloat64:
    """torch, but for float32, in which their softmax is."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def configured(theirs: Theirs) -> PreTrainedConfig:
    ours = theirs.ours
    fields: dict[str, Any] = {
        "hidden_size": ours.d_model,
        "num_attention_heads": ours.n_heads,
        "num_key_value_heads": ours.n_kv_heads,
        "head_dim": ours.d_head,
        "num_hidden_layers": 1,
        "attention_bias": ours.qkv_bias,
        "attn_implementation": "eager",
        "pad_token_id": 0,
    }
    if ours.window:
        fields |= {"sliding_window": ours.window, "layer_types": ["sliding_attention"]}
    if ours.softcap:
        fields |= {"attn_logit_softcapping": ours.softcap}
    return theirs.config(**fields)


def named_as_theirs(parameters: dict[str, Any]) -> dict[str, Any]:
    """Those of attention."""
    own = {name.removeprefix("attention."): p for name, p in parameters.items() if name.startswith("attention.")}
    renamed = {"sink": "sinks"} | {f"{name}.{kind}": f"{name}_proj.{kind}" for name in "qkvo" for kind in ("weight", "bias")}
    return {renamed.get(name, name): torch.tensor(p) for name, p in own.items()}


@pytest.mark.parametrize("name", LAYERS)
def test_attention_adds_what_theirs_does(name, monkeypatch):
    theirs, ours = LAYERS[name], LAYERS[name].ours
    monkeypatch.setattr(theirs.module, "torch", TorchInFloat64())
    config = configured(theirs)
    layer = theirs.attention(config, layer_idx=0).eval()
    layer.scaling = ours.attention_scale or layer.scaling  # theirs is of a whole number
    for norm in (getattr(layer, f"{each}_norm", None) for each in "qk"):
        if norm is not None:  # which computes in float32
            eps = ours.eps
            norm.forward = lambda x, norm=norm, eps=eps: torch.nn.functional.rms_norm(x, x.shape[-1:], 1 + norm.weight, eps)

    x, parameters, _ = draw(ours, (2, S))
    taps = reference.pre_ln_block(x, parameters, ours, position=20).intermediates
    positions = np.arange(20.0, 20 + S)
    angles = rope_angles(positions, ours.rotary_features or ours.d_head, base=ours.rope_base)
    angles = angles if name == "gpt_oss" else np.tile(angles, 2)  # theirs are those of pairs, or of features
    rotated = tuple(torch.tensor(f(angles))[None] for f in (np.cos, np.sin))
    read = torch.tensor(taps["attention_norm"])
    masks = create_sliding_window_causal_mask if ours.window else create_causal_mask
    mask = masks(config, read, None, None, torch.arange(20, 20 + S)[None])

    weights = named_as_theirs(parameters)
    if name == "phi":
        weights["qkv_proj.weight"] = torch.cat([weights.pop(f"{each}_proj.weight") for each in "qkv"])
    how = {"position_embeddings": rotated, "attention_mask": mask}
    added, _ = torch.func.functional_call(layer, weights, (read,), how, strict=True)
    off = np.linalg.norm(added.detach().numpy() - taps["attn_out"])
    assert off <= TOLERANCE * np.linalg.norm(taps["attn_out"])
