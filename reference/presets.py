"""Blocks that people know by name, and the same in a size to test."""

from dataclasses import replace

from reference.block_config import BlockConfig

PRESETS = {
    # The MiniMind of 2025: its RMSNorm casts, then scales.
    "minimind": BlockConfig(512, n_heads=8, n_kv_heads=2, d_head=64, d_ff=1408, rope_base=1e6),
    "minimind_2026": BlockConfig(
        768, n_heads=8, n_kv_heads=4, d_head=96, d_ff=2432, eps=1e-6, order="scale_then_cast", qk_norm=True, rope_base=1e6
    ),
    "llama": BlockConfig(2048, n_heads=32, n_kv_heads=8, d_head=64, d_ff=8192, rope_base=5e5),  # Llama 3.2 1B
    "qwen3": BlockConfig(1024, n_heads=16, n_kv_heads=8, d_head=128, d_ff=3072, eps=1e-6, qk_norm=True, rope_base=1e6),  # 0.6B
    "gpt2": BlockConfig(
        768,
        n_heads=12,
        n_kv_heads=12,
        d_head=64,
        d_ff=3072,
        norm="layer_norm",
        order="scale_then_cast",
        rope="none",
        feed_forward="gelu_tanh",
        qkv_bias=True,
        o_bias=True,
        feed_forward_bias=True,
    ),
    # Gemma 3 27B, a layer with a window.
    # https://huggingface.co/google/gemma-3-27b-it: query_pre_attn_scalar is 168, the width over the heads.
    "gemma3": BlockConfig(
        5376,
        n_heads=32,
        n_kv_heads=16,
        d_head=128,
        d_ff=21504,
        eps=1e-6,
        weight_offset=1.0,
        order="scale_then_cast",
        qk_norm=True,
        feed_forward="geglu_tanh",
        window=1024,
        attention_scale=168**-0.5,
        placement="sandwich",
    ),
    # gpt-oss-20b, a layer with a window; without YaRN's other frequencies. For its experts, which clamp gate and up and give
    # gate·sigmoid(1.702·gate)·(up + 1), stands a SwiGLU of one expert's size.
    # https://huggingface.co/openai/gpt-oss-20b
    "gpt_oss": BlockConfig(
        2880,
        n_heads=64,
        n_kv_heads=8,
        d_head=64,
        d_ff=2880,
        order="scale_then_cast",
        rope_base=150_000.0,
        qkv_bias=True,
        o_bias=True,
        feed_forward_bias=True,
        window=128,
        sink=True,
    ),
    # GLM-4-9B-0414. https://huggingface.co/zai-org/GLM-4-9B-0414
    "glm4": BlockConfig(
        4096,
        n_heads=32,
        n_kv_heads=2,
        d_head=128,
        d_ff=13696,
        rope="interleaved",
        qkv_bias=True,
        rotary_features=64,
        placement="sandwich",
    ),
    # Phi-4-mini: of 128 features 96 are turned. https://huggingface.co/microsoft/Phi-4-mini-instruct
    "phi": BlockConfig(3072, n_heads=24, n_kv_heads=8, d_head=128, d_ff=8192, rotary_features=96),
    # Gemma 2 9B (arXiv:2408.00118), a layer with a window.
    # https://huggingface.co/google/gemma-2-9b: query_pre_attn_scalar is 256, as d_head is.
    "gemma2": BlockConfig(
        3584,
        n_heads=16,
        n_kv_heads=8,
        d_head=256,
        d_ff=14336,
        eps=1e-6,
        weight_offset=1.0,
        order="scale_then_cast",
        feed_forward="geglu_tanh",
        window=4096,
        softcap=50.0,
        placement="sandwich",
    ),
    # OLMo 2 7B (arXiv:2501.00656). https://huggingface.co/allenai/OLMo-2-1124-7B
    "olmo2": BlockConfig(
        4096,
        n_heads=32,
        n_kv_heads=32,
        d_head=128,
        d_ff=11008,
        eps=1e-6,
        order="scale_then_cast",
        qk_norm=True,
        qk_norm_over="all_heads",
        rope_base=5e5,
        placement="branch",
    ),
    # Command R, 35B, as Hugging Face's CohereConfig has it.
    "cohere": BlockConfig(
        8192,
        n_heads=64,
        n_kv_heads=64,
        d_head=128,
        d_ff=22528,
        norm="layer_norm",
        order="scale_then_cast",
        rope="interleaved",
        rope_base=5e5,
        placement="parallel",
        norm_bias=False,
    ),
    # BERT base (arXiv:1810.04805): the first transformer's block (arXiv:1706.03762), with GELU instead of ReLU.
    "post_ln": BlockConfig(
        768,
        n_heads=12,
        n_kv_heads=12,
        d_head=64,
        d_ff=3072,
        norm="layer_norm",
        eps=1e-12,
        order="scale_then_cast",
        rope="none",
        feed_forward="gelu",
        qkv_bias=True,
        o_bias=True,
        feed_forward_bias=True,
        causal=False,
        placement="post",
    ),
    # The MiniMind of 2025 without its norms.
    "no_norm": BlockConfig(512, n_heads=8, n_kv_heads=2, d_head=64, d_ff=1408, rope_base=1e6, placement="none"),
}
"""Blocks that people know, in the sizes that they are known by."""


def small(config: BlockConfig) -> BlockConfig:
    """The same block in a size to test: no two of its dimensions are equal, and heads share keys where the large one's do.

    Of a head as large a share is turned, and the scale is as far from d_head^-1/2; a window is narrow and a cap is low enough
    for few keys and for scores about one.
    """
    n_heads = 6 if config.n_heads == config.n_kv_heads else 4
    n_kv_heads = max(2, n_heads * config.n_kv_heads // config.n_heads)  # one head for all would hide which one is whose
    inner = config.n_heads * config.d_head
    d_head = 8 if inner == config.d_model else 16 if inner > config.d_model else 6
    share = d_head / config.d_head
    return replace(
        config,
        d_model=n_heads * 8,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        d_ff=20,
        window=config.window and 4,
        softcap=config.softcap and 1.5,
        attention_scale=config.attention_scale and config.attention_scale * share**-0.5,
        rotary_features=config.rotary_features and int(config.rotary_features * share),
    )
