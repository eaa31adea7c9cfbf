"""The table of the cases of a residual and a norm in one op: what only a sum, or two cotangents, can get wrong."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Any, Literal

import numpy as np

from conformance.numbers.draws import bell, random_words
from conformance.numbers.rounding import DTYPES, HALF, DType, store
from conformance.ops.draw import Draw
from conformance.ops.norms.cases import ADD_NORMS, AddNormOp, NormCase, NormOp, Probe, Y
from conformance.ops.norms.inputs import drawn_rows
from conformance.ops.norms.sharded import SHARDED
from conformance.ops.norms.stages import Added
from conformance.ops.op import Output
from conformance.question import dialects
from conformance.question.case import FIXTURE_ELEMENTS
from conformance.question.dialects import Dialect

RESIDUAL_OUT = Output("residual_out", lambda case: case.dialect.residual_dtype(case.dtype))

LARGE, NEARLY_NOTHING = 2.0**10, 2.0**-6  # times x

Residual = Literal["like_x", "is_x", "cancels", "large", "zero", "alone"]
Unread = Literal["", "y", "residual_out"]


@dataclass(frozen=True)
class AddProbe(Probe):
    """A row of the table: a case before its op, dialect and dtype are chosen.

    How the residual is drawn: `like_x`, with the same scale, offset and rows; as x itself, `is_x`; so that it nearly `cancels`
    x; 2¹⁰ times as `large`; `zero`; or `alone`, where x is zero. `unread` is the output that nothing reads, without cotangent.
    """

    residual: Residual = "like_x"
    unread: Unread = ""


@dataclass(frozen=True)
class AddNormCase(AddProbe, NormCase):
    """One question about a norm that first adds a residual to x, and returns the sum beside y."""

    op: NormOp = "add_rms_norm"
    dialect: Dialect = field(default_factory=lambda: Dialect("either_order"))

    @property
    def magnifies(self) -> float:
        """How many times as large as x the sum may be."""
        return 1.0 + (LARGE if self.residual == "large" else 1.0)

    @property
    def dialects(self) -> tuple[Dialect, ...]:
        """The dialects that its op has in its dtype."""
        return dialects.of(self.dtype, of_a_sum=True)

    @property
    def settings(self) -> dict[str, Any]:
        """What the op is called with besides eps, its offset and its order."""
        return {"sum": self.dialect.sum} if self.dialect.sum else {}

    @property
    def drawn(self) -> dict[str, str]:
        """How its tensors are drawn, and what it is called with, in words."""
        return super().drawn | {"residual": self.residual.replace("_", " ")}

    @property
    def returned(self) -> tuple[Output, ...]:
        """y, and the sum."""
        return (Y, RESIDUAL_OUT)

    @property
    def activations(self) -> dict[str, str]:
        """x and the residual, with their dtypes."""
        return {"x": self.dtype, "residual": RESIDUAL_OUT.dtype(self)}

    @property
    def has_fixture(self) -> bool:
        """Whether its golden values are stored: it has twice as many outputs of x's size as another norm.

        An output that nothing reads is the same question in every dialect: one is enough. And of float16, which shows what
        bfloat16 does, two dialects are.
        """
        seen_elsewhere = self.unread and self.dialect not in (*dialects.SINGLE, dialects.HALF_SUMS[0])
        shown_by_bfloat16 = self.dtype == "float16" and self.dialect not in dialects.HALF_SUMS[:2]
        return not (seen_elsewhere or shown_by_bfloat16) and 2 * prod(self.shape) <= FIXTURE_ELEMENTS

    def further_inputs(self, x: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """The residual and, if something reads the sum, its cotangent."""

        def drawn(name: str, scale: float = 1.0) -> np.ndarray:
            return scale * bell(random_words(self.id, name, seed, x.size)).reshape(x.shape)

        match self.residual:
            case "is_x":
                residual = x.astype(np.float64)
            case "cancels":
                residual = drawn("residual", NEARLY_NOTHING * self.x.scale) - x.astype(np.float64)
            case "large":
                residual = drawn("residual", LARGE * self.x.scale)
            case "zero":
                residual = np.zeros(x.shape)
            case "alone":
                residual = drawn("residual")
            case "like_x":
                residual = drawn_rows(self, "residual", seed)
        given = {"residual": store(residual, RESIDUAL_OUT.dtype(self))}
        if self.is_read("residual_out"):
            given["dresidual_out"] = store(drawn("dresidual_out", self.dy_scale), RESIDUAL_OUT.dtype(self))
        return given

    def is_read(self, output: str) -> bool:
        """Whether something reads an output, so that it has a cotangent."""
        return output != self.unread

    def parts(self, given: dict[str, np.ndarray]) -> dict[str, Any]:
        """The residual, and the cotangent of the sum: zeros where nothing reads it."""
        residual = given["residual"].astype(np.float64)
        cotangent = given.get("dresidual_out", np.zeros_like(residual)).astype(np.float64)
        is_rounded = self.dialect.sum == "rounded"
        return {"added": Added(residual, cotangent, self.dialect.residual_dtype(self.dtype), is_rounded)}


# What every dtype and dialect may show in its own way.
SUMS = (
    AddProbe("random", "the formula itself: the sum left out of y, of what is returned, or of a gradient"),
    AddProbe("rows_near_eps", "eps outside the root, added twice, or left out", x=Draw(scale=sqrt(1e-5))),
    AddProbe("cancels", "x for the sum, where little is left of it; a sum rounded too early", residual="cancels"),
    AddProbe("large_residual", "a sum that is rounded, or is not, before the norm reads it", residual="large"),
    AddProbe("y_unread", "the gradient of the sum that is returned, where it is the only one", unread="y"),
    AddProbe("residual_out_unread", "a cotangent that is taken for granted", unread="residual_out"),
)
# What one dialect shows for all.
VALUES = (
    AddProbe("zero_rows", "a zero row: division by zero, eps outside the root", x=Draw(rows="zero_rows")),
    AddProbe("mean_30", "centring where none belongs, or none where it does", x=Draw(offset=30.0)),
    AddProbe("zero_residual", "a residual that is not there: the plain norm", residual="zero"),
    AddProbe("zero_x", "the residual alone: a layer that adds nothing", x=Draw(scale=0.0), residual="alone"),
    AddProbe("aligned_dy", "the projection term of dx missing or doubled", dy="aligned"),
    AddProbe("nan_row", "a NaN swallowed, or leaked into other rows", x=Draw(rows="nan_row")),
)
# Faults of indexing, which the dtype hardly changes.
SHAPES = (
    AddProbe("width_129", "one feature past a block", shape=(2, 3, 129)),
    AddProbe("rows_257", "the last block of rows missing from dweight; an op that assumes three axes", shape=(257, 33)),
    AddProbe("strided", "strides ignored: every second feature of x and dy", layout="strided"),
    AddProbe("no_weight", "a weight made up where none is given", weight="absent", bias=False),
    AddProbe(
        "aliased",
        "a sum that is written where the residual lies, and x with it",
        residual="is_x",
        layout="residual_aliased",
    ),
)
# Rows, and features, that are split over devices.
SPLIT = tuple(AddProbe(**how) for how in SHARDED[:2])
# What the variants of a dialect (offset, float32 weight) can get wrong.
VARIANTS = (AddProbe("random", "the dtype of an output; the offset missing or doubled; the weight rounded first"),)


def _table(dtype: DType) -> Iterator[tuple[Dialect, AddProbe]]:
    if dtype not in HALF:
        [plain], [variant] = dialects.SINGLE, dialects.SINGLE_VARIANTS
        for probe in SUMS + SPLIT + (VALUES + SHAPES if dtype == "float32" else ()):
            yield plain, probe
        yield variant, VARIANTS[0]
        return
    for dialect in dialects.HALF_SUMS:
        for probe in SUMS + (SPLIT + VALUES if dialect == dialects.HALF_SUMS[0] else ()):
            yield dialect, probe
    for dialect in dialects.HALF_SUM_VARIANTS:
        for probe in VARIANTS:
            yield dialect, probe


def _case(op: AddNormOp, dtype: DType, dialect: Dialect, probe: AddProbe) -> AddNormCase:
    row = {name: getattr(probe, name) for name in AddProbe.__dataclass_fields__}
    row["bias"] = probe.bias and op == "add_layer_norm"
    return AddNormCase(**row, op=op, dialect=dialect, dtype=dtype)


ADD_NORM_CASES = tuple(_case(op, dtype, *row) for op in ADD_NORMS for dtype in DTYPES for row in _table(dtype))
