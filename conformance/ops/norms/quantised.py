"""The table of cases of a norm that quantises y: what only a scale, a saturation, or a rounding to eight bits can get wrong."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any, Literal

import numpy as np

from conformance.numbers.draws import random_words, signed_weights
from conformance.numbers.rounding import FORMATS, QUANTISED_DTYPES, DType, QuantisedDType, store
from conformance.ops.draw import Draw
from conformance.ops.norms.add_norm import RESIDUAL_OUT, AddNormCase
from conformance.ops.norms.cases import QUANTISED, NormCase, Probe, QuantisedOp
from conformance.ops.norms.exact_inputs import EPS, WIDTH
from conformance.ops.norms.quantising import Quantising, Scaling, group_size
from conformance.ops.norms.sharded import SHARDED
from conformance.ops.op import Output
from conformance.question import dialects
from conformance.question.dialects import Dialect

Array = np.ndarray
Weights = Literal["usual", "ties", "outlier", "stepped"]

Q = Output("q", lambda case: case.settings["quantised_dtype"], cotangent=False, given=("scale",))
SCALE = Output("scale", lambda case: "float32", cotangent=False)

OUTLIER = 2.0**7  # times another weight
STEP, STEPS, NEIGHBOURS = 2.0**3, 4, 32  # the weights of so many neighbours are so many times those of the ones before
BOUND = 2.0**-9  # less than the largest value, and than its scale
USUAL, SMALL, LARGE = 2.0**-4, 2.0**-11, 2.0**4  # static scales, of which y / scale is exact
STORED = 256  # elements of x, at most, in a case whose golden values are stored
UNEVEN = float(np.float32(0.0371))  # one of which it is not


@dataclass(frozen=True)
class QuantisedProbe(Probe):
    """A row of the table: a case before its op, dialect and dtype are chosen.

    `static_scale` is the scale where the scaling is static; `scale_ub` bounds the largest |y| of a row, unless it is zero.
    The weights: the `usual` ones; those of an exact case, with which every y over the scale lies in the middle of two numbers
    of the quantised dtype, `ties`; one of them an `outlier`, 2⁷ times as large; or `stepped`, those of every 32 neighbours 2³
    times those of the ones before, up to 2⁹.
    """

    shape: tuple[int, ...] = (2, 33)
    bias: bool = False
    quantised_dtype: QuantisedDType = "float8_e4m3fn"
    scaling: Scaling = "static"
    static_scale: float = USUAL
    scale_ub: float = 0.0
    weights: Weights = "usual"


@dataclass(frozen=True)
class QuantisedCase(QuantisedProbe, NormCase):
    """One question about an RMSNorm whose output is quantised."""

    op: QuantisedOp = "quantised_rms_norm"
    dialect: Dialect = field(default_factory=lambda: Dialect("either_order"))

    @property
    def dialects(self) -> tuple[Dialect, ...]:
        """The dialects that its op has in its dtype."""
        return dialects.of(self.dtype, quantised=True)

    @property
    def settings(self) -> dict[str, Any]:
        """What the op is called with besides eps and its order."""
        bound = {"scale_ub": self.scale_ub} if self.scale_ub else {}
        y = {"y": self.dialect.y} if self.dialect.y else {}
        return {"quantised_dtype": self.quantised_dtype, "scaling": self.scaling, **bound, **super().settings, **y}

    @property
    def drawn(self) -> dict[str, str]:
        """How its tensors are drawn, and what it is called with, in words."""
        scale = {"scale": f"{self.static_scale:.9g}"} if self.scaling == "static" else {}
        return super().drawn | {"weights": self.weights} | scale

    @property
    def returned(self) -> tuple[Output, ...]:
        """q, and its scale where it is not given."""
        return (Q,) if self.scaling == "static" else (Q, SCALE)

    @property
    def outputs(self) -> dict[str, str]:
        """What a port returns, with the dtypes: there are no gradients."""
        return {output.name: output.dtype(self) for output in self.returned}

    @property
    def has_fixture(self) -> bool:
        """Whether its golden values are stored: it is small. Of float16, which shows what bfloat16 does, two dialects do."""
        return prod(self.shape) <= STORED and (self.dtype != "float16" or self.dialect in self.dialects[:2])

    def is_read(self, output: str) -> bool:
        """No: there are no cotangents."""
        return False

    def output_shape(self, output: str) -> tuple[int, ...]:
        """Shape of an output: a scale for every group of a row, or x's."""
        *batch, d = self.shape
        return (*batch, d // group_size(self.scaling, d)) if output == "scale" else self.shape

    def further_inputs(self, x: Array, seed: int) -> dict[str, Array]:
        """A static scale, the weights that are drawn otherwise than usual, and what else its op reads."""
        given = super().further_inputs(x, seed)
        if self.weights != "usual" and self.weight != "absent":
            given["weight"] = store(self._weights(seed), self.dtype)
        if self.scaling == "static":
            given["scale"] = np.array([self.static_scale], np.float32)
        return given

    def _weights(self, seed: int) -> Array:
        d = self.shape[-1]
        words = random_words(self.id, "weight", seed, d)
        if self.weights == "ties":  # x_hat is ±1/4
            middles = ties(self.quantised_dtype)
            return 4 * self.static_scale * middles[words % np.uint64(len(middles))]
        weights = signed_weights(words)
        if self.weights == "outlier":
            weights[d // 3] *= OUTLIER
            return weights
        return weights * STEP ** (np.arange(d) // NEIGHBOURS % STEPS)

    def parts(self, given: dict[str, Array]) -> dict[str, Any]:
        """How y is quantised, and what its norm has besides."""
        scale = given["scale"].astype(np.float64) if "scale" in given else None
        y_dtype = self.dtype if self.dialect.y == "rounded" else None
        quantising = Quantising(self.quantised_dtype, self.scaling, scale, self.scale_ub or inf, y_dtype)
        return super().parts(given) | {"quantising": quantising}


@dataclass(frozen=True)
class QuantisedAddCase(QuantisedCase, AddNormCase):
    """One question about an RMSNorm that first adds a residual, whose output is quantised, and whose sum is returned."""

    op: QuantisedOp = "quantised_add_rms_norm"

    @property
    def dialects(self) -> tuple[Dialect, ...]:
        """The dialects that its op has in its dtype."""
        return dialects.of(self.dtype, of_a_sum=True, quantised=True)

    @property
    def returned(self) -> tuple[Output, ...]:
        """q, its scale where it is not given, and the sum."""
        return (*super().returned, RESIDUAL_OUT)


def ties(dtype: QuantisedDType) -> Array:
    """The numbers in the middle of two that are neighbours in a quantised dtype, from zero to qmax, and their negatives."""
    its = FORMATS[dtype]
    codes = np.arange(128, dtype=np.uint8).view(its.storage).astype(np.float64)
    numbers = codes[np.isfinite(codes) & (codes <= its.largest)]
    middles = (numbers[1:] + numbers[:-1]) / 2
    return np.concatenate([middles, -middles])


E4M3, E5M2, INT8 = QUANTISED_DTYPES
EXACT: dict[str, Any] = {"shape": (2, WIDTH), "eps": EPS, "x": Draw(rows="exact"), "weights": "ties", "static_scale": 2.0**-3}
ZEROS = Draw(rows="zero_rows")


def _probe(scaling: Scaling, dtype: QuantisedDType, name: str, exposes: str, **how: Any) -> QuantisedProbe:
    return QuantisedProbe(f"{scaling}_{dtype}_{name}", exposes, scaling=scaling, quantised_dtype=dtype, **how)


# What every dtype and dialect may show in its own way.
SOME = (
    _probe("static", E4M3, "random", "the scale multiplied by, not divided by; the rounding"),
    _probe("static", INT8, "uneven_scale", "the reciprocal of a scale, where it is not exact", static_scale=UNEVEN),
    _probe("per_row", INT8, "random", "the maximum of another row, or of signed values; another constant"),
    _probe("per_group_128", E4M3, "stepped", "the scale of another group, or of the row", shape=(1, 256), weights="stepped"),
    _probe("mx", E4M3, "stepped", "a power of two that is rounded, or rounded up", shape=(2, 64), weights="stepped"),
)
# What one dialect shows for all.
MOST = (
    _probe("static", E4M3, "saturated", "what is beyond qmax turns into NaN", static_scale=SMALL),
    _probe("static", E5M2, "saturated", "qmax of another format; an infinity", static_scale=SMALL / 2**10),
    _probe("static", INT8, "saturated", "what is beyond qmax wraps, or is -128", static_scale=SMALL),
    _probe("static", E4M3, "small", "what is below the smallest normal number is lost", static_scale=LARGE),
    _probe("per_row", E5M2, "random", "qmax of another format in the scale"),
    _probe("per_row", E4M3, "zero_rows", "a row of zeros: 0/0, or a scale of zero", x=ZEROS),
    _probe("per_row", E4M3, "outlier", "the maximum before the weight; what a huge value leaves of others", weights="outlier"),
    _probe("per_row", E4M3, **{**SHARDED[1], "exposes": "the largest number of a part of the row"}),
    _probe("per_row", E4M3, "scale_ub", "a bound of the maximum taken for one of the scale, or left out", scale_ub=BOUND),
)
# What hardly depends on the storage dtype.
ALL = (
    *(_probe("static", dtype, "ties", "a tie that is rounded away from zero, or up", **EXACT) for dtype in QUANTISED_DTYPES),
    _probe("static", E5M2, "random", "the digits of another format"),
    _probe("static", INT8, "random", "fractions that are cut off"),
    _probe("static", E5M2, "small", "what is below the smallest normal number is lost", static_scale=LARGE * 2**10),
    _probe("per_row", E4M3, "random", "qmax of another format in the scale"),
    _probe("per_row", INT8, "zero_rows", "a row of zeros: 0/0, or a scale of zero", x=ZEROS),
    _probe("per_group_128", INT8, "stepped", "scales that lie the other way round", shape=(3, 256), weights="stepped"),
    _probe("mx", E5M2, "stepped", "the exponent of another format", shape=(2, 64), weights="stepped"),
    _probe("mx", E4M3, "zero_rows", "a block of zeros: 0/0", shape=(2, 64), x=ZEROS),
)
# Faults of indexing.
SHAPES = (
    _probe("per_row", INT8, "rows_257", "the scale of a row past the last block", shape=(257, 33)),
    _probe("per_row", E4M3, "rank_1", "a single row without a batch axis", shape=(33,)),
    _probe("per_row", E5M2, "no_weight", "a weight made up where none is given", weight="absent"),
)


def _table(op: QuantisedOp) -> Iterator[tuple[DType, Dialect, QuantisedProbe]]:
    adds = op == "quantised_add_rms_norm"
    more: dict[DType, tuple[QuantisedProbe, ...]] = {
        "float32": (*MOST, *ALL, *SHAPES),
        "bfloat16": (*MOST, *ALL),
        "float16": MOST,
    }
    for dtype in more:
        plain, *others = dialects.of(dtype, of_a_sum=adds, quantised=True)
        for probe in (*SOME, *(() if adds else more[dtype])):
            yield dtype, plain, probe
        for dialect in others:
            for probe in SOME:
                yield dtype, dialect, probe


def _case(op: QuantisedOp, dtype: DType, dialect: Dialect, probe: QuantisedProbe) -> NormCase:
    row = {name: getattr(probe, name) for name in QuantisedProbe.__dataclass_fields__}
    kind = QuantisedAddCase if op == "quantised_add_rms_norm" else QuantisedCase
    return kind(**row, op=op, dialect=dialect, dtype=dtype)


QUANTISED_CASES = tuple(_case(op, *row) for op in QUANTISED for row in _table(op))
