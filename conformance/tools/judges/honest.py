"""Norms as honest people write them, in NumPy: every order of summation, arrangement and backward pass in common use.

All arithmetic is in the compute dtype, float32 or float64, and nothing is rounded to another but where the dialect says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from conformance.numbers.rounding import NUMPY_DTYPES
from conformance.ops.norms.cases import NormCase
from conformance.ops.norms.values import honest
from conformance.tools.judges.sums import SUMS, fused

Array = np.ndarray


@dataclass(frozen=True)
class Arrangement:
    """What else honest people do differently.

    `variance`: two passes, the same with the mean corrected by the mean of what it leaves, or Welford's updates.
    `rstd`: one over the root, the root of the reciprocal, or one float too large or too small.
    `scaling`: (x·r)·w, x·(r·w), or x·a + b.
    `backward`: the formula of the specification; autograd of the forward pass; dx as x·a + b.
    """

    variance: str = "two passes"
    rstd: str = "1/sqrt"
    scaling: str = "x_hat first"
    backward: str = "formula"
    reciprocal_width: bool = False


ARRANGEMENTS = (
    Arrangement(),
    Arrangement(rstd="sqrt(1/)", scaling="weight first", backward="autograd", reciprocal_width=True),
    Arrangement("corrected", "one up", "x_hat first", "autograd"),
    Arrangement("welford", "one down", "affine", "affine"),
    Arrangement("two passes", "one down", "affine", "autograd"),
)


class Honest:
    """One implementation, given the inputs of one case in their storage dtypes; `outputs` is what it returns."""

    def __init__(self, case: NormCase, given: dict[str, Array], order: str, arrangement: Arrangement):
        self.case, self.order, self.arrangement = case, order, arrangement
        self.n = case.shape[-1]
        self.storage, self.compute = NUMPY_DTYPES[case.dtype], NUMPY_DTYPES[honest(case.dtype).forward]
        self.x, self.dy = given["x"].astype(self.compute), given["dy"].astype(self.compute)
        stored = given.get("weight", np.ones(self.n)).astype(self.compute)
        self.w = stored + self.compute.type(case.dialect.weight_offset)
        self.bias = given.get("bias", np.zeros(self.n)).astype(self.compute)
        self.layer_norm = case.centred
        self.casts_first = case.dialect.order == "cast_then_scale"

    def add(self, a: Array) -> Array:
        """Add up the features in this implementation's order."""
        return SUMS[self.order](a)

    def average(self, a: Array) -> Array:
        """The sum over n, or times 1/n."""
        if self.arrangement.reciprocal_width:
            return self.add(a) * (self.compute.type(1) / self.compute.type(self.n))
        return self.add(a) / self.compute.type(self.n)

    def average_product(self, a: Array, b: Array) -> Array:
        """The mean of a·b; fused where the order is, but in float64, which has no wider type to emulate it in."""
        if self.order == "fused" and self.compute == np.float32:
            return fused(a, b) / self.compute.type(self.n)
        return self.average(a * b)

    def cast(self, a: Array) -> Array:
        """To x's dtype and back."""
        return a.astype(self.storage).astype(self.compute)

    @cached_property
    def welford(self) -> tuple[Array, Array]:
        """Mean and variance from one pass of updates (Chan, Golub & LeVeque 1983)."""
        mean = m2 = np.zeros_like(self.x[..., 0])
        for i in range(self.n):
            difference = self.x[..., i] - mean
            mean = mean + difference / self.compute.type(i + 1)
            m2 = m2 + difference * (self.x[..., i] - mean)
        return mean[..., None], m2[..., None] / self.compute.type(self.n)

    @cached_property
    def mean(self) -> Array:
        """The row's mean; zero in RMSNorm."""
        if not self.layer_norm:
            return np.zeros_like(self.x[..., :1])
        if self.arrangement.variance == "welford":
            return self.welford[0]
        mean = self.average(self.x)
        return mean + self.average(self.x - mean) if self.arrangement.variance == "corrected" else mean

    @cached_property
    def centred(self) -> Array:
        """x less its mean."""
        return self.x - self.mean

    @cached_property
    def rstd(self) -> Array:
        """One over the root of the mean square and eps."""
        welford = self.layer_norm and self.arrangement.variance == "welford"
        mean_square = self.welford[1] if welford else self.average_product(self.centred, self.centred)
        mean_square = mean_square + self.compute.type(self.case.eps)
        if self.arrangement.rstd == "sqrt(1/)":
            return np.sqrt(1 / mean_square)
        rstd = 1 / np.sqrt(mean_square)
        ulp = np.finfo(self.compute).eps
        return rstd * {"one up": 1 + ulp, "one down": 1 - ulp}.get(self.arrangement.rstd, self.compute.type(1))

    @cached_property
    def x_hat(self) -> Array:
        """The normalised row, before any cast."""
        return self.centred * self.rstd

    def y(self) -> Array:
        """The output, in the compute dtype."""
        if self.casts_first:
            product = self.w * self.cast(self.x_hat)
            if self.arrangement.scaling == "weight first":  # the product is rounded before the bias is added
                product = product.astype(NUMPY_DTYPES[self.case.outputs["y"]]).astype(self.compute)
            return product + self.bias
        if self.arrangement.scaling == "weight first":
            return self.centred * (self.rstd * self.w) + self.bias
        if self.arrangement.scaling == "affine" and self.n > 1:  # of one feature it leaves rounding only
            scale = self.rstd * self.w
            return self.x * scale + (self.bias - self.mean * scale)
        return self.x_hat * self.w + self.bias

    def dx(self) -> Array:
        """The gradient of x, in the compute dtype; where the forward pass casts first, autograd rounds dy·w."""
        rounds_g = self.casts_first and self.arrangement.backward == "autograd"
        g = self.cast(self.dy * self.w) if rounds_g else self.dy * self.w
        if self.arrangement.backward == "autograd":
            dx = g * self.rstd - self.centred * (self.rstd**3 * self.average_product(g, self.centred))
            return dx - self.average(dx) if self.layer_norm else dx
        mean_g = self.average(g) if self.layer_norm else np.zeros_like(self.mean)
        if self.arrangement.backward == "affine":
            slope = (mean_g * self.mean - self.average_product(g, self.x)) * self.rstd**3
            return self.rstd * g + slope * self.x - (slope * self.mean + mean_g * self.rstd)
        return self.rstd * (g - mean_g - self.x_hat * self.average_product(g, self.x_hat))

    def dweight(self) -> Array:
        """The gradient of the weight, from x_hat or from x_hat as it was cast."""
        x_hat = self.x_hat
        if self.arrangement.backward == "affine":
            x_hat = self.x * self.rstd - self.mean * self.rstd
        if self.arrangement.backward == "autograd" and self.casts_first:
            x_hat = self.cast(x_hat)
        return self.add_rows(self.dy * x_hat)

    def add_rows(self, a: Array) -> Array:
        """Add up the rows in this implementation's order."""
        return self.add(np.ascontiguousarray(a.reshape(-1, self.n).T))[:, 0]

    def outputs(self) -> dict[str, Array]:
        """Everything that the case asks for, in its dtypes."""
        made = {"y": self.y, "dx": self.dx, "dweight": self.dweight, "dbias": lambda: self.add_rows(self.dy)}
        return {name: made[name]().astype(NUMPY_DTYPES[dtype]) for name, dtype in self.case.outputs.items()}


def implementations(case: NormCase, given: dict[str, Array]) -> Iterator[Honest]:
    """Every order of summation in every arrangement."""
    for order in SUMS:
        for arrangement in ARRANGEMENTS:
            yield Honest(case, given, order, arrangement)
