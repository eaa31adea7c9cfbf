"""Norms as honest people write them, in NumPy: four orders of summation, four arrangements. None is rejected.

`PYTHONPATH=. python tests/judge/test_honest_implementations.py` prints the largest error ratio of every output.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from itertools import product

import numpy as np
import pytest

from conformance.judging.compare import Verdict, compare
from conformance.numbers.rounding import DTYPES, NUMPY_DTYPES
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.cases import ROW_NORMS, NormCase

Array = np.ndarray

SEEDS = range(2)


def sequential(a: Array) -> Array:
    """Add up the last axis, from left to right, and keep it; starts at zero, as an empty sum must."""
    zero = np.zeros((*a.shape[:-1], 1), a.dtype)
    return np.cumsum(np.concatenate([zero, a], axis=-1), axis=-1)[..., -1:]


def backwards(a: Array) -> Array:
    return sequential(a[..., ::-1])


def pairwise(a: Array) -> Array:
    """Fold the last axis in half until one sum is left."""
    while half := a.shape[-1] // 2:
        a = np.concatenate([a[..., :half] + a[..., half : 2 * half], a[..., 2 * half :]], axis=-1)
    return sequential(a)


def lanes(a: Array) -> Array:
    """Every 32nd element into one sum, as the threads of a warp do, then those as a tree."""
    return pairwise(np.concatenate([sequential(a[..., lane::32]) for lane in range(32)], axis=-1))


class Textbook:
    """One formula after the other; nothing is rounded but the outputs, and x_hat where the dialect says so."""

    add = staticmethod(sequential)

    def __init__(self, case: NormCase, given: dict[str, Array]):
        self.case, self.n = case, case.shape[-1]
        self.storage = NUMPY_DTYPES[case.dtype]
        self.compute = NUMPY_DTYPES["float64" if case.dtype == "float64" else "float32"]
        self.x, self.dy = given["x"].astype(self.compute), given["dy"].astype(self.compute)
        stored = given.get("weight", np.ones(self.n, self.compute)).astype(self.compute)
        self.w = stored + self.compute.type(case.dialect.weight_offset)
        self.bias = given.get("bias", np.zeros(self.n, self.compute)).astype(self.compute)
        self.layer_norm = case.op == "layer_norm"
        self.casts_first = case.dialect.order == "cast_then_scale"
        self.eps = self.compute.type(case.eps)

    def average(self, a: Array) -> Array:
        return self.add(a) / self.compute.type(self.n)

    def add_rows(self, a: Array) -> Array:
        return self.add(a.reshape(-1, self.n).T)[:, 0]

    def cast(self, a: Array) -> Array:
        """To x's dtype and back."""
        return a.astype(self.storage).astype(self.compute)

    @cached_property
    def mean(self) -> Array:
        return self.average(self.x) if self.layer_norm else np.zeros_like(self.x[..., :1])

    @cached_property
    def centred(self) -> Array:
        return self.x - self.mean

    @cached_property
    def rstd(self) -> Array:
        return 1 / np.sqrt(self.average(self.centred * self.centred) + self.eps)

    @cached_property
    def x_hat(self) -> Array:
        return self.centred * self.rstd

    def scaled(self) -> Array:
        return self.w * self.x_hat + self.bias

    def cast_and_scaled(self) -> Array:
        """The product is rounded before the bias is added, as two operations on half-precision arrays do."""
        product = (self.w * self.cast(self.x_hat)).astype(NUMPY_DTYPES[self.case.outputs["y"]])
        return product.astype(self.compute) + self.bias

    @cached_property
    def g(self) -> Array:
        return self.dy * self.w

    def average_g(self) -> Array:
        return self.average(self.g) if self.layer_norm else np.zeros_like(self.mean)

    def dx(self) -> Array:
        return self.rstd * (self.g - self.average_g() - self.x_hat * self.average(self.g * self.x_hat))

    def dweight(self) -> Array:
        return self.add_rows(self.dy * self.x_hat)

    def outputs(self) -> dict[str, Array]:
        y = self.cast_and_scaled() if self.casts_first else self.scaled()
        outputs = {"y": y, "dx": self.dx(), "dweight": self.dweight(), "dbias": self.add_rows(self.dy)}
        return {name: outputs[name].astype(NUMPY_DTYPES[dtype]) for name, dtype in self.case.outputs.items()}


