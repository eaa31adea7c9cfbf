"""The rules, each in the strongest setting that its source has, and read in public source of 2023 to 2026.

Where a rule is about something that a port does not return (statistics, a second implementation), the exact value stands for
it, which makes the judge stricter than it is.
"""

from collections.abc import Mapping

import numpy as np

from conformance.numbers.rounding import FORMATS, ulp
from conformance.ops.norms.values import mean
from conformance.tools.judges.judge import Array, Question, Rule

Tolerance = tuple[float, float]
"""rtol, atol."""
AFTERWARDS = 3  # the root and its reciprocal, the product with x, the product with the weight


def close(forward: Mapping[str, Tolerance], gradients: Mapping[str, Tolerance] | None = None) -> Rule:
    """|actual − reference| <= atol + rtol·|reference|, by dtype; of gradients, where they have tolerances of their own."""

    def rule(question: Question, actual: Array) -> bool:
        by_dtype = gradients if gradients and question.is_gradient else forward
        rtol, atol = by_dtype[question.dtype]
        return bool(np.all(np.abs(actual - question.reference) <= atol + rtol * np.abs(question.reference)))

    return rule


def by_norm(rms_norm: Rule, layer_norm: Rule) -> Rule:
    """One rule of RMSNorm, and one of LayerNorm."""
    return lambda question, actual: (layer_norm if question.case.centred else rms_norm)(question, actual)


def everywhere(rtol: float, atol: float) -> dict[str, Tolerance]:
    """The same in every dtype."""
    return dict.fromkeys(FORMATS, (rtol, atol))


def quack(question: Question, actual: Array) -> bool:
    """A tolerance by dtype; that of a half-precision dweight is what is lost when 0.3 is added to it and taken off again."""
    atol = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}[question.dtype]
    if question.output == "dweight" and question.dtype != "float32":
        grad = question.golden.outputs["dweight"].nearest[question.finite]
        lost = grad + grad.dtype.type(0.3) - grad.dtype.type(0.3) - grad
        atol = 2 * float(np.max(np.abs(lost.astype(np.float64)), initial=0.0))
    return close(everywhere(1e-3, atol))(question, actual)


def flash_attention(question: Question, actual: Array) -> bool:
    """The largest error, against four times that of a run in the dtype itself, which is taken to round once."""
    allowed = 4 * np.max(np.abs(question.reference - question.exact), initial=0.0) + 1e-4
    return bool(np.max(np.abs(actual - question.exact), initial=0.0) <= allowed)


def flash_linear_attention(question: Question, actual: Array) -> bool:
    """The root mean square of the error, against that of the values."""
    error = actual - question.reference
    if np.max(np.abs(error), initial=0.0) <= 1e-6:
        return True
    return bool(np.sqrt(np.mean(error**2)) < 1e-3 * (np.sqrt(np.mean(question.reference**2)) + 1e-8))


def transformer_engine(question: Question, actual: Array) -> bool:
    """Absolutely or relatively close. y is held against one from the kernel's own statistics; here against the exact one."""
    atol, rtol = {"float32": (5e-7, 5e-6), "float16": (1e-5, 1e-3), "bfloat16": (1e-5, 1e-2)}[question.dtype]
    if question.is_gradient:
        atol = rtol = 5e-4
    error = np.abs(actual - question.reference)
    return bool(np.all((error <= atol) | (error <= rtol * np.abs(question.reference))))


def tosa(question: Question, actual: Array) -> bool:
    """Errors in half ulps of a run on magnitudes: each, their squares together, and their sum.

    The rule is TOSA's of a dot product of ks terms. A norm is put together from such: y is judged as a sum of the row's terms,
    and of one more for each of the `AFTERWARDS` operations on the sum.
    """
    case, given = question.case, {name: each.astype(np.float64) for name, each in question.golden.inputs.items()}
    x, rstd = np.abs(given["x"]), question.golden.intermediates["rstd"]
    weight = np.abs(given["weight"]) if "weight" in given else np.ones(case.shape[-1])
    bias = np.abs(given["bias"]) if "bias" in given else np.zeros(case.shape[-1])
    with np.errstate(invalid="ignore"):  # a row with an infinity is no row of finite elements
        terms = x + mean(x) if case.centred else x
        bound = (weight * rstd * terms + bias)[question.finite]
    fmt = FORMATS[question.dtype]
    ks, half_ulp = case.shape[-1] + AFTERWARDS + case.bias, np.maximum(bound * fmt.unit_roundoff, 2.0**fmt.min_exponent)
    errors = (actual - question.exact) / half_ulp
    biased = case.x.offset != 0  # TOSA asks for the sum of data whose sign is balanced
    return bool(
        np.all(np.abs(errors) <= ks)
        and np.sum(errors**2) <= 0.4 * ks * errors.size
        and (biased or abs(np.sum(errors)) <= 2 * np.sqrt(ks * errors.size))
    )


def hipdnn(question: Question, actual: Array) -> bool:
    """One number for the whole output, from the largest weight and bias and the width, by Higham's gamma of the sums."""
    case, given = question.case, question.golden.inputs
    largest = {name: float(np.max(np.abs(given[name].astype(np.float64)))) for name in ("weight", "bias") if name in given}
    scale, bias = largest.get("weight", 1.0), largest.get("bias", 0.0)
    epsilon, width = 2.0**-23, case.shape[-1]
    sums = _gamma(2 * width, epsilon) / 2 + _gamma(width, epsilon) if case.centred else _gamma(width, epsilon) / 2
    tolerance = (sums + 5 * epsilon) * scale + epsilon * bias
    if question.dtype != "float32":
        tolerance += 2 * FORMATS[question.dtype].unit_roundoff * (scale + bias)
    return close(everywhere(tolerance, tolerance))(question, actual)


def _gamma(terms: int, epsilon: float) -> float:
    """hipDNN's: Higham's bound where it is small, and six deviations of a random walk where it is not."""
    worst = 2 * terms * epsilon
    return worst / (1 - worst) if worst < 0.01 else float(6 * np.sqrt(2 * terms) * epsilon)


def ulps(most: int) -> Rule:
    """So many units in the last place of the reference."""

    def rule(question: Question, actual: Array) -> bool:
        return bool(np.all(np.abs(actual - question.reference) <= most * ulp(question.reference, question.dtype)))

    return rule
