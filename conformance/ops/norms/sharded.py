"""What every norm is asked about arrays that are split over devices."""

from typing import Any

SHARDED: tuple[dict[str, Any], ...] = tuple(
    {"name": layout, "exposes": exposes, "shape": (8, 5, 32), "layout": layout}
    for layout, exposes in {
        "sharded_rows": "dweight of a part of the rows, averaged over the parts, or added up in the storage dtype",
        "sharded_features": "statistics of a part of the features, or sums over them divided by its width",
        "sharded_both": "a sum over all devices where it is one over some",
    }.items()
)
"""The questions about arrays that are split: four devices divide the axes, and the rows are no part of a block of 64."""