class Fused(Textbook):
    """A kernel's way: rstd meets the weight first, dx in one expression; gradients of x_hat as it was rounded."""

    add = staticmethod(pairwise)

    def scaled(self) -> Array:
        return self.centred * (self.rstd * self.w) + self.bias

    def cast_and_scaled(self) -> Array:
        return self.w * self.cast(self.x_hat) + self.bias

    @cached_property
    def g(self) -> Array:
        return self.cast(self.dy * self.w) if self.casts_first else self.dy * self.w

    def dx(self) -> Array:
        factor = self.rstd * self.average(self.g * self.x_hat)
        return self.rstd * self.g - (self.rstd * self.average_g() + self.x_hat * factor)

    def dweight(self) -> Array:
        return self.add_rows(self.dy * (self.cast(self.x_hat) if self.casts_first else self.x_hat))


class Autograd(Fused):
    """What autograd makes of a division by the root: the cube of rstd, and in half precision two paths to dx."""

    add = staticmethod(backwards)

    @cached_property
    def x_hat(self) -> Array:
        return self.centred / np.sqrt(self.average(np.square(self.centred)) + self.eps)

    def dx(self) -> Array:
        direct = self.g * self.rstd
        through_var = -self.centred * (self.rstd**3 * self.average(self.g * self.centred))
        return self.cast(direct) + self.cast(through_var - self.average(direct) if self.layer_norm else through_var)

    def dweight(self) -> Array:
        if not self.casts_first:
            return super().dweight()
        products = self.dy * self.cast(self.x_hat)
        return self.add_rows(products.astype(NUMPY_DTYPES[self.case.outputs["y"]]).astype(self.compute))


class Affine(Textbook):
    """Every output as x·a + b: keras's forward, torch's backward on the CPU."""

    add = staticmethod(lanes)

    def scaled(self) -> Array:
        if self.n == 1:  # x·r and mean·r are equal and huge: what is left of them is rounding, and keras is wrong there
            return super().scaled()
        scale = self.rstd * self.w
        return self.x * scale + (self.bias - self.mean * scale)

    def dx(self) -> Array:
        sum_g, sum_g_x = self.add(self.g), self.add(self.g * self.x)
        b = (sum_g * self.mean - sum_g_x) * self.rstd**3 / self.compute.type(self.n)
        c = -b * self.mean - self.average_g() * self.rstd
        return self.rstd * self.g + b * self.x + c

    def dweight(self) -> Array:
        return self.add_rows(self.dy * (self.x * self.rstd - self.mean * self.rstd))


STYLES = (Textbook, Fused, Autograd, Affine)


def judged(style: type[Textbook], case: NormCase, seed: int) -> Verdict:
    expected = golden(case, seed)
    with np.errstate(all="ignore"):
        outputs = style(case, expected.inputs).outputs()
    return compare(style.__name__, expected, outputs, tuple(case.outputs))


def trials(op: str, dtype: str, seed: int) -> Iterator[Verdict]:
    for case in select(op=op, dtype=dtype, exclude="*/groups_of_*"):
        if (op, seed) == ("rms_norm", 0) or case.name != "rows_8192":  # which takes longer than all the others together
            yield from (judged(style, case, seed) for style in STYLES)


@pytest.mark.parametrize("op", ROW_NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_none_is_rejected(op, dtype, seed):
    """Nor comes one near: the largest ratio of all is 0.57."""
    verdicts = list(trials(op, dtype, seed))
    assert [(verdict.port, verdict.case.id) for verdict in verdicts if verdict.status != "pass"] == []
    assert max(verdict.ratio for verdict in verdicts) < 0.75


def test_they_differ_from_each_other():
    """Four names for one sequence of roundings would prove nothing."""
    (case,) = select("layer_norm/either_order/float32/width_129")
    given = golden(case).inputs
    for name in ("y", "dx", "dweight"):
        assert len({style(case, given).outputs()[name].tobytes() for style in STYLES}) == len(STYLES)


if __name__ == "__main__":
    largest = defaultdict(float)
    for op, dtype, seed in product(ROW_NORMS, DTYPES, SEEDS):
        for verdict in trials(op, dtype, seed):
            for output in verdict.outputs:
                largest[op, dtype, output.output] = max(largest[op, dtype, output.output], output.ratio)
    for (op, dtype, name), ratio in largest.items():
        print(f"{op:10} {dtype:9} {name:8} {ratio:.2f}")
