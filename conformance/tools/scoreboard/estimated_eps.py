"""eps, estimated from the scales of rows whose mean square is near it; and what several estimates say of it, in words."""

import math
from dataclasses import dataclass

import numpy as np

from conformance.ops.golden import golden
from conformance.ops.norms.anatomy import true_norm
from conformance.ops.norms.cases import NormCase

Array = np.ndarray

UNSTEADY = 0.05  # how far rows may disagree, in units of the eps that was asked
CLOSE = 0.02  # to an eps, relative, besides four standard errors
LEFT_OUT = 5e-4  # of the eps that was asked: so little is none
SHARPEST = 1e-12  # of the scatters that are told apart
INSIDE, OUTSIDE = "inside the root", "outside the root"


@dataclass(frozen=True, slots=True)
class Estimate:
    """eps as the scales of the rows have it, if it stands where this supposes: the median over the rows.

    `spread` is how far the rows disagree, in units of the eps `asked`; `scatter` in units of the median itself; `error` is
    four standard errors of it.
    """

    asked: float
    eps: float
    spread: float
    scatter: float
    error: float

    def is_about(self, eps: float) -> bool:
        """Whether it is this eps, as closely as it can be told."""
        return abs(self.eps - eps) <= CLOSE * abs(eps) + self.error


Estimates = dict[str, Estimate]
"""The estimate for either place where eps may stand."""


def estimate(case: NormCase, y: Array, seed: int = 0) -> Estimates:
    """Least squares give every row's scale, rstd, for a weight with and without an offset; eps follows from it."""
    given = {name: array.astype(np.float64) for name, array in golden(case, seed).inputs.items()}
    norm = true_norm(case, seed)
    x = norm.input - (np.mean(norm.input, axis=-1, keepdims=True) if norm.centre_values else 0.0)
    target, mean_square = y - given.get("bias", 0.0), np.mean(x**2, axis=-1)
    fits: list[tuple[float, Array]] = []
    for offset in (0, 1):
        weighted = x * (given["weight"] + offset) if "weight" in given else x
        weighted = norm.after.input(weighted) if norm.after else weighted
        scale = np.sum(target * weighted, axis=-1) / np.sum(weighted**2, axis=-1)
        fits.append((float(np.sum((target - scale[..., None] * weighted) ** 2)), scale))
    rstd = min(fits, key=lambda fit: fit[0])[1]
    with np.errstate(all="ignore"):
        places = {INSIDE: rstd**-2.0 - mean_square, OUTSIDE: 1 / rstd - np.sqrt(mean_square)}
        return {place: _of_rows(case.eps, eps) for place, eps in places.items()}


def _of_rows(asked: float, eps: Array) -> Estimate:
    median, deviation = float(np.median(eps)), float(np.std(eps))
    scatter = deviation / abs(median) if median else math.inf
    return Estimate(asked, median, deviation / asked, max(scatter, SHARPEST), 4 * deviation / math.sqrt(eps.size))


def followed(answers: list[Estimates]) -> tuple[str, str, bool]:
    """What the estimates say of eps in words, the figures, and whether anything fits.

    It stands where the rows agree best on it, all answers together.
    """
    place = min(answers[0], key=lambda place: sum(math.log(each[place].scatter) for each in answers))
    estimates = sorted((each[place] for each in answers), key=lambda each: each.asked)
    evidence = "; ".join(f"{each.eps:.3g} where {each.asked:.3g} is asked" for each in estimates)
    smallest, largest = estimates[0], estimates[-1]
    if largest.spread > UNSTEADY:
        return "neither under the root nor added to it", f"rows disagree by {largest.spread:.0%} of it", False
    if all(abs(each.eps) <= LEFT_OUT * each.asked + each.error for each in estimates):
        return "left out", evidence, True
    if all(each.is_about(each.asked) for each in estimates):
        return f"{place}, as asked", evidence, True
    if smallest.asked < largest.asked and all(each.is_about(smallest.eps) for each in estimates):
        return f"{place}, hard-coded at {smallest.eps:.3g}", evidence, True
    if smallest.eps > smallest.asked and all(each.is_about(max(each.asked, smallest.eps)) for each in estimates):
        return f"{place}, never less than {smallest.eps:.3g}", evidence, True
    return f"{place}, but not what is asked", evidence, True
