"""The golden with one thing altered, as people alter it: the cases that are about it reject it in every dtype that shows it.

`PYTHONPATH=. python tests/judge/test_planted_mistakes.py` prints the smallest error ratio of each over those cases.
"""

from collections import defaultdict
from functools import cached_property
from typing import ClassVar

import numpy as np
import pytest

from conformance.judging.compare import Verdict, compare
from conformance.numbers.rounding import DTYPES, HALF, round_to, store
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.cases import ROW_NORMS, NormCase

Array = np.ndarray

MISTAKES: "list[type[Unaltered]]" = []


class Unaltered:
    """A norm in float64, rounded where its dialect rounds. A mistake overrides one method, and says what shows it."""

    shown_by: ClassVar[str] = "random"
    ops: ClassVar[tuple[str, ...]] = ROW_NORMS
    dtypes: ClassVar[tuple[str, ...]] = DTYPES
    weight_offsets: ClassVar[tuple[int, ...]] = (0, 1)
    least: ClassVar[float] = 16  # what its error ratio exceeds, wherever it is shown

    def __init_subclass__(cls):
        MISTAKES.append(cls)

    def __init__(self, case: NormCase, given: dict[str, Array]):
        exact = {name: tensor.astype(np.float64) for name, tensor in given.items()}
        self.case, self.n, self.eps = case, case.shape[-1], case.eps
        self.x, self.dy = exact["x"], exact["dy"]
        self.weight, self.bias = exact.get("weight", np.ones(self.n)), exact.get("bias", np.zeros(self.n))
        self.casts_first = case.dialect.order == "cast_then_scale"
        self.mean = self.average(self.x) if case.op == "layer_norm" else np.zeros_like(self.x[..., :1])
        self.centred = self.x - self.mean

    def average(self, a: Array) -> Array:
        return a.mean(axis=-1, keepdims=True)

    def mean_square(self) -> Array:
        return self.average(np.square(self.centred))

    @cached_property
    def rstd(self) -> Array:
        return 1 / np.sqrt(self.mean_square() + self.eps)

    @cached_property
    def x_hat(self) -> Array:
        return self.centred * self.rstd

    def w(self) -> Array:
        return self.weight + self.case.dialect.weight_offset

    def y(self) -> Array:
        return self.w() * (round_to(self.x_hat, self.case.dtype) if self.casts_first else self.x_hat) + self.bias

    def g(self) -> Array:
        return self.dy * self.w()

    def shift(self) -> Array:
        return self.average(self.g()) if self.case.op == "layer_norm" else np.zeros_like(self.mean)

    def projection(self) -> Array:
        return self.average(self.g() * self.x_hat)

    def dx(self) -> Array:
        return self.rstd * (self.g() - self.shift() - self.x_hat * self.projection())

    def rows(self) -> Array:
        return (self.dy * self.x_hat).reshape(-1, self.n)

    def dweight(self) -> Array:
        return self.rows().sum(axis=0)

    def dbias(self) -> Array:
        return self.dy.reshape(-1, self.n).sum(axis=0)


class EpsOutsideTheRoot(Unaltered):
    shown_by = "rows_near_eps"

    @cached_property
    def rstd(self):
        return 1 / (np.sqrt(self.mean_square()) + self.eps)


class EpsLeftOut(Unaltered):
    shown_by = "rows_near_eps"

    @cached_property
    def rstd(self):
        return 1 / np.sqrt(self.mean_square())


class EpsLeftOutOfZeroRows(EpsLeftOut):
    shown_by = "zero_rows*"


class EpsAddedTwice(Unaltered):
    shown_by = "rows_near_eps"

    def mean_square(self):
        return super().mean_square() + self.eps


class Eps1e6For1e5(Unaltered):
    shown_by = "rows_at_10_sqrt_eps"

    @cached_property
    def rstd(self):
        return 1 / np.sqrt(self.mean_square() + 1e-6)


class Eps1e5For1e6(Unaltered):
    shown_by = "eps_1e-6"

    @cached_property
    def rstd(self):
        return 1 / np.sqrt(self.mean_square() + 1e-5)


class DividesByNMinus1(Unaltered):
    def mean_square(self):
        return super().mean_square() * self.n / (self.n - 1)


class DividesByNMinus1OfMany(DividesByNMinus1):
    shown_by = "width_4096"


class CountsPadding(Unaltered):
    shown_by = "width_[37]"

    def average(self, a):
        return a.sum(axis=-1, keepdims=True) / (self.n + -self.n % 8)


class VarianceForMeanSquare(Unaltered):
    shown_by = "mean_30"
    ops = ("rms_norm",)

    def mean_square(self):
        return np.var(self.x, axis=-1, keepdims=True)


class OnePassVariance(Unaltered):
    """Its rstd is off by some κ²·v, where (14 + 2·κ)·v is admitted: by 1033·v at κ = 35, mean_30's largest."""

    shown_by = "mean_*"
    ops = ("layer_norm",)
    dtypes = ("float64", "float32")
    least = 8

    def mean_square(self):
        x = self.x.astype(np.float32)
        return (self.average(x * x) - np.square(self.average(x))).astype(np.float64)


