"""Precision: what is rounded that should not be, and what is added up in too low a precision."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from conformance.case import Op
from conformance.mistakes.mistake import ALL_NORMS, CENTRED, ROWS, Mistake
from conformance.norms.anatomy import Norm, Precision, Step
from conformance.norms.values import Arithmetic, Sum
from conformance.rounding import HALF, DType, round_to

TF32, FAST_RSQRT = 11, 12  # significant bits
ALREADY = "it is in that dtype already"
NO_NARROWER = {
    "float64": "the storage dtype is the compute dtype: nothing is rounded",
    "float32": "the storage dtype is the compute dtype: nothing is rounded more than it must be",
}


def _rounds(
    id_: str,
    sentence: str,
    rounded: Mapping[Step, Precision],
    effect: str,
    evidence: str,
    ops: tuple[Op, ...] = ALL_NORMS,
    hidden: Mapping[str, str] | None = None,
) -> Mistake:
    return Mistake(
        id_, sentence, lambda norm: replace(norm, rounded={**norm.rounded, **rounded}), effect, evidence, ops, hidden or {}
    )


def accumulates(*sums: Sum) -> Callable[[Norm], Norm]:
    """The sums are added up one by one in x's dtype; where that is the compute dtype, nothing is altered."""

    def alter(norm: Norm) -> Norm:
        if norm.case.dtype not in HALF:
            return norm
        low = dict.fromkeys(sums, norm.case.dtype)
        return replace(norm, arithmetic=replace(norm.arithmetic, sums={**norm.arithmetic.sums, **low}))

    return alter


def _computed_in(dtype: DType) -> Callable[[Norm], Norm]:
    """Everything is rounded to a dtype, inputs and outputs too; the gradients are known up to its noise."""
    every: tuple[Step, ...] = ("x", "weight", "mean", "centred", "squares", "mean_square", "rstd", "x_hat", "y", "dy_x_hat")

    def alter(norm: Norm) -> Norm:
        return replace(norm, rounded=dict.fromkeys(every, dtype), arithmetic=Arithmetic(dtype, dtype))

    return alter


def _computed_in_storage_dtype(norm: Norm) -> Norm:
    """Only sums are in float32, as every framework's own are; the forward pass is known exactly."""
    if norm.case.dtype not in HALF:
        return norm
    dtype = norm.case.dtype
    every: tuple[Step, ...] = ("weight", "mean", "centred", "squares", "mean_square", "x_hat")
    to_storage = lambda a: round_to(a.astype(np.float64), dtype).astype(a.dtype)  # noqa: E731
    return replace(
        norm,
        rounded=dict.fromkeys(every, dtype),
        rstd=lambda ms, eps: _kept_slope(lambda a: to_storage(to_storage(a + eps) ** -0.5), ms, (ms + eps) ** -0.5),
        arithmetic=Arithmetic("float32", dtype),
    )


