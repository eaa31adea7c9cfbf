r"""Bias and variance of a whole tensor's errors: what shows in no single element, each of which is admissible.

With e = output − exact value, h = the output's ulp there, and v the unit roundoff of the compute dtype. Honest arithmetic
rounds to nearest. On random data its errors are then as likely above as below the exact value, and nearly independent from
element to element, but for what a statistic does to all that it multiplies: a rstd off by a little moves its row of y along
w·x_hat, a mean along w; dx moves along its own paths, dweight along itself. Those patterns are projected out, by least
squares, and judged elsewhere (the row scale). What is left of e and of a direction D is written e' and D'.

Bias. D is h (everything up), or h·sign(value) (everything outwards), and b = Σ e'·D' / Σ D'² the bias in ulps along it.
c = the part of Σ e'·D' that a row contributes (of a parameter's gradient: an element). Where the c are independent and
symmetric about zero, given their magnitudes Σc is a sum of random signs, and Hoeffding's inequality is

$$ P\{|\sum c| > z \sqrt{\sum c^2}\} \le 2 e^{-z^2/2} $$

whatever their distribution. Allowed besides: rounding to nearest errs towards where values are rarer, by
h²/12·p'/p = h·u·(value/σ)²/6 at most for a bell-shaped density of deviation σ, as often as the dialect rounds; and in half
precision, where it is little beside an ulp, the arithmetic's whole budget, all of it to one side.

Variance. Σe² is compared with what honest roundings come to. In half precision that is the Σe² of the golden's own values,
rounded where the dialect rounds, by the placement with the largest. Row by row the difference is symmetric if the two have
one distribution, and the same inequality holds. In float32 and float64 nothing is rounded on the way, and the variance of
the arithmetic bounds it: a rounding has a relative variance of v²/3 at most.

- y: the centred x, x_hat, its product with the weight, and y with the bias: `STEPS` roundings of w·x_hat, one of y.
- dx: at most `PATH_STEPS` for each of its paths, `JOINTS` where they are added, each of no more than the sum of magnitudes.
- dweight, dbias: a sum of R terms of random sign, one by one: partial sums of k terms have a square of k times a term's, and
  R/2 on average: v²/3·R/2·Σ terms². dweight's terms have their own roundings, and rstd's, whose sum of n squares is the
  largest: partial sums k/n of the whole, a variance of v²/3·n/3, of which half the error and so a quarter reaches rstd.

The golden of float64 is off as much as a port: twice the variance.
"""

from dataclasses import dataclass
from math import log, sqrt

import numpy as np

from conformance.numbers.rounding import FORMATS, HALF, round_to, ulp
from conformance.ops.golden import Golden
from conformance.ops.norms.cases import NormCase
from conformance.ops.norms.tolerances import NormBudget
from conformance.ops.norms.values import NormValues, sum_rows
from conformance.tools.properties.properties import BY_ID, Finding

Array = np.ndarray

FALSE_ALARM = 1e-6  # of a run, over everything below that is left to chance
TESTS = 200  # of a run: 12 kinds, 4 outputs, 2 directions of bias and one of variance are 144
Z = sqrt(2 * log(2 * TESTS / FALSE_ALARM))

ROUNDINGS = 3  # in half precision: of x_hat, of its product with the weight, of the sum with the bias
STEPS = 4  # of x − mean, its product with rstd, rstd with the weight, or the product with the weight
PATH_STEPS = 6  # as in rstd³·x·(sum / n) of autograd, its factors one by one
JOINTS = 3  # where the three paths of dx are added, and the sum is scaled
TERM_STEPS = 10  # of dy·x_hat, and the row's roundings besides those of the sum of squares