class SquaresInStorageDtype(Unaltered):
    shown_by = "values_near_300"
    dtypes = HALF

    def mean_square(self):
        return self.average(round_to(np.square(self.centred), self.case.dtype))


class RstdInStorageDtype(Unaltered):
    dtypes = HALF

    @cached_property
    def rstd(self):
        return round_to(1 / np.sqrt(self.mean_square() + self.eps), self.case.dtype)


class RstdOf17Bits(Unaltered):
    dtypes = ("float64", "float32")
    least = 4

    @cached_property
    def rstd(self):
        return (1 + 2**-17) / np.sqrt(self.mean_square() + self.eps)


class CastOnTheOtherSide(Unaltered):
    dtypes = HALF

    def y(self):
        self.casts_first = not self.casts_first
        return super().y()


class OffsetLeftOut(Unaltered):
    shown_by = "tiny_weight"
    weight_offsets = (1,)

    def w(self):
        return self.weight


class OffsetRounded(Unaltered):
    dtypes = HALF
    weight_offsets = (1,)

    def w(self):
        return round_to(super().w(), self.case.dtype)


class OffsetRoundedFarFromOne(OffsetRounded):
    shown_by = "far_from_one"
    dtypes = ("bfloat16",)


class BiasDropped(Unaltered):
    ops = ("layer_norm",)

    def y(self):
        return super().y() - self.bias


class ProjectionMissing(Unaltered):
    shown_by = "aligned_dy"

    def projection(self):
        return np.zeros_like(self.mean)


class ShiftMissing(Unaltered):
    ops = ("layer_norm",)

    def shift(self):
        return np.zeros_like(self.mean)


class XHatFromY(Unaltered):
    shown_by = "tiny_weight"
    weight_offsets = (0,)

    def rows(self):
        return (self.dy * ((self.y() - self.bias) / self.w())).reshape(-1, self.n)


class LastRowMissing(Unaltered):
    def dweight(self):
        return self.rows()[:-1].sum(axis=0)


class LastRowOfManyMissing(LastRowMissing):
    shown_by = "rows_[28]*"


class DweightInBfloat16(Unaltered):
    shown_by = "rows_8192"

    def dweight(self):
        return np.add.accumulate(store(self.rows(), "bfloat16"))[-1].astype(np.float64)


class NanSwallowed(Unaltered):
    shown_by = "nan_row"

    def __init__(self, case, given):
        super().__init__(case, {name: np.nan_to_num(tensor.astype(np.float64)) for name, tensor in given.items()})


GROUPED = "*/groups_of_*"  # which the norms here have not


def judged(norm: type[Unaltered], case: NormCase) -> Verdict:
    expected = golden(case)
    with np.errstate(all="ignore"):
        altered = norm(case, expected.inputs)
        outputs = {name: store(getattr(altered, name)(), dtype) for name, dtype in case.outputs.items()}
    return compare(norm.__name__, expected, outputs, tuple(case.outputs))


def showing(mistake: type[Unaltered], op: str, dtype: str) -> list[NormCase]:
    cases = select(f"*/{mistake.shown_by}", op=op, dtype=dtype)
    return [case for case in cases if case.dialect.weight_offset in mistake.weight_offsets]


PLANTED = [
    (mistake, op, dtype)
    for mistake in MISTAKES
    for op in mistake.ops
    for dtype in mistake.dtypes
    if showing(mistake, op, dtype)
]


@pytest.mark.parametrize("op", ROW_NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_unaltered_norm_passes_every_case(op, dtype):
    assert [case.id for case in select(op=op, dtype=dtype, exclude=GROUPED) if judged(Unaltered, case).status != "pass"] == []


@pytest.mark.parametrize(("mistake", "op", "dtype"), PLANTED)
def test_every_case_about_a_mistake_rejects_it(mistake, op, dtype):
    """In each of its dialects; the weakest are 5 (a rstd of 17 bits), 10 (a variance in one pass) and 20 tolerances off."""
    verdicts = [judged(mistake, case) for case in showing(mistake, op, dtype)]
    assert {verdict.status for verdict in verdicts} == {"fail"}
    assert min(verdict.ratio for verdict in verdicts) > mistake.least


def test_every_mistake_is_planted_where_it_can_be_seen():
    planted = {(mistake.__name__, op, dtype) for mistake, op, dtype in PLANTED}
    assert {("EpsOutsideTheRoot", op, dtype) for op in ROW_NORMS for dtype in DTYPES} <= planted
    assert {name for name, _, _ in planted} == {mistake.__name__ for mistake in MISTAKES}


if __name__ == "__main__":
    smallest = defaultdict(lambda: np.inf)
    for mistake, op, dtype in PLANTED:
        ratios = [judged(mistake, case).ratio for case in showing(mistake, op, dtype)]
        smallest[mistake.__name__, dtype] = min(smallest[mistake.__name__, dtype], *ratios)
    for (name, dtype), ratio in smallest.items():
        print(f"{name:24} {dtype:9} {ratio:.2g}")
