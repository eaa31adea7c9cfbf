"""The table of the row norms' cases: one case exposes one fault, and its id says which."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Any, Literal, get_args

import numpy as np

from conformance.numbers.rounding import DTYPES, HALF, DType
from conformance.ops.draw import Cotangent, Draw, Weight
from conformance.ops.norms.exact_inputs import EPS, WIDTH
from conformance.ops.op import Output
from conformance.question import dialects
from conformance.question.case import FIXTURE_ELEMENTS, Layout
from conformance.question.dialects import Dialect

RowNormOp = Literal["rms_norm", "layer_norm"]
AddNormOp = Literal["add_rms_norm", "add_layer_norm"]
GatedNormOp = Literal["gated_rms_norm"]
QuantisedOp = Literal["quantised_rms_norm", "quantised_add_rms_norm"]
NormOp = Literal[RowNormOp, AddNormOp, GatedNormOp, QuantisedOp, "batch_norm"]

ROW_NORMS: tuple[RowNormOp, ...] = get_args(RowNormOp)
ADD_NORMS: tuple[AddNormOp, ...] = get_args(AddNormOp)
GATED_NORMS: tuple[GatedNormOp, ...] = get_args(GatedNormOp)
QUANTISED: tuple[QuantisedOp, ...] = get_args(QuantisedOp)
ROW_BY_ROW: tuple[NormOp, ...] = (*ROW_NORMS, *ADD_NORMS, *GATED_NORMS, *QUANTISED)
"""The norms of rows, whatever else they do."""
NORMS: tuple[NormOp, ...] = (*ROW_BY_ROW, "batch_norm")
Y = Output("y", lambda case: case.dialect.output_dtype(case.dtype))

ROWS = {
    "zero_rows": "a row is zero",
    "constant_rows": "a row is constant",
    "spike": "a row has a single value",
    "nan_row": "a row has a NaN",
    "inf_row": "a row has an infinity",
}


def _eps(value: float) -> float:
    """The float32 nearest to `value`, so that float32 and float64 implementations are given the same number."""
    return float(np.float32(value))


EPS_1E_5 = _eps(1e-5)


@dataclass(frozen=True)
class Probe:
    """A row of the table: a case before its op, dialect and dtype are chosen."""

    name: str
    exposes: str
    shape: tuple[int, ...] = (2, 3, 33)
    eps: float = EPS_1E_5
    x: Draw = field(default_factory=Draw)
    weight: Weight = "signed"
    bias: bool = True
    dy: Cotangent = "random"
    dy_scale: float = 1.0
    layout: Layout = "contiguous"
    group_size: int | None = None


@dataclass(frozen=True)
class NormCase(Probe):
    """One question to a port: an op in a dialect and a dtype. `shape` is x's; `bias` is always False for rms_norm."""

    op: NormOp = "rms_norm"
    dialect: Dialect = field(default_factory=lambda: Dialect("either_order"))
    dtype: DType = "float32"

    @property
    def id(self) -> str:
        """The path that names the case."""
        return f"{self.op}/{self.variant}/{self.dtype}/{self.name}"

    @property
    def variant(self) -> str:
        """Its dialect."""
        return self.dialect.name

    @property
    def exact(self) -> bool:
        """Whether no honest implementation makes a rounding error, so that one number an element is admissible."""
        return self.x.rows == "exact"

    @property
    def drawn(self) -> dict[str, str]:
        """How its tensors are drawn, and what it is called with, in words."""
        return {
            "x": f"{self.x}, {self.x.rows.replace('_', ' ')}, {self.layout}",
            "eps": f"{self.eps:.9g}",
            "weight": self.weight.replace("_", " "),
        } | ({"settings": ", ".join(f"{name} {value}" for name, value in self.settings.items())} if self.settings else {})

    @property
    def traits(self) -> dict[str, bool]:
        """What may set it apart from others of its op, in words, and whether it does."""
        return {
            "there is no weight": self.weight == "absent",
            ROWS.get(self.x.rows, ""): self.x.rows in ROWS,
            "eps is not 1e-5": abs(self.eps / 1e-5 - 1) > 1e-3,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What the op is called with besides eps, its offset and its order."""
        return {} if self.group_size is None else {"group_size": self.group_size}

    @property
    def weight_offset(self) -> int | None:
        """What is added to the weight, if there is one."""
        return None if self.weight == "absent" else self.dialect.weight_offset

    @property
    def returned(self) -> tuple[Output, ...]:
        """The op's own outputs."""
        return (Y,)

    @property
    def centred(self) -> bool:
        """Whether the mean is taken off."""
        return not self.op.endswith("rms_norm")

    @property
    def activations(self) -> dict[str, str]:
        """The inputs that have a gradient and are no parameters, with their dtypes."""
        return {"x": self.dtype}

    @property
    def outputs(self) -> dict[str, str]:
        """What a port returns, the op's own outputs and the gradients, with their dtypes."""
        parameter_dtype = self.dialect.parameter_dtype(self.dtype)
        dtypes = {output.name: output.dtype(self) for output in self.returned}
        dtypes |= {f"d{name}": dtype for name, dtype in self.activations.items()}
        if self.weight != "absent":
            dtypes["dweight"] = parameter_dtype
        if self.bias:
            dtypes["dbias"] = parameter_dtype
        return dtypes

    @property
    def made(self) -> tuple[str, ...]:
        """The outputs that are no gradients."""
        return tuple(output.name for output in self.returned)

    @property
    def magnifies(self) -> float:
        """How many times as large as x what is normalised may be."""
        return 1.0

    @property
    def dialects(self) -> tuple[Dialect, ...]:
        """The dialects that its op has in its dtype."""
        return dialects.of(self.dtype)

    def further_inputs(self, x: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """What its op reads beside x, dy and the parameters, or instead of one, in the storage dtypes."""
        return {}

    def is_read(self, output: str) -> bool:
        """Whether something reads an output, so that it has a cotangent."""
        return True

    def parts(self, given: dict[str, np.ndarray]) -> dict[str, Any]:
        """What its norm has besides, as fields of a `Formula`: groups, a residual, a gate, the batch."""
        return {"group": self.group_size}

    def output_shape(self, output: str) -> tuple[int, ...]:
        """Shape of an output: that of x for what is as large, one row's for what parameters and statistics are made of."""
        like_x = {each.name for each in self.returned if each.cotangent} | {f"d{name}" for name in self.activations}
        return self.shape if output in like_x else self.shape[-1:]

    @property
    def has_fixture(self) -> bool:
        """Whether the case is small enough for its golden values to be stored."""
        return prod(self.shape) <= FIXTURE_ELEMENTS


# Values: faults of arithmetic, which every dtype and dialect may show in its own way.
VALUES = (
    Probe("random", "the formula itself: a wrong axis, a wrong divisor, the cast on the wrong side of the weight"),
    Probe("rows_near_eps", "eps outside the root, added twice, or left out", x=Draw(scale=sqrt(1e-5))),
    Probe("rows_at_10_sqrt_eps", "a slightly wrong eps", x=Draw(scale=10 * sqrt(1e-5))),
    Probe("eps_1e-6", "eps hard-coded at 1e-5", eps=_eps(1e-6), x=Draw(scale=1e-3)),
    Probe("eps_1e-8", "eps clamped, or lost in half precision", eps=_eps(1e-8), x=Draw(scale=1e-4), dy_scale=2**-10),
    Probe("eps_1e-12", "eps underflows in float16", eps=_eps(1e-12), x=Draw(scale=1e-6), dy_scale=2**-10),
    Probe("std_0.05", "eps taken from the storage dtype's machine epsilon", x=Draw(scale=0.05)),
    Probe("mean_30", "centring where none belongs, or none where it does", x=Draw(offset=30.0)),
    Probe("mean_300", "a variance in one pass, at a mean of 300 standard deviations", x=Draw(offset=300.0)),
    Probe("values_near_300", "squares or their sum in float16", x=Draw(scale=300.0)),
    Probe("values_near_6e4", "squares in float16, at the end of its range", x=Draw(scale=1.7e4)),
    Probe("zero_rows", "a zero row: division by zero, eps outside the root", x=Draw(rows="zero_rows")),
    Probe(
        "zero_rows_eps_1e-12",
        "a zero row with an eps that underflows in float16",
        eps=_eps(1e-12),
        x=Draw(rows="zero_rows"),
        dy_scale=2**-10,
    ),
    Probe("constant_rows", "a variance that cancels to less than zero", x=Draw(rows="constant_rows")),
    Probe("spike", "one value in a row of zeros: eps added after a rescale by the maximum", x=Draw(rows="spike")),
    Probe("aligned_dy", "the projection term of dx missing or doubled", dy="aligned"),
    Probe("tiny_weight", "x_hat recovered as y / weight in the backward pass", weight="tiny"),
    Probe("nan_row", "a NaN swallowed, or leaked into other rows", x=Draw(rows="nan_row")),
    Probe("inf_row", "an infinity swallowed, or leaked into other rows", x=Draw(rows="inf_row")),
)

# Faults that any tolerance hides: no sum and no root is rounded, so one number an element is right.
EXACT = Probe(
    "exact",
    "arithmetic that is hidden by a tolerance: an approximate root or division, a constant that is not the one given",
    shape=(2, 3, WIDTH),
    eps=EPS,
    x=Draw(rows="exact"),
)

# Faults that need more than half precision's precision or range to show.
PRECISE_VALUES = (Probe("mean_1e4", "a variance in one pass, at a mean of 1e4 standard deviations", x=Draw(offset=1e4)),)
WIDE_VALUES = (Probe("values_near_1e10", "cubes or fourth powers that overflow", x=Draw(scale=1e10)),)

# Faults of optional parameters.
NO_PARAMETERS = (Probe("no_weight", "a weight made up where none is given", weight="absent", bias=False),)
ONE_PARAMETER = (
    Probe("weight_only", "a bias made up where none is given", bias=False),
    Probe("bias_only", "the bias dropped where there is no weight", weight="absent"),
)

# Faults of indexing, which the dtype hardly changes: widths, rows, ranks, layouts.
SHAPES = (
    Probe("width_2", "the smallest width with a variance; divides by n - 1", shape=(4, 5, 2)),
    Probe("width_3", "padding counted in the statistics", shape=(4, 5, 3)),
    Probe("width_7", "padding counted in the statistics", shape=(2, 3, 7)),
    Probe("width_127", "one feature short of a block", shape=(2, 3, 127)),
    Probe("width_129", "one feature past a block", shape=(2, 3, 129)),
    Probe("width_768", "sums accumulated in half precision; divides by n - 1", shape=(2, 3, 768)),
    Probe("width_4096", "sums accumulated in half precision, over a wide row", shape=(2, 3, 4096)),
    Probe("rows_8192", "dweight accumulated in half precision", shape=(2, 4096, 33)),
    Probe(
        "rows_2048_of_2",
        "the statistic of a row taken by the number of a column; a grid of rows that overflows",
        shape=(2048, 2),
    ),
)
LAYOUTS = (
    Probe("width_1", "a width of one, where LayerNorm has nothing to scale", shape=(2, 3, 1), x=Draw(scale=100.0, offset=1e3)),
    Probe("permuted", "strides ignored: the last axis is not the one laid out last", layout="permuted"),
    Probe("rows_1", "a single row", shape=(1, 33)),
    Probe("rows_0", "an empty batch", shape=(0, 33)),
    Probe("rank_1", "a single row without a batch axis", shape=(33,)),
    Probe("rows_257", "the last block of rows missing from dweight; an op that assumes three axes", shape=(257, 33)),
    Probe("rank_4", "an op that assumes two or three axes", shape=(2, 3, 4, 33)),
    Probe("sliced", "strides ignored: rows that stand apart", layout="sliced"),
    Probe("strided", "strides ignored: every second feature", layout="strided"),
    Probe("expanded", "strides ignored: the first axis repeats one entry", layout="expanded"),
    Probe("x_at_offset", "x read from the start of its buffer, of which it is a part: buffer[1:3]", layout="x_at_offset"),
    Probe("weight_at_offset", "weight read from the start of its buffer; aligned loads of it", layout="weight_at_offset"),
    Probe("weight_strided", "the strides of the weight ignored: every second of its buffer", layout="weight_strided"),
    Probe("dy_at_offset", "dy read from the start of its buffer, of which it is a part", layout="dy_at_offset"),
    Probe("dy_one_number", "dy read as contiguous where y.sum() gives one number with no strides", layout="dy_one_number"),
    Probe("rows_300_of_3", "the statistic of a row taken by the number of a column", shape=(300, 3)),
)

# What the variants of a dialect (offset, float32 weight) can get wrong.
VARIANTS = (
    Probe("random", "the dtype of the output; the offset missing or doubled; the weight rounded first"),
    Probe("far_from_one", "one plus weight rounded to half precision", weight="far_from_one"),
    Probe("tiny_weight", "the offset left out: with weights near zero nothing else is left", weight="tiny"),
    Probe("rows_near_eps", "eps outside the root, added twice, or left out", x=Draw(scale=sqrt(1e-5))),
)


def _table(op: RowNormOp) -> Iterator[tuple[DType, Dialect, Probe]]:
    for dtype in DTYPES:
        half = dtype in HALF
        probes = (*VALUES, EXACT) + (() if half else PRECISE_VALUES) + (() if dtype == "float16" else WIDE_VALUES)
        if dtype == "float32":
            probes += NO_PARAMETERS + (ONE_PARAMETER if op == "layer_norm" else ()) + SHAPES + LAYOUTS
        if dtype == "bfloat16":
            probes += SHAPES
        for dialect in dialects.HALF if half else dialects.SINGLE:
            for probe in probes:
                yield dtype, dialect, probe
        for dialect in dialects.HALF_VARIANTS if half else dialects.SINGLE_VARIANTS:
            both = dialect.weight_offset and dialect.weight_dtype == "float32"
            for probe in VARIANTS[:2] if both else VARIANTS:  # each is asked about on its own as well
                yield dtype, dialect, probe


def row_norm_case(op: RowNormOp, dtype: DType, dialect: Dialect, probe: Probe) -> NormCase:
    """The case that a row of the table is in an op, a dtype and a dialect."""
    row = {name: getattr(probe, name) for name in Probe.__dataclass_fields__}
    row["bias"] = probe.bias and op == "layer_norm"
    return NormCase(**row, op=op, dialect=dialect, dtype=dtype)


ROW_NORM_CASES = tuple(row_norm_case(op, *row) for op in ROW_NORMS for row in _table(op))
