"""Checkpoints under other names: what is renamed is all there, and computes what it computed under its own names."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    Gemma2Config,
    Glm4Config,
    GptOssConfig,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    Qwen3Config,
)
from transformers.models.cohere.modeling_cohere import CohereDecoderLayer
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer
from transformers.models.glm4.modeling_glm4 import Glm4DecoderLayer
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssDecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from impl_torch import BlockConfig, PreLNBlock, pre_ln_block
from reference.checkpoints import (
    GLM4,
    HF,
    META,
    from_glm4,
    from_hf,
    from_meta,
    fuse,
    one_expert,
    split_fused,
    to_glm4,
    to_hf,
    to_meta,
)

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 44}
BLOCK = BlockConfig(32, n_heads=4, n_kv_heads=2, d_head=8, d_ff=44, eps=1e-3, rope_base=5e5)
QWEN3 = BlockConfig(32, n_heads=4, n_kv_heads=2, d_head=16, d_ff=44, eps=1e-3, rope_base=1e6, qk_norm=True)
BIASED = BlockConfig(
    32, n_heads=4, n_kv_heads=2, d_head=8, d_ff=44, eps=1e-3, qkv_bias=True, o_bias=True, feed_forward_bias=True
)


def llama(**kwargs) -> nn.Module:
    return LlamaDecoderLayer(LlamaConfig(**SIZES, rms_norm_eps=1e-3, attn_implementation="sdpa", **kwargs), 0)


def qwen3() -> nn.Module:
    config = Qwen3Config(**SIZES, rms_norm_eps=1e-3, head_dim=16, num_hidden_layers=1, attn_implementation="sdpa")
    return Qwen3DecoderLayer(config, 0)


def gemma2() -> nn.Module:
    how = {
        "head_dim": 8,
        "hidden_activation": "silu",
        "query_pre_attn_scalar": 8,
        "layer_types": ["full_attention"],
        "num_hidden_layers": 1,
        "attn_logit_softcapping": None,
    }
    return Gemma2DecoderLayer(Gemma2Config(**SIZES, **how, rms_norm_eps=1e-3, attn_implementation="sdpa"), 0)


def olmo2() -> nn.Module:
    return Olmo2DecoderLayer(Olmo2Config(**SIZES, rms_norm_eps=1e-3, attn_implementation="sdpa"), 0)


def cohere() -> nn.Module:
    return CohereDecoderLayer(CohereConfig(**SIZES, layer_norm_eps=1e-3, attn_implementation="sdpa"), 0)


def phi() -> nn.Module:
    how = {"partial_rotary_factor": 0.75, "pad_token_id": 0, "rms_norm_eps": 1e-3}
    return Phi3DecoderLayer(Phi3Config(**SIZES, **how, attn_implementation="sdpa"), 0)


def glm4() -> nn.Module:
    how = {"head_dim": 8, "partial_rotary_factor": 0.5, "attention_bias": True, "pad_token_id": 0, "rms_norm_eps": 1e-3}
    return Glm4DecoderLayer(Glm4Config(**SIZES, **how, attn_implementation="sdpa"), 0)


LAYERS = {
    "llama": (llama, BLOCK),
    "llama_with_biases": (lambda: llama(attention_bias=True, mlp_bias=True), BIASED),
    "qwen3": (qwen3, QWEN3),
    "gemma2": (gemma2, replace(BLOCK, placement="sandwich", weight_offset=1.0)),
    "olmo2": (olmo2, replace(BLOCK, placement="branch", qk_norm=True, qk_norm_over="all_heads")),
    "cohere": (cohere, replace(BLOCK, placement="parallel", norm="layer_norm", norm_bias=False, rope="interleaved")),
    "phi": (phi, replace(BLOCK, rotary_features=6)),
    "glm4": (glm4, replace(BLOCK, placement="sandwich", rope="interleaved", rotary_features=4, qkv_bias=True)),
}
FUSED = {"phi": ("self_attn.qkv_proj", "mlp.gate_up_proj"), "glm4": ("mlp.gate_up_proj",)}


def ours(name: str, state_dict: dict, config: BlockConfig) -> dict:
    apart = split_fused(state_dict, config)
    return from_glm4(apart) if name == "glm4" else from_hf(apart, placement=config.placement)


def theirs(name: str, parameters: dict, config: BlockConfig) -> dict:
    named = to_glm4(parameters) if name == "glm4" else to_hf(parameters, placement=config.placement)
    return fuse(named, torch.cat, *FUSED.get(name, ()))


def randomise(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.double().parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def in_float64(layer: nn.Module) -> nn.Module:
    """Hugging Face's norms compute in float32 whatever they are given."""
    for norm in layer.modules():
        name = type(norm).__name__
        if name.endswith("Norm"):
            eps = getattr(norm, "variance_epsilon", None) or norm.eps
            function = nn.functional.layer_norm if "LayerNorm" in name else nn.functional.rms_norm
            weight = norm.weight + name.startswith("Gemma")
            how = {"normalized_shape": weight.shape, "weight": weight, "eps": eps}
            norm.forward = lambda x, function=function, how=how: function(x, **how)
    return layer


