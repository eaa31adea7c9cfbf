"""Precision: what is rounded that should not be, and what is added up in too low a precision."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from conformance.mistakes.mistake import CENTRED, RMS, ROWS, Mistake, Of, all_but, in_half
from conformance.numbers.rounding import round_to
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.steps import Steps

Array = np.ndarray
TF32 = 11  # significant bits
IN_WORDS = {10: "ten", 11: "eleven", 12: "twelve"}
MAGIC = np.int32(0x5F3759DF)
STATISTICS = "planted: statistics in the dtype that the rest of the network is trained in"
ALREADY = "it is in that dtype already"
NO_NARROWER = {
    "float64": "the storage dtype is the compute dtype: nothing is rounded",
    "float32": "the storage dtype is the compute dtype: nothing is rounded more than it must be",
}


def kept_slope(rounded: Callable[[Array], Array], ms: Array, exact: Array) -> Array:
    """The rounded value, with the slope of the exact one, as autograd has it."""
    return rounded(np.real(ms)) + 1j * np.imag(exact)


def _of_bits(bits: int, evidence: str) -> Mistake:
    """rstd as a fast reciprocal root gives it. Rounded, it is off by up to 2^-bits."""
    return Mistake(
        f"rstd_of_{bits}_bits",
        f"rstd has {IN_WORDS[bits]} bits, as a fast reciprocal root without a Newton step",
        {"rounded.rstd": bits},
        f"Every row is off by a factor of its own, up to {2.0**-bits:.1e}.",
        evidence,
    )


def _with_exact_rstd(norm: Norm) -> Callable[[Steps], Steps]:
    def again(s: Steps) -> Steps:
        rstd = np.real(norm.rstd(s.mean_square.astype(np.complex128), norm.row_eps(norm.eps, s))).astype(s.rstd.dtype)
        return replace(s, rstd=rstd, x_hat=s.shifted * rstd)

    return again


def _fast_root(steps: int) -> Callable[[Array, Array | float], Array]:
    """The reciprocal root by a shift of float32's bits, then Newton steps, in float32."""

    def root(a: Array) -> Array:
        single = np.asarray(a, np.float32)
        estimate = (MAGIC - (single.view(np.int32) >> 1)).view(np.float32)
        for _ in range(steps):
            estimate = estimate * (np.float32(1.5) - np.float32(0.5) * single * estimate * estimate)
        return estimate.astype(a.dtype)

    def rstd(mean_square: Array, eps: Array | float) -> Array:
        return kept_slope(lambda a: root(a + eps), mean_square, (mean_square + eps) ** -0.5)

    return rstd


def _to_bfloat16(x: Array) -> Array:
    return round_to(x.astype(np.float64), "bfloat16").astype(x.dtype)


def _squares_of_bfloat16(norm: Norm) -> Callable[[Steps], tuple[Array, Array]]:
    def squares(s: Steps) -> tuple[Array, Array]:
        centred = _to_bfloat16(s.x) - s.row_mean if norm.centre_statistics else _to_bfloat16(s.x)
        return np.square(centred), 2 * centred

    return squares


