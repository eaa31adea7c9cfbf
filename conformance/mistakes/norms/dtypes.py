"""The dtype in which an output is returned."""

from dataclasses import replace

import numpy as np

from conformance.mistakes.mistake import ROWS, Mistake
from conformance.numbers.rounding import round_to
from conformance.ops.norms.anatomy import Norm

Array = np.ndarray

DTYPE_ALONE = "The values may be right; what follows computes in another dtype than it was written for."
NO_MIX = {dtype: "weight and x have the same dtype in every case" for dtype in ("float64", "float32")}
NOT_HALF = {"float32": "it is asked for in float32", "float64": "float64 has a mistake of its own, computed_in_float32"}


def _returned(norm: Norm, output: str, dtype: str) -> Norm:
    return replace(norm, output_dtypes=lambda dtypes: dtypes | ({output: dtype} if output in dtypes else {}))


def _demoted(norm: Norm) -> Norm:
    def rounded(dy: Array) -> Array:
        return round_to(dy.astype(np.float64), norm.case.dtype).astype(dy.dtype)

    return replace(_returned(norm, "y", norm.case.dtype), cotangent=rounded)


def _parameter_gradients_in_float32(norm: Norm) -> Norm:
    if norm.case.dtype == "float64":
        return norm
    return replace(
        norm,
        output_dtypes=lambda dtypes: {name: "float32" if name in ("dweight", "dbias") else dtypes[name] for name in dtypes},
    )


def _in_float32(norm: Norm, output: str) -> Norm:
    return norm if norm.case.dtype == "float64" else _returned(norm, output, "float32")


MISTAKES = (
    Mistake(
        "y_promoted",
        "y is returned in the weight's dtype, where x's is asked for",
        lambda norm: _returned(norm, "y", norm.dialect.parameter_dtype(norm.case.dtype)),
        DTYPE_ALONE,
        "transformers#30236, minimind#665; flax, unless it is given a dtype",
        hidden=NO_MIX,
        dialect=True,
    ),
    Mistake(
        "y_demoted",
        "y is returned in x's dtype, where the weight's is asked for",
        _demoted,
        f"{DTYPE_ALONE} Autograd then takes dy in x's dtype, too.",
        "transformers#30236, minimind#665",
        ROWS,
        hidden=NO_MIX,
        dialect=True,
    ),
    Mistake(
        "y_in_float32",
        "y is returned in float32, not cast back",
        lambda norm: _in_float32(norm, "y"),
        DTYPE_ALONE,
        "transformers#30236",
        hidden=NOT_HALF,
        dialect=True,
    ),
    Mistake(
        "dx_in_float32",
        "dx is returned in float32, not cast back",
        lambda norm: _in_float32(norm, "dx"),
        DTYPE_ALONE,
        "planted: a backward that returns its accumulator",
        ROWS,
        hidden=NOT_HALF,
    ),
    Mistake(
        "parameter_gradients_in_float32",
        "dweight and dbias are returned in float32, not in their parameter's dtype",
        _parameter_gradients_in_float32,
        DTYPE_ALONE,
        "planted: a backward that returns its accumulator",
        ROWS,
        hidden=NOT_HALF,
    ),
)