def _kept_slope(rounded: Callable[[np.ndarray], np.ndarray], ms: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The rounded value, with the slope of the exact one, as autograd has it."""
    return rounded(np.real(ms)) + 1j * np.imag(exact)


def _one_pass(norm: Norm) -> Norm:
    """E[x²] − E[x]²: the difference keeps the rounding errors of its terms."""
    return replace(norm, arithmetic=replace(norm.arithmetic, one_pass=True))


MISTAKES = (
    Mistake(
        "other_order",
        "the cast stands on the other side of the weight",
        lambda norm: replace(norm, dialect=norm.dialect.other_order),
        "A quarter of the elements differ by one ulp; a weight of one, or of powers of two, hides it.",
        "TransformerEngine#1132, transformers#38131, vllm#42325, sglang#25920; torch.compile and XLA, which elide casts: "
        "pytorch#177163, pytorch#158699",
        ROWS,
        hidden=dict.fromkeys(NO_NARROWER, "there is no cast: both orders are one"),
        dialect=True,
    ),
    _rounds(
        "x_in_bfloat16",
        "x is rounded to bfloat16 before anything else",
        {"x": "bfloat16"},
        "Every element is off by up to 0.4 %.",
        "an autocast region, or a matrix unit, that takes its inputs in bfloat16",
        hidden={"bfloat16": ALREADY},
    ),
    _rounds(
        "x_in_float16",
        "x is rounded to float16 before anything else",
        {"x": "float16"},
        "Every element is off by up to 0.05 %; values beyond 65504 are infinite, small ones zero.",
        "an autocast region of float16",
        hidden={"float16": ALREADY},
    ),
    _rounds(
        "x_in_float32",
        "x is rounded to float32 before anything else",
        {"x": "float32"},
        "Every element is off by up to 6e-8.",
        "JAX without jax_enable_x64",
        hidden=dict.fromkeys(("float32", "bfloat16", "float16"), "every x is exact in float32"),
    ),
    _rounds(
        "weight_in_storage_dtype",
        "one plus weight, or a float32 weight, is rounded to x's dtype before it multiplies",
        {"weight": "storage"},
        "A quarter of the elements differ by one ulp.",
        "vllm#3653, vllm#29810",
        hidden=NO_NARROWER,
    ),
    _rounds(
        "parameters_in_storage_dtype",
        "float32 parameters are cast to x's dtype before they are used, and their gradients come back through the cast",
        {"weight": "storage", "bias": "storage", "dweight": "storage", "dbias": "storage"},
        "A quarter of the elements differ by one ulp; dweight and dbias have half precision's digits in float32.",
        "keras under mixed precision (RMSNormalization); flax nnx, given a dtype",
        hidden=NO_NARROWER,
    ),
    _rounds(
        "weight_in_bfloat16",
        "the weight is rounded to bfloat16",
        {"weight": "bfloat16"},
        "Every element is off by up to 0.4 %; a weight of few bits hides it.",
        "parameters cast with the activations",
    ),
    _rounds(
        "squares_in_storage_dtype",
        "the squares are rounded to x's dtype",
        {"squares": "storage"},
        "The errors of the squares average out but in narrow rows; in float16 squares beyond 65504 are infinite.",
        "pytorch#133085, onnxruntime#29034, onnxruntime#31626; MiniMind before April 2025",
        hidden=NO_NARROWER,
    ),
    _rounds(
        "squares_in_float16",
        "the squares are taken in float16, where they overflow",
        {"squares": "float16"},
        "Rows with a value beyond 256 come out as zeros, without any NaN.",
        "pytorch#133085, onnxruntime#29034, onnxruntime#31626",
    ),
    _rounds(
        "squares_in_tf32",
        "the squares are rounded to eleven bits, as a tf32 matrix product takes them",
        {"squares": TF32},
        "Every row is off by up to 1e-4: in bfloat16 one element in a hundred shows it.",
        "a row sum written as a product with ones on a matrix unit (jax#12008 tells of the precision)",
    ),
    _rounds(
        "mean_in_storage_dtype",
        "the mean is rounded to x's dtype",
        {"mean": "storage"},
        "Every row with a mean is shifted, by up to half an ulp of the mean.",
        "a statistic kept in the dtype of the activations (FlagGems#221, helion#2273)",
        CENTRED,
        NO_NARROWER,
    ),
    _rounds(
        "centred_in_storage_dtype",
        "x less its mean is rounded to x's dtype",
        {"centred": "storage"},
        "Every element is off by up to half an ulp of its own.",
        "planted: a difference taken in the dtype of the activations",
        CENTRED,
        NO_NARROWER,
    ),
    _rounds(
        "mean_square_in_storage_dtype",
        "the mean square is rounded to x's dtype",
        {"mean_square": "storage"},
        "Every row is off by a factor of its own; in float16 a mean square beyond 65504 is infinite.",
        "onnxruntime#29034: statistics in the dtype of the activations",
        hidden=NO_NARROWER,
    ),
    _rounds(
        "rstd_in_storage_dtype",
        "rstd is rounded to x's dtype",
        {"rstd": "storage"},
        "Every row is off by a factor of its own, up to half an ulp.",
        "amd/IRON#139",
        hidden=NO_NARROWER,
    ),
    _rounds(
        "rstd_in_bfloat16",
        "rstd is rounded to bfloat16",
        {"rstd": "bfloat16"},
        "Every row is off by a factor of its own, up to 0.4 %.",
        "amd/IRON#139",
    ),
    _rounds(
        "rstd_of_12_bits",
        "rstd has twelve bits, as a fast reciprocal root without a Newton step",
        {"rstd": FAST_RSQRT},
        "Every row is off by a factor of its own, up to 1.2e-4: 300 tolerances in float32.",
        "ncnn#6903",
    ),
    _rounds(
        "x_hat_in_bfloat16",
        "x_hat is rounded to bfloat16",
        {"x_hat": "bfloat16"},
        "Every element is off by up to 0.4 %.",
        "the cast of a bfloat16 model left in a float32 one",
    ),
    _rounds(
        "y_in_bfloat16",
        "y is rounded to bfloat16 on its way out",
        {"y": "bfloat16"},
        "Every element is off by up to 0.4 %.",
        "a kernel that always stores bfloat16",
        hidden={"bfloat16": ALREADY},
    ),
    _rounds(
        "y_in_float16",
        "y is rounded to float16 on its way out",
        {"y": "float16"},
        "Every element is off by up to 0.05 %.",
        "a kernel that always stores float16",
        hidden={"float16": ALREADY},
    ),
    Mistake(
        "computed_in_storage_dtype",
        "every step is rounded to x's dtype; sums alone are in float32",
        _computed_in_storage_dtype,
        "Half of the elements are off by one ulp or more; rows whose squares overflow are zeros.",
        "haiku's norms; MiniMind before April 2025",
        hidden=NO_NARROWER,
    ),
    Mistake(
        "computed_in_float32",
        "everything is computed in float32",
        _computed_in("float32"),
        "Every element is off by some 1e-7: nothing in any dtype but float64.",
        "keras: its norms compute in float32 for float64; JAX without jax_enable_x64",
        hidden=dict.fromkeys(("float32", "bfloat16", "float16"), "that is what is asked for"),
    ),
    Mistake(
        "squares_accumulated_in_storage_dtype",
        "the squares are added up one by one in x's dtype",
        accumulates("squares"),
        "The sum stops growing once it is 2^p times its terms: 58 tolerances in bfloat16 at n = 768.",
        "the accumulator of a hand-written kernel; mistakes of this kind: Liger-Kernel#950",
        hidden=NO_NARROWER,
    ),
    Mistake(
        "mean_accumulated_in_storage_dtype",
        "the mean is added up one by one in x's dtype",
        accumulates("mean"),
        "Every row is shifted by a share of its own mean magnitude.",
        "the accumulator of a hand-written kernel",
        CENTRED,
        hidden=NO_NARROWER,
    ),
    Mistake(
        "one_pass_variance",
        "the variance is taken in one pass, E[x²] - E[x]²",
        _one_pass,
        "Rows whose mean is large against their deviation lose digits, all of them at 1e4: 6e4 tolerances or NaN in float32.",
        "pytorch#51102, onnxruntime#21935, equinox#314; flax's use_fast_variance",
        CENTRED,
    ),
)