@dataclass(frozen=True, slots=True)
class Bias:
    """The bias along a direction, in ulps of the output, and the largest that chance and rounding explain."""

    output: str
    direction: str
    ulps: float
    limit: float

    @property
    def excess(self) -> float:
        """The bias in units of its limit; at most 1 holds."""
        return _ratio(abs(self.ulps), self.limit)

    @property
    def words(self) -> str:
        """Which side the errors are on, and by how much."""
        side = {"up": ("up", "down"), "outwards": ("away from zero", "towards zero")}[self.direction][self.ulps < 0]
        return f"{self.output} is off by {abs(self.ulps):.2g} ulp {side} on average; {self.limit:.2g} is explained"


@dataclass(frozen=True, slots=True)
class Scatter:
    """The root mean square of an output's errors, and the largest that honest roundings have, in units of its own size."""

    output: str
    rms: float
    limit: float

    @property
    def excess(self) -> float:
        """The errors in units of their limit; at most 1 holds."""
        return _ratio(self.rms, self.limit)

    @property
    def words(self) -> str:
        """How large the errors are, beside what is explained."""
        return f"the errors of {self.output} are {self.rms:.2g} of it, root mean square; roundings explain {self.limit:.2g}"


def _ratio(figure: float, limit: float) -> float:
    return figure / limit if limit else float(figure > 0)


@dataclass(frozen=True, slots=True)
class Errors:
    """One output's errors, in rows; a parameter's gradient is one row.

    `error` is what came less the exact `value`, `unit` the ulp there, `half_width` the arithmetic's budget. `basis` is
    orthonormal, [rows, d, k]: what a statistic that is off does to the whole output, where that is much beside an ulp.
    """

    golden: Golden
    norm: NormValues
    output: str
    dtype: str
    value: Array
    error: Array
    unit: Array
    half_width: Array
    basis: Array | None

    def without_patterns(self, a: Array) -> Array:
        """The part of a that no statistic explains."""
        if self.basis is None:
            return a
        amounts = np.einsum("rdk,rd->rk", self.basis, a)
        return a - np.einsum("rdk,rk->rd", self.basis, amounts)

    def samples(self, terms: Array) -> Array:
        """Sums of the terms that are independent of one another: of a row each; in a parameter's gradient, every element."""
        return terms.sum(axis=-1) if self.output in ("y", "dx") else terms[0]


def errors_of(golden: Golden, norm: NormValues, budget: NormBudget, output: str, actual: Array) -> Errors:
    """The errors of one output of a port."""
    d, dtype = norm.x.shape[-1], golden.outputs[output].dtype
    value = getattr(norm, output).reshape(-1, d)
    error = actual.astype(np.float64).reshape(-1, d) - value
    half_width = np.broadcast_to(getattr(budget, output), actual.shape).reshape(-1, d)
    patterns = [] if dtype in HALF else _patterns(norm, output)
    basis = np.linalg.qr(np.stack(patterns, axis=-1)).Q if patterns else None
    return Errors(golden, norm, output, dtype, value, error, ulp(value, dtype), half_width, basis)


def _patterns(norm: NormValues, output: str) -> list[Array]:
    """What a rstd, a mean or a projection that is off adds to an output, in rows."""
    d, ones = norm.x.shape[-1], np.ones_like(norm.x)
    match output:
        case "y":
            patterns = [norm.w * norm.x_hat] + [norm.w * ones] * norm.centred
        case "dx":
            patterns = [norm.dy * norm.w, norm.x_hat] + [ones] * norm.centred
        case "dweight":
            patterns = [norm.dweight]
        case _:
            patterns = []
    return [pattern.reshape(-1, d) for pattern in patterns]


def judge_whole(golden: Golden, norm: NormValues, budget: NormBudget, outputs: dict[str, Array]) -> list[Finding]:
    """The two findings on a port's outputs, each about all those whose elements are admissible."""
    case = golden.case
    assert isinstance(case, NormCase)
    with np.errstate(all="ignore"):  # a port may return anything
        admissible = [name for name, actual in outputs.items() if _is_admissible(golden, name, actual)]
    errors = [errors_of(golden, norm, budget, name, outputs[name]) for name in admissible]
    if not errors:
        why = "no output has all its elements in their intervals; `conformance run` judges those"
        return [Finding(BY_ID[id_], case, "not asked", why) for id_ in ("unbiased", "precise")]
    biases = [bias(each, direction) for each in errors for direction in ("up", "outwards")]
    return [
        _finding("unbiased", case, max(biases, key=lambda each: each.excess)),
        _finding("precise", case, max(map(scatter, errors), key=lambda each: each.excess)),
    ]


