"""What every norm is asked about arrays that are split over devices, and the cases of the row norms."""

from typing import Any

from conformance.numbers.rounding import DTYPES, HALF
from conformance.ops.norms.cases import ROW_NORMS, Probe, row_norm_case
from conformance.question import dialects

SHARDED: tuple[dict[str, Any], ...] = tuple(
    {"name": layout, "exposes": exposes, "shape": (8, 5, 32), "layout": layout}
    for layout, exposes in {
        "sharded_rows": "dweight of a part of the rows, averaged over the parts, or added up in the storage dtype",
        "sharded_features": "statistics of a part of the features, or sums over them divided by its width",
        "sharded_both": "a sum over all devices where it is one over some",
    }.items()
)
"""The questions about arrays that are split: four devices divide the axes, and the rows are no part of a block of 64."""

SHARDED_CASES = tuple(
    row_norm_case(op, dtype, dialect, Probe(**how))
    for op in ROW_NORMS
    for dtype in DTYPES
    for dialect in (dialects.HALF if dtype in HALF else dialects.SINGLE)
    for how in SHARDED
)
