"""The dtype in which an output is returned."""

from collections.abc import Callable

import numpy as np

from conformance.mistakes.mistake import ROWS, Mistake, Of, all_but, in_dtypes
from conformance.numbers.rounding import SINGLE, round_to
from conformance.ops.norms.anatomy import Norm

Array = np.ndarray

DTYPE_ALONE = "The values may be right; what follows computes in another dtype than it was written for."
NO_MIX = {dtype: "weight and x have the same dtype in every case" for dtype in SINGLE}
NOT_HALF = {"float32": "it is asked for in float32", "float64": "float64 has a mistake of its own, computed_in_float32"}


def _returned(dtype: str, *outputs: str) -> Callable[[dict[str, str]], dict[str, str]]:
    return lambda dtypes: {name: dtype if name in outputs else own for name, own in dtypes.items()}


def _in_storage_dtype(norm: Norm) -> Callable[[Array], Array]:
    return lambda dy: round_to(dy.astype(np.float64), norm.case.dtype).astype(dy.dtype)


MISTAKES = (
    Mistake(
        "y_promoted",
        "y is returned in the weight's dtype, where x's is asked for",
        {"output_dtypes": Of(lambda norm: _returned(norm.dialect.parameter_dtype(norm.case.dtype), "y"))},
        DTYPE_ALONE,
        "transformers#30236, minimind#665; flax, unless it is given a dtype",
        hidden=NO_MIX,
        dialect=True,
    ),
    Mistake(
        "y_demoted",
        "y is returned in x's dtype, where the weight's is asked for",
        {"output_dtypes": Of(lambda norm: _returned(norm.case.dtype, "y")), "cotangent": Of(_in_storage_dtype)},
        f"{DTYPE_ALONE} Autograd then takes dy in x's dtype, too.",
        "transformers#30236, minimind#665",
        ROWS,
        hidden=NO_MIX,
        dialect=True,
    ),
    Mistake(
        "y_in_float32",
        "y is returned in float32, not cast back",
        {"output_dtypes": _returned("float32", "y")},
        DTYPE_ALONE,
        "transformers#30236",
        hidden=NOT_HALF,
        dialect=True,
        where=in_dtypes(*all_but("float64")),
    ),
    Mistake(
        "dx_in_float32",
        "dx is returned in float32, not cast back",
        {"output_dtypes": _returned("float32", "dx")},
        DTYPE_ALONE,
        "planted: a backward that returns its accumulator",
        ROWS,
        hidden=NOT_HALF,
        where=in_dtypes(*all_but("float64")),
    ),
    Mistake(
        "parameter_gradients_in_float32",
        "dweight and dbias are returned in float32, not in their parameter's dtype",
        {"output_dtypes": _returned("float32", "dweight", "dbias")},
        DTYPE_ALONE,
        "planted: a backward that returns its accumulator",
        ROWS,
        hidden=NOT_HALF,
        where=in_dtypes(*all_but("float64")),
    ),
)
