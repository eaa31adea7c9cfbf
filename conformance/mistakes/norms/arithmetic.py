"""Mistakes of precision: the dtype in which everything is computed, or a sum is added up."""

from collections.abc import Callable

import numpy as np

from conformance.mistakes.mistake import CENTRED, Change, Mistake, Of, all_but, in_half
from conformance.mistakes.norms.precision import NO_NARROWER, Array, kept_slope
from conformance.numbers.rounding import DType, round_to
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.steps import Step
from conformance.ops.norms.values import Arithmetic

STORAGE = Of(lambda norm: norm.case.dtype)
ROUNDED: tuple[Step, ...] = ("weight", "mean", "centred", "squares", "mean_square", "x_hat")
EVERY: tuple[Step, ...] = (*ROUNDED, "x", "rstd", "y", "dy_x_hat")


def _computed_in(dtype: DType) -> Change:
    """Everything is rounded to a dtype, inputs and outputs too; the gradients are known up to its noise."""
    return {"rounded": dict.fromkeys(EVERY, dtype), "arithmetic": Arithmetic(dtype, dtype)}


def _computed_in_storage_dtype(root: Callable[[Array, Callable[[Array], Array]], Array]) -> Change:
    """Only sums are in float32, as every framework's own are; the forward pass is known exactly.

    rstd is a `root` of the mean square and of rounding to the storage dtype.
    """

    def rstd(norm: Norm) -> Callable[[Array, Array | float], Array]:
        to_storage = lambda a: round_to(a.astype(np.float64), norm.case.dtype).astype(a.dtype)  # noqa: E731
        rounded = lambda a: to_storage(root(to_storage(a), to_storage))  # noqa: E731
        return lambda ms, eps: kept_slope(lambda a: rounded(a + eps), ms, (ms + eps) ** -0.5)

    return {
        "rounded": dict.fromkeys(ROUNDED, "storage"),
        "rstd": Of(rstd),
        "arithmetic": Of(lambda norm: Arithmetic("float32", norm.case.dtype)),
    }


MISTAKES = (
    Mistake(
        "computed_in_storage_dtype",
        "every step is rounded to x's dtype; sums alone are in float32",
        _computed_in_storage_dtype(lambda mean_square, to_storage: mean_square**-0.5),
        "Half of the elements are off by one ulp or more; rows whose squares overflow are zeros.",
        "haiku's norms; MiniMind before April 2025",
        hidden=NO_NARROWER,
        where=in_half,
    ),
    Mistake(
        "computed_in_storage_dtype_root_first",
        "every step is rounded to x's dtype, the root too before it is divided by; sums alone are in float32",
        _computed_in_storage_dtype(lambda mean_square, to_storage: 1 / to_storage(np.sqrt(mean_square))),
        "Half of the elements are off by one ulp or more; rows whose squares overflow are zeros.",
        "torch.rsqrt of half precision on a CPU",
        hidden=NO_NARROWER,
        where=in_half,
    ),
    Mistake(
        "computed_in_float32",
        "everything is computed in float32",
        _computed_in("float32"),
        "Every element is off by some 1e-7: nothing in any dtype but float64.",
        "keras: its norms compute in float32 for float64; JAX without jax_enable_x64",
        hidden=dict.fromkeys(all_but("float64"), "that is what is asked for"),
    ),
    Mistake(
        "squares_accumulated_in_storage_dtype",
        "the squares are added up one by one in x's dtype",
        {"arithmetic.sums.squares": STORAGE},
        "The sum stops growing once it is 2^p times its terms: 58 tolerances in bfloat16 at n = 768.",
        "the accumulator of a hand-written kernel; mistakes of this kind: Liger-Kernel#950",
        hidden=NO_NARROWER,
        where=in_half,
    ),
    Mistake(
        "mean_accumulated_in_storage_dtype",
        "the mean is added up one by one in x's dtype",
        {"arithmetic.sums.mean": STORAGE},
        "Every row is shifted by a share of its own mean magnitude.",
        "the accumulator of a hand-written kernel",
        CENTRED,
        hidden=NO_NARROWER,
        where=in_half,
    ),
    Mistake(
        "one_pass_variance",
        "the variance is taken in one pass, E[x²] - E[x]²",
        {"arithmetic.one_pass": True},
        "Rows whose mean is large against their deviation lose digits, all of them at 1e4: 6e4 tolerances or NaN in float32.",
        "pytorch#51102, onnxruntime#21935, equinox#314; flax's use_fast_variance",
        CENTRED,
    ),
)