def _is_admissible(golden: Golden, name: str, actual: Array) -> bool:
    expected = golden.outputs[name]
    return actual.dtype.name == expected.dtype and bool(np.all(expected.admits(actual.astype(np.float64))))


def _finding(property_: str, case: NormCase, worst: Bias | Scatter) -> Finding:
    status = "holds" if worst.excess <= 1 else "violated"
    return Finding(BY_ID[property_], case, status, worst.words, worst.excess, f"{worst.excess:.2g} of limit")


def bias(errors: Errors, direction: str) -> Bias:
    """The mean of an output's errors along a direction, `up` or `outwards`, in ulps."""
    unit, value = errors.unit, errors.value
    along = errors.without_patterns(unit if direction == "up" else unit * np.sign(value))
    square = float(np.sum(np.square(along)))
    terms = errors.samples(errors.without_patterns(errors.error) * along)
    explained = ROUNDINGS * FORMATS[errors.dtype].unit_roundoff / 6 * np.square(value) / np.mean(np.square(value)) * unit
    if errors.dtype in HALF:
        explained = explained + errors.half_width
    systematic = float(np.sum(explained * np.abs(along)))
    chance = Z * sqrt(float(np.sum(np.square(terms))))
    return Bias(errors.output, direction, float(np.sum(terms)) / square, (systematic + chance) / square)


def scatter(errors: Errors) -> Scatter:
    """The root mean square of an output's errors, relative to the output's own."""
    error = errors.without_patterns(errors.error)
    explained = _roundings(errors) if errors.dtype in HALF else _arithmetic(errors)
    terms = errors.samples(np.square(error) - explained)
    chance = Z * sqrt(float(np.sum(np.square(terms))))
    size = float(np.sum(np.square(errors.value)))
    limit = sqrt((float(np.sum(explained)) + chance) / size)
    return Scatter(errors.output, sqrt(float(np.sum(np.square(error))) / size), limit)


def _roundings(errors: Errors) -> Array:
    """The squared errors of honest roundings: of the golden by the placement where they are the largest, and the arithmetic."""
    expected = errors.golden.outputs[errors.output]
    with np.errstate(all="ignore"):
        rounded = [round_to(placement(0.0)[0], expected.dtype) for placement in expected.placements]
    squares = [np.square(each - expected.value) for each in rounded]
    worst = max(squares, key=lambda square: float(np.nan_to_num(np.sum(square), nan=-1.0)))
    t = errors.half_width
    return worst.reshape(errors.value.shape) + 2 * np.abs(errors.error) * t + np.square(t)


def _arithmetic(errors: Errors) -> Array:
    """The variance that roundings to float32, or float64, may have, element by element."""
    norm, dtype = errors.norm, FORMATS[errors.golden.case.dtype].compute_dtype
    relative = FORMATS[dtype].unit_roundoff ** 2 / 3 * (2 if dtype == "float64" else 1)
    rows, n = norm.x.size // norm.x.shape[-1], norm.count
    match errors.output:
        case "y":
            steps = STEPS * np.square(norm.w * norm.x_hat) + np.square(norm.y)
        case "dx":
            paths = norm.pullback.dx_paths(norm.dy * norm.w)
            steps = PATH_STEPS * sum(np.square(path) for path in paths)
            steps = steps + JOINTS * np.square(sum(np.abs(path) for path in paths))
        case "dweight":
            steps = (rows / 2 + n / 12 + TERM_STEPS) * sum_rows(np.square(norm.dy * norm.x_hat))
        case _:
            steps = (rows / 2 + 1) * sum_rows(np.square(norm.dy))
    return relative * np.asarray(steps).reshape(errors.value.shape)
