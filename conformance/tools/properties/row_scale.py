r"""The scale of a row of y, by least squares, over many rows: what no single element of bfloat16 shows.

With g the golden's w·x_hat, a row's factor is s = ⟨y − bias, g⟩/⟨g, g⟩. It is one but for the port's arithmetic and the
roundings of its dialect. s0 is the same factor of the golden's own correctly rounded y: x and rstd may conspire, as where
rstd is so near one that every x_hat is rounded back to x, and s0 shows it as s does. Over R rows, three things are allowed:

- the arithmetic, alike in all rows: |s − 1| <= Σ t·|g|/Σ g² with t the budget of y.
- the mean of roundings: rounding to nearest errs towards where values are rarer. For a unimodal density p,
  E[error·g] = −∫ p'·g·h²/12 with ulps h <= 2u·|g|, at most u²·E[g²] in magnitude. A dialect rounds at most three times.
- chance. Even a port that rounds in other places than s0 does, and so has independent errors, has a mean of s − s0 within
  Student's t·scatter/√R, and, if it rounds no more often, a spread that exceeds that of s0 by no more than √F with
  Fisher's F, but for a probability of `FALSE_ALARM` each. One that rounds in the same places is nowhere near.
"""

from dataclasses import dataclass
from math import exp, sqrt
from statistics import NormalDist

import numpy as np

from conformance.numbers.rounding import FORMATS, round_to
from conformance.ops.golden import Golden
from conformance.ops.norms.tolerances import NormBudget
from conformance.ops.norms.values import NormValues
from conformance.tools.properties.properties import FALSE_ALARM, Z

Array = np.ndarray

ROUNDINGS = 3  # of x_hat, of its product with the weight, of the sum with the bias


@dataclass(frozen=True, slots=True)
class RowScale:
    """The mean of s − s0, the spread (standard deviation) of s, and the most that an honest port may have of each.

    `scatter` is the spread of s − s0, `rounding` that of s0: what the dialect's roundings explain.
    """

    rows: int
    mean: float
    scatter: float
    spread: float
    rounding: float
    mean_limit: float
    spread_limit: float

    @property
    def z(self) -> float:
        """The mean in units of its own standard error, as the rows' scatter tells it."""
        error = self.scatter / sqrt(self.rows)
        return self.mean / error if error else 0.0

    @property
    def holds(self) -> bool:
        """Whether mean and spread are within their limits; a NaN is in neither."""
        return abs(self.mean) <= self.mean_limit and self.spread <= self.spread_limit

    @property
    def words(self) -> str:
        """The factor, its z, and the spread beside what rounding explains."""
        factor = f"over {self.rows} rows y is (1 {'-' if self.mean < 0 else '+'} {abs(self.mean):.1e}) times what it should be"
        allowed = f"z {self.z:.3g}; {self.mean_limit:.1e} off is allowed"
        spread = f"its spread is {self.spread:.1e}, where rounding explains {self.rounding:.1e}"
        return f"{factor} ({allowed}), and {spread} ({self.spread_limit:.1e} is allowed)"


def row_scale(golden: Golden, norm: NormValues, budget: NormBudget, y: Array) -> RowScale:
    """Measure a port's y, in float64, of the shape of the golden's, whose values and budget are `norm` and `budget`."""
    expected = golden.outputs["y"]
    g = norm.w * norm.x_hat
    square = np.sum(g * g, axis=-1)

    def deviation(y: Array) -> Array:
        """s − 1 of every row; written so that its own rounding is small beside it."""
        return (np.sum((y - norm.y) * g, axis=-1) / square).ravel()

    rounded = deviation(round_to(expected.placements[0](0.0)[0], expected.dtype))
    with np.errstate(all="ignore"):  # a port may return anything
        off = deviation(y)
        mean, scatter, spread = float(np.mean(off - rounded)), float(np.std(off - rounded)), float(np.std(off))
    rows, rounding = off.size, float(np.std(rounded))
    arithmetic = float(np.max(np.sum(budget.y * np.abs(g), axis=-1) / square))
    bias = ROUNDINGS * FORMATS[golden.case.dtype].unit_roundoff ** 2
    return RowScale(
        rows,
        mean,
        scatter,
        spread,
        rounding,
        mean_limit=arithmetic + bias + _student_t(rows - 1) * scatter / sqrt(rows),
        spread_limit=arithmetic + rounding * sqrt(_fisher_f(rows - 1)),
    )


def _student_t(degrees: int) -> float:
    """The two-sided quantile of t, by the first term of its expansion about the normal's."""
    z = NormalDist().inv_cdf(1 - FALSE_ALARM / 2)
    return z + (z**3 + z) / (4 * degrees)


def _fisher_f(degrees: int) -> float:
    """The upper quantile of F at equal degrees of freedom, whose logarithm is nearly normal with variance 4/degrees."""
    return exp(Z * sqrt(4 / degrees))
