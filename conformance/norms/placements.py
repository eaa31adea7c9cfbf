"""Where a norm's dialect rounds, and so which interval every element of its outputs may lie in.

In float32 and float64 nothing is rounded on the way: one placement remains, value ∓ t. In half precision a dialect
fixes the roundings of y; the gradients are those that autograd of the dialect can produce:

- dx: nothing rounded before the end; or, where the weight multiplies last, g = dy·w rounded first, as the
  multiplication's own backward does; each also with its paths (direct, through the mean, through rstd) rounded before they
  are added, in whichever two or three groups, as happens where the source casts x to float32 more than once.
- dweight: x_hat as it is; or, where the weight multiplies last, x_hat as rounded in the forward pass; or the products
  with it rounded as well, before the sum.
"""

from collections.abc import Callable

import numpy as np

from conformance.expected import Interval, Placement
from conformance.norms.tolerances import NormBudget
from conformance.norms.values import NormValues
from conformance.rounding import round_to

Array = np.ndarray
Placements = dict[str, list[Placement]]
Groups = tuple[tuple[int, ...], ...]


def unrounded(norm: NormValues, budget: NormBudget) -> Placements:
    """float32 and float64: the exact value, and t on both sides."""
    names = ("y", "dx", "dweight", "dbias") + (("running_mean", "running_var") if norm.running else ())
    return {name: [_around(getattr(norm, name), getattr(budget, name))] for name in names}


def scale_then_cast(norm: NormValues, budget: NormBudget, dtype: str) -> Placements:
    """One rounding, at the end; dx also in groups of paths. `dtype` is x's."""
    placements = unrounded(norm, budget)

    def g() -> Interval:
        exact = norm.dy * norm.pullback.w
        return exact, exact

    placements["dx"] += [_dx(norm, budget, g, dtype, groups) for groups in _groups(norm)]
    return placements


def cast_then_scale(norm: NormValues, budget: NormBudget, dtype: str, output_dtype: str) -> Placements:
    """x_hat is rounded to x's `dtype`, then multiplied; the product has the `output_dtype`."""
    placements = scale_then_cast(norm, budget, dtype)
    x_hat = _around(norm.x_hat, budget.x_hat)
    multiplicand = _around(norm.pullback.multiplicand, budget.x_hat)

    def g() -> Interval:
        return _rounded(_product((norm.dy, norm.dy), norm.pullback.w), dtype)

    def cast(s: float) -> Interval:
        return _rounded(x_hat(s), dtype)

    def terms(s: float) -> Interval:
        return _ordered(*(norm.dy * end for end in _rounded(multiplicand(s), dtype)))

    placements["y"] = [
        lambda s: _sum(_product(cast(s), norm.w), norm.bias),
        lambda s: _sum(_rounded(_product(cast(s), norm.w), output_dtype), norm.bias),
    ]
    placements["dx"] += [_dx(norm, budget, g, dtype, groups) for groups in (((0, 1, 2),), *_groups(norm))]
    placements["dweight"] += [
        lambda s: _sum_rows(norm, terms(s), s * budget.dweight),
        lambda s: _sum_rows(norm, _rounded(terms(s), output_dtype), s * budget.dweight),
    ]
    return placements


def _groups(norm: NormValues) -> tuple[Groups, ...]:
    """The ways to add the three paths of dx with a rounding in between; where the statistics are given there is one path."""
    if norm.given is not None:
        return ()
    if not norm.centred:
        return (((0,), (2,)),)
    return ((0,), (1, 2)), ((0, 1), (2,)), ((0,), (1,), (2,))


def _dx(norm: NormValues, budget: NormBudget, g: Callable[[], Interval], dtype: str, groups: Groups) -> Placement:
    """dx from g, its paths added in groups; where there are several, each is rounded before they are added.

    A g between two numbers may have been rounded the other way, which moves dx by `flip`. Every group carries the error
    of dx, and rstd's on its own size, which does not shrink where the groups cancel. Where a rounded path overflows
    though dx does not, the placement admits nothing: NaN.
    """
    zeros = np.zeros_like(norm.x)

    def placement(s: float) -> Interval:
        low, high = g()
        paths, doubt, size = norm.pullback.dx_paths(low), high - low, np.abs(norm.x_hat)
        flip = norm.rstd * (doubt + (norm.mean(doubt) if norm.centred else 0.0) + size * norm.mean(doubt * size))
        parts = [sum((paths[i] for i in group), zeros) for group in groups]
        if len(parts) == 1:
            return parts[0] - flip - s * budget.dx, parts[0] + flip + s * budget.dx
        widths = [flip + s * (budget.dx + np.abs(part) * budget.rstd) for part in parts]
        ends = [_rounded((part - width, part + width), dtype) for part, width in zip(parts, widths, strict=True)]
        low, high = sum((end[0] for end in ends), zeros), sum((end[1] for end in ends), zeros)
        overflows = np.isfinite(norm.dx) & ~(np.isfinite(low) & np.isfinite(high))
        return np.where(overflows, np.nan, low), np.where(overflows, np.nan, high)

    return placement


def _around(value: Array, half_width: Array) -> Placement:
    return lambda s: (value - s * half_width, value + s * half_width)


def _ordered(a: Array, b: Array) -> Interval:
    return np.minimum(a, b), np.maximum(a, b)


def _rounded(ends: Interval, dtype: str) -> Interval:
    return round_to(ends[0], dtype), round_to(ends[1], dtype)


def _product(ends: Interval, w: Array) -> Interval:
    """The ends times w: exact, or with w and the product rounded to float32 (no difference between half-precision numbers)."""
    in_float32 = [round_to(end * round_to(w, "float32"), "float32") for end in ends]
    candidates = [end * w for end in ends] + in_float32
    return np.minimum.reduce(candidates), np.maximum.reduce(candidates)


def _sum(ends: Interval, bias: Array) -> Interval:
    """The ends plus the bias: exact, or rounded to float32."""
    low, high = (end + bias for end in ends)
    return np.minimum(low, round_to(low, "float32")), np.maximum(high, round_to(high, "float32"))


def _sum_rows(norm: NormValues, terms: Interval, half_width: Array) -> Interval:
    low, high = (norm.pullback.sum_rows(end) for end in terms)
    return low - half_width, high + half_width
