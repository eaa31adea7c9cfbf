"""A norm's exact values -> what is expected of a port, in a dialect."""

from collections.abc import Mapping

import numpy as np

from conformance.numbers.expected import Expected
from conformance.numbers.rounding import HALF, DType, RoundingMode
from conformance.ops.norms import placements
from conformance.ops.norms.quantising import Quantising
from conformance.ops.norms.tolerances import norm_budget
from conformance.ops.norms.values import NormValues
from conformance.question.dialects import Dialect


def expected_outputs(
    storage_dtype: DType,
    norm: NormValues,
    dialect: Dialect,
    dtypes: dict[str, str],
    modes: Mapping[str, RoundingMode] | None = None,
    quantising: Quantising | None = None,
) -> dict[str, Expected]:
    """What is expected of a port whose exact values are `norm`, in this dialect and these dtypes, of x and of the outputs.

    `modes` are those of the last rounding of an output, where a mistake has another than to nearest. With `quantising` y is
    not returned, but what becomes of it.
    """
    with np.errstate(all="ignore"):
        budget = norm_budget(norm)
    match dialect.order:
        case "cast_then_scale":
            admitted = placements.cast_then_scale(norm, budget, storage_dtype, dialect.output_dtype(storage_dtype))
        case "scale_then_cast":
            admitted = placements.scale_then_cast(norm, budget, storage_dtype)
        case "either_order" if storage_dtype in HALF:  # BatchNorm, which nobody casts before it is scaled
            admitted = placements.scale_then_cast(norm, budget, storage_dtype)
        case "either_order":
            admitted = placements.unrounded(norm, budget)
    admitted |= placements.with_stages(admitted, norm, budget, storage_dtype)
    modes = modes or {}
    quantised = quantising.expected(admitted["y"][0], norm, budget.rstd, modes) if quantising else {}
    return {
        name: quantised.get(name)
        or Expected(norm.output(name), dtype, tuple(admitted[name]), mode=modes.get(name, "nearest_even"))
        for name, dtype in dtypes.items()
    }
