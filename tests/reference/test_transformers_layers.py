"""The golden block against Hugging Face's layers, given the same weights in float64: the output, dx and all gradients."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from block_inputs import draw

import reference
from reference import PRESETS, BlockConfig, small

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import (  # noqa: E402  # noqa: E402
    BertConfig,
    CohereConfig,
    DynamicCache,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Olmo2Config,
    PreTrainedConfig,
    Qwen3Config,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask  # noqa: E402
from transformers.models.bert.modeling_bert import BertLayer  # noqa: E402
from transformers.models.cohere import modeling_cohere  # noqa: E402
from transformers.models.gemma2 import modeling_gemma2  # noqa: E402
from transformers.models.gpt2.modeling_gpt2 import GPT2Block  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402
from transformers.models.olmo2 import modeling_olmo2  # noqa: E402
from transformers.models.qwen3 import modeling_qwen3  # noqa: E402

Array = np.ndarray
Tensors = dict[str, torch.Tensor]

# In the norm: each of some twenty steps, forward and back, is a sum of at most 64 terms, off by √64 · 2⁻⁵³ of what it adds.
TOLERANCE = 20 * 8 * 2.0**-53

LLAMA, GPT2 = small(PRESETS["llama"]), small(PRESETS["gpt2"])
FAMILIES = ("minimind", "minimind_2026", "llama", "qwen3", "gpt2", "gemma2", "olmo2", "cohere")
CONFIGS = {name: small(PRESETS[name]) for name in FAMILIES} | {
    "multi_head": replace(LLAMA, n_kv_heads=LLAMA.n_heads),
    "multi_query": replace(LLAMA, n_kv_heads=1),
    "biases": replace(LLAMA, qkv_bias=True, o_bias=True, feed_forward_bias=True),
    "gelu": replace(GPT2, feed_forward="gelu"),
}
BATCH, PAST, S = 2, 3, 4

OF_LLAMA = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attention.{name}": f"self_attn.{name}_proj" for name in "qkvo"},
    **{f"attention.{name}_norm": f"self_attn.{name}_norm" for name in "qk"},
    **{f"feed_forward.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
BEHIND = {
    "attn_out_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_out_norm": "post_feedforward_layernorm",
}
OF_BERT = {
    **{f"attention.{name}": f"attention.self.{their}" for name, their in {"q": "query", "k": "key", "v": "value"}.items()},
    "attention.o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
OF_GPT2 = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.o": "attn.c_proj",
    "ffn_norm": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}


class TorchInFloat64:
    """torch, but for float32: what a layer computes in float32 whatever it is given, it computes in float64."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def _one_thread():
    """Matrices this small are not worth waiting for another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _norms_softmax_and_angles_in_float64(monkeypatch):
    for module in (modeling_llama, modeling_qwen3, modeling_gemma2, modeling_olmo2, modeling_cohere):
        monkeypatch.setattr(module, "torch", TorchInFloat64())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


class Layer(NamedTuple):
    """A layer of Hugging Face's, which is given its parameters with every call, and what a model has around it."""

    config: PreTrainedConfig
    module: torch.nn.Module
    rope: torch.nn.Module | None
    named_theirs: Callable[[Tensors], Tensors]
    make_mask: Callable[..., torch.Tensor | None] = create_causal_mask

    def __call__(
        self,
        x: torch.Tensor,
        parameters: Tensors,
        *,
        position: int = 0,
        cache: DynamicCache | None = None,
        key_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        positions = torch.arange(position, position + x.shape[1])[None]
        mask = self.make_mask(self.config, x, key_mask, cache, positions)
        how = {"attention_mask": mask, "past_key_values": cache}
        if self.rope is not None:
            how["position_embeddings"] = self.rope(x, positions)
        return torch.func.functional_call(self.module, self.named_theirs(parameters), (x,), how, strict=True)


def make_layer(config: BlockConfig) -> Layer:
    sizes = {"hidden_size": config.d_model, "num_attention_heads": config.n_heads, "attn_implementation": "eager"}
    if config.norm == "layer_norm" and config.placement == "pre":
        act = {"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.feed_forward]
        gpt2 = GPT2Config(**sizes, n_inner=config.d_ff, activation_function=act, layer_norm_epsilon=config.eps)
        return Layer(gpt2, GPT2Block(gpt2, layer_idx=0).eval(), None, named_as_gpt2)
    sizes |= {"num_key_value_heads": config.n_kv_heads, "head_dim": config.d_head, "intermediate_size": config.d_ff}
    sizes |= {"num_hidden_layers": 1, "rope_parameters": {"rope_theta": config.rope_base, "rope_type": "default"}}
    if config.placement == "parallel":
        cohere = CohereConfig(**sizes, layer_norm_eps=config.eps)
        rope = modeling_cohere.CohereRotaryEmbedding(cohere)
        return Layer(cohere, modeling_cohere.CohereDecoderLayer(cohere, layer_idx=0), rope, named_as_llama)
    sizes |= {"rms_norm_eps": config.eps}
    if config.placement == "branch":
        olmo2 = Olmo2Config(**sizes)
        rope = modeling_olmo2.Olmo2RotaryEmbedding(olmo2)
        return Layer(olmo2, modeling_olmo2.Olmo2DecoderLayer(olmo2, layer_idx=0), rope, named_as_gemma2)
    if config.placement == "sandwich":
        sizes |= {"query_pre_attn_scalar": config.d_head, "attn_logit_softcapping": config.softcap}
        sizes |= {"sliding_window": config.window, "layer_types": ["sliding_attention"]}
        gemma2 = Gemma2Config(**sizes)
        rope, module = modeling_gemma2.Gemma2RotaryEmbedding(gemma2), modeling_gemma2.Gemma2DecoderLayer(gemma2, layer_idx=0)
        return Layer(gemma2, module, rope, named_as_gemma2, create_sliding_window_causal_mask)
    if config.qk_norm:
        qwen3 = Qwen3Config(**sizes)
        rope = modeling_qwen3.Qwen3RotaryEmbedding(qwen3)
        return Layer(qwen3, modeling_qwen3.Qwen3DecoderLayer(qwen3, layer_idx=0), rope, named_as_llama)
    llama = LlamaConfig(**sizes, attention_bias=config.qkv_bias, mlp_bias=config.feed_forward_bias)
    rope = modeling_llama.LlamaRotaryEmbedding(llama)
    return Layer(llama, modeling_llama.LlamaDecoderLayer(llama, layer_idx=0), rope, named_as_llama)


def named_as_llama(parameters: Tensors) -> Tensors:
    return {f"{OF_LLAMA[layer]}.{kind}": p for (layer, kind), p in split_names(parameters).items()}


def named_as_gemma2(parameters: Tensors) -> Tensors:
    return {f"{(OF_LLAMA | BEHIND)[layer]}.{kind}": p for (layer, kind), p in split_names(parameters).items()}


def named_as_gpt2(parameters: Tensors) -> Tensors:
    """GPT-2's matrices are [in, out], and those of q, k and v are one."""
    p = split_names(parameters)
    p |= {
        ("attention.qkv", kind): torch.cat([p.pop((f"attention.{name}", kind)) for name in "qkv"])
        for kind in ("weight", "bias")
    }
    return {f"{OF_GPT2[layer]}.{kind}": a.T if a.ndim == 2 else a for (layer, kind), a in p.items()}


def split_names(parameters: Tensors) -> dict[tuple[str, str], torch.Tensor]:
    return {tuple(name.rsplit(".", 1)): p for name, p in parameters.items()}


def to_torch(arrays: dict[str, Array]) -> Tensors:
    return {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}


def assert_close(golden: Array, theirs: torch.Tensor, name: str) -> None:
    expected = theirs.detach().numpy()
    assert golden.shape == expected.shape
    assert np.linalg.norm(golden - expected) <= TOLERANCE * max(1, np.linalg.norm(expected)), name


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("cached", [False, True], ids=["", "cached"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_block_is_theirs(config, cached, masked):
    """Cached keys and values are what each side made of the same x before; padding stands in front, and nobody looks at it."""
    x, parameters, dout = draw(config, (BATCH, S))
    before = np.random.default_rng(1).normal(size=(BATCH, PAST, config.d_model))
    layer, theirs, past = make_layer(config), to_torch(parameters | {"x": x}), PAST if cached else 0
    key_mask = np.ones((BATCH, past + S), dtype=bool)
    key_mask[0, : past + 2] = not masked
    dout *= key_mask[:, past:, None]  # their padding has outputs of its own

    ours: dict[str, Any] = {"position": past, "key_mask": key_mask if masked else None}
    how: dict[str, Any] = {"position": past, "key_mask": torch.tensor(key_mask) if masked else None}
    if cached:
        _, taps = reference.pre_ln_block(before, parameters, config)
        ours |= {"k_cache": taps.get("k_rope", taps["k"]), "v_cache": taps["v"]}
        how["cache"] = DynamicCache()
        with torch.no_grad():
            layer(torch.tensor(before), to_torch(parameters), cache=how["cache"])

    out = layer(their_x := theirs.pop("x"), theirs, **how)
    out.backward(torch.tensor(dout))
    seen = key_mask[:, past:]
    assert_close(reference.pre_ln_block(x, parameters, config, **ours).out[seen], out[seen], "out")
    gradients = reference.pre_ln_block_vjp(dout, x, parameters, config, **ours)
    assert_close(gradients.pop("dx"), their_x.grad, "dx")
    for name, tensor in theirs.items():
        assert_close(gradients.pop(f"d{name}"), tensor.grad, name)
    assert not gradients


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_post_ln_is_berts(masked):
    """Which has no cache, and where a query sees what comes after it."""
    config = small(PRESETS["post_ln"])
    x, parameters, dout = draw(config, (BATCH, S))
    sizes = {"hidden_size": config.d_model, "num_attention_heads": config.n_heads, "intermediate_size": config.d_ff}
    bert = BertConfig(**sizes, layer_norm_eps=config.eps, hidden_act="gelu", attn_implementation="eager")
    named = to_torch(parameters | {"x": x})
    their_x, theirs = named.pop("x"), {f"{OF_BERT[a]}.{kind}": p for (a, kind), p in split_names(named).items()}
    key_mask = np.arange(S) >= [[1], [0]] if masked else None
    mask = torch.zeros(BATCH, 1, 1, S).double()
    if key_mask is not None:
        mask = mask.masked_fill(~torch.tensor(key_mask)[:, None, None], -torch.inf)
    out = torch.func.functional_call(BertLayer(bert).eval(), theirs, (their_x, mask), strict=True)
    out = out[0] if isinstance(out, tuple) else out
    out.backward(torch.tensor(dout))
    assert_close(reference.pre_ln_block(x, parameters, config, key_mask=key_mask).out, out, "out")
    gradients = reference.pre_ln_block_vjp(dout, x, parameters, config, key_mask=key_mask)
    assert_close(gradients.pop("dx"), their_x.grad, "dx")
    for name, tensor in named.items():
        assert_close(gradients[f"d{name}"], tensor.grad, name)