def rotary(s: int, config: BlockConfig, *, by_pair: bool) -> tuple[Tensor, Tensor]:
    """Cosines and sines as Hugging Face's layers take them, in float64 where theirs are float32; Cohere's stand `by_pair`."""
    turned = config.rotary_features or config.d_head
    frequency = config.rope_base ** (-torch.arange(0, turned, 2, dtype=torch.float64) / turned)
    angles = torch.outer(torch.arange(s, dtype=torch.float64), frequency)
    angles = angles.repeat_interleave(2, dim=1) if by_pair else angles.repeat(1, 2)
    return angles.cos()[None], angles.sin()[None]


@pytest.mark.parametrize("name", LAYERS)
def test_the_block_computes_what_the_layer_does(name, monkeypatch):
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # Cohere turns queries and keys in float32
    build, config = LAYERS[name]
    layer = in_float64(randomise(build()))
    x = torch.randn(2, 7, config.d_model, dtype=torch.float64)
    expected = layer(x, position_embeddings=rotary(7, config, by_pair=name == "cohere"))
    actual = pre_ln_block(x, ours(name, layer.state_dict(), config), config=config)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13 * expected.abs().max().item())


@pytest.mark.parametrize("name", LAYERS)
def test_there_and_back(name):
    build, config = LAYERS[name]
    state_dict = randomise(build()).state_dict()
    parameters = ours(name, state_dict, config)
    assert list(parameters) == list(config.parameters())
    back = theirs(name, parameters, config)
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[each], state_dict[each]) for each in back)
    PreLNBlock(config).load_state_dict(parameters)


def test_of_gpt_oss_one_expert_is_chosen():
    config = GptOssConfig(**SIZES, head_dim=8, num_local_experts=3, layer_types=["sliding_attention"], num_hidden_layers=1)
    layer = randomise(GptOssDecoderLayer(config, 0))
    block = replace(BLOCK, sink=True, qkv_bias=True, o_bias=True, feed_forward_bias=True)
    parameters = from_hf(one_expert(layer.state_dict(), 1))
    assert list(parameters) == list(block.parameters())
    PreLNBlock(block).load_state_dict(parameters)
    x, experts = torch.randn(5, 32, dtype=torch.float64), layer.mlp.experts
    gate_up = x @ experts.gate_up_proj[1] + experts.gate_up_proj_bias[1]
    for part, columns in (("gate", gate_up[..., ::2]), ("up", gate_up[..., 1::2])):
        made = x @ parameters[f"feed_forward.{part}.weight"].T + parameters[f"feed_forward.{part}.bias"]
        torch.testing.assert_close(made, columns, rtol=1e-13, atol=1e-13)


def test_rows_of_another_config_are_said():
    parameters = {name: torch.zeros(shape) for name, shape in BLOCK.parameters().items()}
    layer = theirs("phi", parameters, BLOCK)
    with pytest.raises(ValueError, match=re.escape("self_attn.qkv_proj.weight has 64 rows; with this config it must have 48")):
        split_fused(layer, replace(BLOCK, n_kv_heads=1))


@pytest.mark.parametrize(("start", "end"), [(from_hf, to_hf), (from_meta, to_meta)])
def test_a_prefix_picks_a_layer(start, end):
    layers = [{name: f"{name} of {layer}" for name in BLOCK.parameters()} for layer in (3, 31)]
    model = end(layers[0], "model.layers.3.") | end(layers[1], "model.layers.31.") | {"model.norm.weight": ""}
    assert start(model, "model.layers.3.") == layers[0]
    assert start(model, "model.layers.31.") == layers[1]


def test_metas_gate_and_up():
    names = to_meta({name: name for name in BLOCK.parameters()})
    assert names["feed_forward.w1.weight"] == "feed_forward.gate.weight"
    assert names["feed_forward.w2.weight"] == "feed_forward.down.weight"
    assert names["feed_forward.w3.weight"] == "feed_forward.up.weight"
    assert from_meta(names) == {name: name for name in BLOCK.parameters()}


def test_no_two_names_are_one():
    for names in (HF, GLM4, META):
        assert len(set(names.values())) == len(names)


def test_unknown_and_missing_names_are_said():
    given = to_hf(dict.fromkeys(BLOCK.parameters(), 0), "layers.0.")
    extra = given | {"layers.0.self_attn.rotary_emb.inv_freq": 0}
    with pytest.raises(ValueError, match=re.escape("unknown: layers.0.self_attn.rotary_emb.inv_freq")):
        from_hf(extra, "layers.0.")
    del given["layers.0.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=re.escape("missing: layers.0.mlp.up_proj.weight")):
        from_hf(given, "layers.0.")
    with pytest.raises(ValueError, match=re.escape(r"unknown: attention.q_norm.weight")):
        to_meta(dict.fromkeys(QWEN3.parameters(), 0))
    with pytest.raises(ValueError, match=r"missing: input_layernorm\.weight"):
        from_hf({})
    with pytest.raises(ValueError, match="placement is 'post'; it must be one of pre, sandwich, branch, parallel"):
        from_hf({}, placement="post")
