"""The cases of the row norms in which groups of features have statistics of their own."""

from collections.abc import Iterator

from conformance.numbers.rounding import HALF, DType
from conformance.ops.draw import Draw
from conformance.ops.norms.cases import ROW_NORMS, NormCase, Probe, row_norm_case
from conformance.question import dialects

SHAPE = (3, 24)
GROUPS = (
    Probe("groups_of_8", "statistics of the whole row, or of another group", SHAPE, x=Draw(rows="uneven_groups"), group_size=8),
)
EDGES = (
    Probe("groups_of_1", "a group of a single feature", SHAPE, group_size=1),
    Probe("groups_of_24", "a group that is the whole row", SHAPE, group_size=24),
)
DTYPES: tuple[DType, ...] = ("float32", "bfloat16")
"""Those that groups are asked in: what they get wrong no dtype hides."""


def _cases() -> Iterator[NormCase]:
    for op in ROW_NORMS:
        for dtype in DTYPES:
            for dialect in dialects.HALF if dtype in HALF else dialects.SINGLE:
                for probe in GROUPS + (EDGES if dtype == "float32" else ()):
                    yield row_norm_case(op, dtype, dialect, probe)


GROUPED_CASES = tuple(_cases())
