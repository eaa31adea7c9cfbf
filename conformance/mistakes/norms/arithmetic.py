"""Mistakes of precision: the dtype in which everything is computed, or a sum is added up."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from conformance.mistakes.mistake import CENTRED, Mistake
from conformance.mistakes.norms.precision import NO_NARROWER, Array, kept_slope
from conformance.numbers.rounding import HALF, DType, round_to
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.steps import Step
from conformance.ops.norms.values import Arithmetic, Sum


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


def _computed_in_storage_dtype(norm: Norm, *, root_first: bool = False) -> Norm:
    """Only sums are in float32, as every framework's own are; the forward pass is known exactly.

    With `root_first` the root is rounded before it is divided by, as torch's rsqrt does on a CPU.
    """
    if norm.case.dtype not in HALF:
        return norm
    dtype = norm.case.dtype
    every: tuple[Step, ...] = ("weight", "mean", "centred", "squares", "mean_square", "x_hat")
    to_storage = lambda a: round_to(a.astype(np.float64), dtype).astype(a.dtype)  # noqa: E731

    def rstd(mean_square: Array) -> Array:
        return to_storage(1 / to_storage(np.sqrt(mean_square)) if root_first else mean_square**-0.5)

    return replace(
        norm,
        rounded=dict.fromkeys(every, dtype),
        rstd=lambda ms, eps: kept_slope(lambda a: rstd(to_storage(a + eps)), ms, (ms + eps) ** -0.5),
        arithmetic=Arithmetic("float32", dtype),
    )


def _one_pass(norm: Norm) -> Norm:
    """E[x²] − E[x]²: the difference keeps the rounding errors of its terms."""
    return replace(norm, arithmetic=replace(norm.arithmetic, one_pass=True))


MISTAKES = (
    Mistake(
        "computed_in_storage_dtype",
        "every step is rounded to x's dtype; sums alone are in float32",
        _computed_in_storage_dtype,
        "Half of the elements are off by one ulp or more; rows whose squares overflow are zeros.",
        "haiku's norms; MiniMind before April 2025",
        hidden=NO_NARROWER,
    ),
    Mistake(
        "computed_in_storage_dtype_root_first",
        "every step is rounded to x's dtype, the root too before it is divided by; sums alone are in float32",
        partial(_computed_in_storage_dtype, root_first=True),
        "Half of the elements are off by one ulp or more; rows whose squares overflow are zeros.",
        "torch.rsqrt of half precision on a CPU",
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
