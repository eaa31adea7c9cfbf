"""The judges, in the order of the page."""

from conformance.tools.judges import own, rules
from conformance.tools.judges.judge import Judge

HALF_OF_LIGER = {"float16": (2e-2, 2e-1), "bfloat16": (2e-2, 2e-1)}
HALF_AT_1E_2 = {"float16": (1e-2, 1e-2), "bfloat16": (1e-2, 1e-2)}

JUDGES = (
    Judge(
        "torch_testing",
        "torch.testing",
        "torch/testing/_comparison.py, `assert_close`",
        "rtol and atol by dtype: 1.3e-6 and 1e-5, 1.6e-2 and 1e-5, 1e-3 and 1e-5",
        rules.close({"float32": (1.3e-6, 1e-5), "bfloat16": (1.6e-2, 1e-5), "float16": (1e-3, 1e-5)}),
        own=own.SUMMED,
    ),
    Judge(
        "kernelbench",
        "KernelBench",
        "ScalingIntelligence/KernelBench, src/kernelbench/eval.py, `get_tolerance_for_precision`",
        "1e-4, both, and 1e-2 in half precision; y alone",
        rules.close({"float32": (1e-4, 1e-4)} | HALF_AT_1E_2),
        asks_gradients=False,
        own=own.KERNELBENCH,
    ),
    Judge(
        "backendbench",
        "BackendBench",
        "meta-pytorch/BackendBench, BackendBench/eval.py, `_allclose`",
        "1e-2, both",
        rules.close(rules.everywhere(1e-2, 1e-2)),
    ),
    Judge(
        "robust_kbench",
        "robust-kbench",
        "SakanaAI/robust-kbench",
        "1e-5, both, whatever the dtype",
        rules.close(rules.everywhere(1e-5, 1e-5)),
    ),
    Judge(
        "vllm",
        "vLLM",
        "vllm-project/vllm, tests/kernels/core/test_layernorm.py",
        "1e-2, both; y alone",
        rules.close(rules.everywhere(1e-2, 1e-2)),
        ops=own.RMS,
        asks_gradients=False,
        own=own.VLLM,
    ),
    Judge(
        "flashinfer",
        "FlashInfer",
        "flashinfer-ai/flashinfer, tests/utils/test_norm.py",
        "1e-3, both, and 1e-2 of a LayerNorm; y alone",
        rules.by_norm(rules.close(rules.everywhere(1e-3, 1e-3)), rules.close(rules.everywhere(1e-2, 1e-2))),
        asks_gradients=False,
        own=own.FLASHINFER,
    ),
    Judge(
        "liger",
        "Liger",
        "linkedin/Liger-Kernel, test/transformers/test_rms_norm.py, test_layer_norm.py",
        "float32: rtol 1e-6 and atol 1e-4, of a LayerNorm 1e-5, both; half precision: rtol 2e-2 and atol 2e-1",
        rules.by_norm(
            rules.close({"float32": (1e-6, 1e-4)} | HALF_OF_LIGER), rules.close({"float32": (1e-5, 1e-5)} | HALF_OF_LIGER)
        ),
        own=own.LIGER,
    ),
    Judge(
        "quack",
        "quack",
        "Dao-AILab/quack, tests/test_rmsnorm.py",
        "rtol 1e-3, atol 1e-4, 1e-1 in bfloat16 and 1e-2 in float16; dweight by what 0.3 takes off it",
        rules.quack,
        ops=own.RMS,
        own=own.QUACK,
    ),
    Judge(
        "flash_attention",
        "FlashAttention",
        "Dao-AILab/flash-attention, tests/ops/test_dropout_layer_norm.py",
        "the largest error is at most four times that of a run in the dtype itself, and 1e-4",
        rules.flash_attention,
        own=own.FLASH_ATTENTION,
    ),
    Judge(
        "fla",
        "flash-linear-attention",
        "fla-org/flash-linear-attention, fla/utils.py, `assert_close`",
        "the errors' root mean square is less than 1e-3 of the values', or no error exceeds 1e-6",
        rules.flash_linear_attention,
    ),
    Judge(
        "transformer_engine",
        "TransformerEngine",
        "NVIDIA/TransformerEngine, tests/cpp/operator/test_normalization.cu",
        "y: rtol 5e-6 or atol 5e-7, 1e-2 or 1e-5, 1e-3 or 1e-5; gradients 5e-4, either",
        rules.transformer_engine,
        own=own.TRANSFORMER_ENGINE,
    ),
    Judge(
        "jax",
        "JAX",
        "jax-ml/jax, jax/_src/public_test_util.py",
        "1e-6, 1e-2 and 1e-3, both; gradients, against differences, 2e-3, 1e-1 and 1e-2",
        rules.close(
            {"float32": (1e-6, 1e-6), "bfloat16": (1e-2, 1e-2), "float16": (1e-3, 1e-3)},
            {"float32": (2e-3, 2e-3), "bfloat16": (1e-1, 1e-1), "float16": (1e-2, 1e-2)},
        ),
    ),
    Judge(
        "onnx",
        "ONNX",
        "onnx/onnx, onnx/backend/test/runner",
        "rtol 1e-3, atol 1e-7; y alone",
        rules.close(rules.everywhere(1e-3, 1e-7)),
        asks_gradients=False,
        own=own.ONNX,
    ),
    Judge(
        "tosa",
        "TOSA",
        "TOSA reference model, verify/verify_dot_product.cc",
        "half ulps of a run on magnitudes: each error, their squares together and their sum; y alone",
        rules.tosa,
        asks_gradients=False,
    ),
    Judge(
        "hipdnn",
        "hipDNN",
        "ROCm, hipdnn_test_sdk/utilities/DynamicTolerancesLayerNorm.hpp",
        "one number, from the width and the largest weight and bias; y alone",
        rules.hipdnn,
        asks_gradients=False,
    ),
    Judge(
        "stablehlo",
        "StableHLO",
        "openxla/stablehlo, `check.expect_close`",
        "3 ulp, its default",
        rules.ulps(3),
    ),
)
