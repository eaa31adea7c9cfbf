"""How tensors are drawn, as a case says it."""

from dataclasses import dataclass
from typing import Literal

Rows = Literal[
    "dense",
    "zero_rows",
    "constant_rows",
    "spike",
    "nan_row",
    "inf_row",
    "zero_columns",
    "constant_columns",
    "uneven_groups",
    "exact",
]
Weight = Literal["absent", "ones", "signed", "tiny", "far_from_one"]
Cotangent = Literal["random", "aligned", "ones"]

LARGEST_WEIGHT: dict[Weight, float] = {"absent": 1.0, "ones": 1.0, "signed": 31 / 16 + 1, "tiny": 1e-6, "far_from_one": 15.8125}


@dataclass(frozen=True, slots=True)
class Draw:
    """How x is drawn: bell-shaped values, `offset + scale · N(0, 1)`, and what is done to its rows.

    The rows: `dense` leaves them; `zero_rows` clears every other one; `constant_rows` repeats their first value;
    `spike` keeps one value in each; `nan_row` and `inf_row` put one such value into the first; `zero_columns` clears every
    other feature, `constant_columns` repeats its first value; `uneven_groups` makes every third of the features 32 times as
    small as the one before. With `exact` all tensors are those of an exact case.
    """

    scale: float = 1.0
    offset: float = 0.0
    rows: Rows = "dense"

    def __str__(self) -> str:
        """The draw as a formula, without what is done to the rows."""
        return f"{self.offset:g} + {self.scale:.3g} · N(0, 1)" if self.offset else f"{self.scale:.3g} · N(0, 1)"