MISTAKES = (
    Mistake(
        "other_order",
        "the cast stands on the other side of the weight",
        {"dialect": Of(lambda norm: norm.dialect.other_order)},
        "A quarter of the elements differ by one ulp; a weight of one, or of powers of two, hides it.",
        "TransformerEngine#1132, transformers#38131, vllm#42325, sglang#25920; torch.compile and XLA, which elide casts: "
        "pytorch#177163, pytorch#158699",
        ROWS,
        hidden=dict.fromkeys(NO_NARROWER, "there is no cast: both orders are one"),
        dialect=True,
    ),
    Mistake(
        "x_in_bfloat16",
        "x is rounded to bfloat16 before anything else",
        {"rounded.x": "bfloat16"},
        "Every element is off by up to 0.4 %.",
        "an autocast region, or a matrix unit, that takes its inputs in bfloat16",
        hidden={"bfloat16": ALREADY},
    ),
    Mistake(
        "x_in_float16",
        "x is rounded to float16 before anything else",
        {"rounded.x": "float16"},
        "Every element is off by up to 0.05 %; values beyond 65504 are infinite, small ones zero.",
        "an autocast region of float16",
        hidden={"float16": ALREADY},
    ),
    Mistake(
        "x_in_float32",
        "x is rounded to float32 before anything else",
        {"rounded.x": "float32"},
        "Every element is off by up to 6e-8.",
        "JAX without jax_enable_x64",
        hidden=dict.fromkeys(all_but("float64"), "every x is exact in float32"),
    ),
    Mistake(
        "weight_in_storage_dtype",
        "one plus weight, or a float32 weight, is rounded to x's dtype before it multiplies",
        {"rounded.weight": "storage"},
        "A quarter of the elements differ by one ulp.",
        "vllm#3653, vllm#29810",
        hidden=NO_NARROWER,
    ),
    Mistake(
        "parameters_in_storage_dtype",
        "float32 parameters are cast to x's dtype before they are used, and their gradients come back through the cast",
        {"rounded.weight": "storage", "rounded.bias": "storage", "rounded.dweight": "storage", "rounded.dbias": "storage"},
        "A quarter of the elements differ by one ulp; dweight and dbias have half precision's digits in float32.",
        "keras under mixed precision (RMSNormalization); flax nnx, given a dtype",
        hidden=NO_NARROWER,
    ),
    Mistake(
        "weight_in_bfloat16",
        "the weight is rounded to bfloat16",
        {"rounded.weight": "bfloat16"},
        "Every element is off by up to 0.4 %; a weight of few bits hides it.",
        "parameters cast with the activations",
    ),
    Mistake(
        "squares_in_storage_dtype",
        "the squares are rounded to x's dtype",
        {"rounded.squares": "storage"},
        "The errors of the squares average out but in narrow rows; in float16 squares beyond 65504 are infinite.",
        "pytorch#133085, onnxruntime#29034, onnxruntime#31626; MiniMind before April 2025",
        hidden=NO_NARROWER,
    ),
    Mistake(
        "squares_in_float16",
        "the squares are taken in float16, where they overflow",
        {"rounded.squares": "float16"},
        "Rows with a value beyond 256 come out as zeros, without any NaN.",
        "pytorch#133085, onnxruntime#29034, onnxruntime#31626",
    ),
    Mistake(
        "squares_in_tf32",
        "the squares are rounded to eleven bits, as a tf32 matrix product takes them",
        {"rounded.squares": TF32},
        "Every row is off by up to 1e-4: in bfloat16 one element in a hundred shows it.",
        "a row sum written as a product with ones on a matrix unit (jax#12008 tells of the precision)",
    ),
    Mistake(
        "mean_in_storage_dtype",
        "the mean is rounded to x's dtype",
        {"rounded.mean": "storage"},
        "Every row with a mean is shifted, by up to half an ulp of the mean.",
        "a statistic kept in the dtype of the activations (FlagGems#221, helion#2273)",
        CENTRED,
        NO_NARROWER,
    ),
    Mistake(
        "centred_in_storage_dtype",
        "x less its mean is rounded to x's dtype",
        {"rounded.centred": "storage"},
        "Every element is off by up to half an ulp of its own.",
        "planted: a difference taken in the dtype of the activations",
        CENTRED,
        NO_NARROWER,
    ),
    Mistake(
        "mean_square_in_storage_dtype",
        "the mean square is rounded to x's dtype",
        {"rounded.mean_square": "storage"},
        "Every row is off by a factor of its own; in float16 a mean square beyond 65504 is infinite.",
        "onnxruntime#29034: statistics in the dtype of the activations",
        hidden=NO_NARROWER,
    ),
    Mistake(
        "rstd_in_storage_dtype",
        "rstd is rounded to x's dtype",
        {"rounded.rstd": "storage"},
        "Every row is off by a factor of its own, up to half an ulp.",
        "amd/IRON#139",
        hidden=NO_NARROWER,
    ),
    Mistake(
        "rstd_in_storage_dtype_in_forward",
        "rstd is rounded to x's dtype for y; the backward pass computes it again",
        {"rounded.rstd": "storage", "saved": Of(_with_exact_rstd)},
        "Every row of y is off by a factor of its own, up to half an ulp; the gradients are right.",
        "planted: a fused forward beside an eager backward",
        hidden=NO_NARROWER,
        where=in_half,
    ),
    Mistake(
        "rstd_in_bfloat16",
        "rstd is rounded to bfloat16",
        {"rounded.rstd": "bfloat16"},
        "Every row is off by a factor of its own, up to 0.4 %.",
        "amd/IRON#139",
    ),
    _of_bits(10, "planted: a table of a thousand entries"),
    _of_bits(11, "a float16 reciprocal root; the rsqrtss of x86, whose relative error is below 1.5·2^-12"),
    _of_bits(12, "ncnn#6903"),
    Mistake(
        "fast_inverse_root_1",
        "rstd is the fast inverse square root of float32's bits, with one Newton step",
        {"rstd": _fast_root(1)},
        "Every row is too small, by up to 1.8e-3: one ulp in bfloat16 where it tips.",
        "Quake III Arena's Q_rsqrt, copied since",
    ),
    Mistake(  # LayerNorm is off by as much, but hardly further than an honest one may be
        "fast_inverse_root_2",
        "rstd is the fast inverse square root of float32's bits, with two Newton steps",
        {"rstd": _fast_root(2)},
        "Every row is too small, by up to 4.7e-6.",
        "Quake III Arena's Q_rsqrt, copied since",
        RMS,
    ),
    Mistake(
        "mean_in_bfloat16",
        "the mean is rounded to bfloat16",
        {"rounded.mean": "bfloat16"},
        "Every row with a mean is shifted, by up to 0.4 % of its mean.",
        STATISTICS,
        CENTRED,
    ),
    Mistake(
        "squares_in_bfloat16",
        "the squares are rounded to bfloat16",
        {"rounded.squares": "bfloat16"},
        "Every row is off by a factor of its own, some 0.03 %.",
        STATISTICS,
    ),
    Mistake(
        "mean_square_in_bfloat16",
        "the mean square is rounded to bfloat16",
        {"rounded.mean_square": "bfloat16"},
        "Every row is off by a factor of its own, up to 0.2 %.",
        STATISTICS,
    ),
    Mistake(
        "statistics_of_bfloat16_x",
        "the statistics are those of x rounded to bfloat16; what is scaled is x itself",
        {"summed": _to_bfloat16, "squares": Of(_squares_of_bfloat16)},
        "Every row is off by a factor of its own, some 0.02 %.",
        STATISTICS,
        hidden={"bfloat16": ALREADY},
    ),
)
