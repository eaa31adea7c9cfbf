"""The table of BatchNorm's cases: its statistics are a feature's over the batch, and some run from batch to batch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from conformance.numbers.draws import bell, random_words, signed_weights
from conformance.numbers.rounding import DTYPES, FORMATS, HALF, DType, store
from conformance.ops.draw import Draw
from conformance.ops.norms.cases import NormCase, Probe, Y
from conformance.ops.norms.sharded import SHARDED
from conformance.ops.norms.steps import Batch
from conformance.ops.norms.values import batch_axes
from conformance.ops.op import Output
from conformance.question.dialects import Dialect

EPS = float(np.float32(1e-6))
RUNNING = ("running_mean", "running_var")
STATISTICS = tuple(Output(name, lambda case: FORMATS[case.dtype].compute_dtype, cotangent=False) for name in RUNNING)


def _one_less(share: float) -> float:
    """One less the float32 nearest to `share`: it and the rest are both exact in float32, whichever is called momentum."""
    return 1 - float(np.float32(share))


@dataclass(frozen=True)
class BatchNormCase(NormCase):
    """One question about BatchNorm: in training, or in evaluation, where the running statistics stand for the batch's.

    `momentum` is the share of the new in the running statistics; with `unbiased` the variance that runs is divided by R − 1,
    for R rows (PyTorch), without it by R (flax, Keras, ONNX). Parameters and running statistics are in the compute dtype.
    """

    training: bool = True
    momentum: float = _one_less(0.9)
    unbiased: bool = True

    @property
    def variant(self) -> str:
        """`training`, with `_biased` where the variance that runs is; or `evaluation`."""
        return ("training" if self.unbiased else "training_biased") if self.training else "evaluation"

    @property
    def settings(self) -> dict[str, Any]:
        """What the op is called with besides eps."""
        running = {"momentum": self.momentum, "unbiased": self.unbiased} if self.training else {}
        return {"training": self.training} | running

    @property
    def weight_offset(self) -> None:
        """None: nobody stores BatchNorm's weight less one."""
        return

    @property
    def returned(self) -> tuple[Output, ...]:
        """y and, in training, the running statistics after the batch."""
        return (Y, *STATISTICS) if self.training else (Y,)

    def parts(self, given: dict[str, np.ndarray]) -> dict[str, Any]:
        """The running statistics, and how they move; the axes of the batch's."""
        mean, var = (given[name].astype(np.float64) for name in RUNNING)
        batch = Batch(mean, var, self.training, self.training, self.momentum, self.correction)
        return {"batch": batch, "axes": batch_axes(given["x"])}

    def further_inputs(self, x: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Running statistics of the kind that batches like x's leave: a little off its mean, one to two times its variance."""
        n, dtype = self.shape[-1], FORMATS[self.dtype].compute_dtype
        mean = self.x.offset + self.x.scale * bell(random_words(self.id, "running_mean", seed, n)) / 4
        var = self.x.scale**2 * np.abs(signed_weights(random_words(self.id, "running_var", seed, n)))
        return {"running_mean": store(mean, dtype), "running_var": store(var, dtype)}

    def correction(self, rows: float) -> float:
        """What makes the biased variance of R rows the one that runs."""
        return rows / (rows - 1) if self.unbiased else 1.0


# Faults of arithmetic, which show in training and in evaluation.
VALUES = (
    Probe("random", "the formula itself: a wrong axis, a wrong divisor, a wrong momentum"),
    Probe("columns_near_eps", "eps outside the root, added twice, left out or hard-coded", eps=EPS, x=Draw(scale=sqrt(EPS))),
    Probe("mean_300", "a variance in one pass; a mean that cancels", x=Draw(offset=300.0)),
    Probe("nan_row", "a NaN swallowed, or leaked into other features", x=Draw(rows="nan_row")),
)
# Those that only the statistics of a batch can have.
TRAINING_VALUES = (
    Probe("zero_columns", "a dead feature: division by zero, eps outside the root", x=Draw(rows="zero_columns")),
    Probe("constant_columns", "a variance that cancels to less than zero", x=Draw(rows="constant_columns")),
    Probe("aligned_dy", "the projection term of dx missing or doubled", dy="aligned"),
    Probe("tiny_weight", "x_hat recovered as y / weight in the backward pass", weight="tiny"),
    Probe("values_near_300", "squares or their sum in float16", x=Draw(scale=300.0)),
)
# One that needs more than float16's range to show.
WIDE_VALUES = (Probe("values_near_1e10", "squares or cubes that overflow; x in float16", x=Draw(scale=1e10)),)
# Faults of indexing, which the dtype hardly changes.
SHAPES = (
    Probe("rows_257", "the last block of rows missing from a sum; an op that assumes three axes", shape=(257, 33)),
    Probe("rank_4", "statistics of a batch entry, or of a place, and not of the batch", shape=(2, 3, 4, 33)),
    Probe("permuted", "strides ignored: channels that are laid out first", layout="permuted"),
    Probe("no_parameters", "a weight or a bias made up where none is given", weight="absent", bias=False),
)
# Rows, the whole of which is one batch, and features, that are split over devices.
SPLIT = tuple(Probe(**how) for how in SHARDED[:2])
MOMENTUM = Probe("momentum_0.01", "a momentum that is hard-coded, or that is the share of the old")
MANY_ROWS = Probe("rows_8192", "sums accumulated in half precision", shape=(2, 4096, 33))


def _table(dtype: DType) -> Iterator[BatchNormCase]:
    half = dtype in HALF
    dialect = Dialect("either_order", weight_dtype="float32" if half else "storage")
    values = VALUES + TRAINING_VALUES + (() if dtype == "float16" else WIDE_VALUES)
    shapes = (SHAPES if dtype == "float32" else ()) + ((MANY_ROWS,) if dtype in ("float32", "bfloat16") else ())
    for probe in values + shapes + SPLIT:
        yield _case(probe, dtype, dialect)
    for probe in values + SPLIT:  # for those whose running variance is the biased one
        yield replace(_case(probe, dtype, dialect), unbiased=False)
    if dtype == "float32":
        slow = _case(MOMENTUM, dtype, dialect)
        yield from (replace(slow, momentum=_one_less(0.99), unbiased=unbiased) for unbiased in (True, False))
    for probe in VALUES:
        yield replace(_case(probe, dtype, dialect), training=False)


def _case(probe: Probe, dtype: DType, dialect: Dialect) -> BatchNormCase:
    row = {name: getattr(probe, name) for name in Probe.__dataclass_fields__}
    return BatchNormCase(**row, op="batch_norm", dialect=dialect, dtype=dtype)


BATCH_NORM_CASES = tuple(case for dtype in DTYPES for case in _table(dtype))
