"""Where a norm's dialect rounds, and so which interval every element of its outputs may lie in.

In float32 and float64 nothing is rounded on the way: one placement remains, value ∓ t. In half precision a dialect
fixes the roundings of y; the gradients are those that autograd of the dialect can produce:

- dx: nothing rounded before the end; or, where the weight multiplies last, g = dy·w rounded first, as the
  multiplication's own backward does; each also as the sum of what comes back through every cast of x, where the source
  casts x to float32 more than once. Autograd rounds each, adds them one after another, and rounds every partial sum.
- dweight: x_hat as it is; or, where the weight multiplies last, x_hat as rounded in the forward pass; or the products
  with it rounded as well, before the sum.
"""

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np

from conformance.numbers.expected import Interval, Placement
from conformance.numbers.rounding import HALF, round_to
from conformance.ops.norms.tolerances import NormBudget
from conformance.ops.norms.values import NormValues, both_summands

Array = np.ndarray
Placements = dict[str, list[Placement]]
Read = tuple[float, float, float]
"""How much of dx's three paths (direct, through the mean, through rstd) comes back through one cast of x to float32."""
Reads = tuple[Read, ...]
"""The casts of a source, in the order in which autograd adds their gradients."""

DIRECT: Read = (1, 0, 0)
MEAN: Read = (0, 1, 0)
RSTD: Read = (0, 0, 1)
HALF_RSTD: Read = (0, 0, 0.5)  # one factor of a square that is written as a product of two casts
NOISE: Read = (0, 0, 0)  # a mean of the variance's own, whose gradient is zero but for rounding

# Autograd runs the last operation of the source first, so the mean's cast comes last, or first where it is written last. A
# square of two casts counts only after another path: 2·rd(h) = rd(2h), so on its own it is the path in one.
RMS_NORM_READS: tuple[Reads, ...] = (
    (DIRECT, RSTD),
    (DIRECT, HALF_RSTD, HALF_RSTD),
)
CENTRED_READS: tuple[Reads, ...] = (
    (DIRECT, (0, 1, 1), NOISE),
    ((1, 1, 0), RSTD, NOISE),
    ((1, 0, 1), MEAN, NOISE),
    (DIRECT, MEAN, RSTD, NOISE),
    (DIRECT, RSTD, MEAN, NOISE),
    (MEAN, RSTD, DIRECT, NOISE),
    (DIRECT, HALF_RSTD, HALF_RSTD, MEAN, NOISE),
    (DIRECT, MEAN, HALF_RSTD, HALF_RSTD, NOISE),
)


def unrounded(norm: NormValues, budget: NormBudget) -> Placements:
    """float32 and float64: the exact value, and t on both sides."""
    names = ("y", "dx", "dweight", "dbias") + (("running_mean", "running_var") if norm.running else ())
    return {name: [_around(getattr(norm, name), getattr(budget, name))] for name in names}


def scale_then_cast(norm: NormValues, budget: NormBudget, dtype: str) -> Placements:
    """One rounding, at the end; dx also by the casts of x. `dtype` is x's."""
    placements = unrounded(norm, budget)

    def g() -> Interval:
        exact = norm.dy * norm.pullback.w
        return exact, exact

    pulled = _Pulled(norm, budget, dtype, g)
    placements["dx"] += _dx_by_reads(pulled)
    placements["dx_after"] = _dx_by_reads(pulled, after=True)
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
    pulled = _Pulled(norm, budget, dtype, g)
    placements["dx"] += [_dx(pulled), *_dx_by_reads(pulled)]
    placements["dx_after"] += _dx_by_reads(pulled, after=True)
    placements["dweight"] += [
        lambda s: _sum_rows(norm, terms(s), _noise(s, budget.dweight)),
        lambda s: _sum_rows(norm, _rounded(terms(s), output_dtype), _noise(s, budget.dweight)),
    ]
    return placements


def with_residual(placements: Placements, norm: NormValues, budget: NormBudget, dtype: str) -> Placements:
    """What a norm of a sum returns besides, and the gradients of the two summands: ds and dresidual_out, added.

    Where the norm reads the sum as it is stored, in x's `dtype`, ds may be rounded to it before dresidual_out is added, or
    dresidual_out be the first of the terms that come back.
    """
    summed = norm.summed
    assert summed
    rounds = summed.stored and dtype in HALF

    def passed_on(ds: Placement, summand: int, rounded: bool) -> Placement:
        def placement(s: float) -> Interval:
            ends = _rounded(ds(s), dtype) if rounded else ds(s)
            low, high = _ordered(*(summed.passed(end, summed.dresidual_out)[summand] for end in ends))
            width = _noise(s, budget.passed)
            return low - width, high + width

        return placement

    def summand(number: int) -> list[Placement]:
        passed = [passed_on(ds, number, rounded) for rounded in (False, True)[: 1 + rounds] for ds in placements["dx"]]
        return passed + (placements["dx_after"] if rounds and summed.passed is both_summands else [])

    return {
        "residual_out": [lambda s: (summed.residual_out, summed.residual_out)],
        "dx": summand(0),
        "dresidual": summand(1),
    }


class _Pulled:
    """dx from a g that may lie between two numbers: what comes back through each cast of x, rounded to x's `dtype`."""

    def __init__(self, norm: NormValues, budget: NormBudget, dtype: str, g: Callable[[], Interval]) -> None:
        self.norm, self.budget, self.dtype, self._g = norm, budget, dtype, g
        self._scale = 0.0
        self._rounded: dict[Read, Array] = {}  # of that scale

    @cached_property
    def paths(self) -> tuple[Array, Array, Array]:
        """The three paths of dx, from the lower g."""
        return self.norm.pullback.dx_paths(self._ends[0])

    @cached_property
    def flip(self) -> Array:
        """How far dx moves where every g was rounded the other way."""
        norm, doubt, size = self.norm, self._ends[1] - self._ends[0], np.abs(self.norm.x_hat)
        if not doubt.any():
            return doubt
        through_mean = norm.mean(doubt) if norm.centred else 0.0
        return norm.rstd * (doubt + through_mean + size * norm.mean(doubt * size))

    def rounded(self, read: Read, s: float) -> Array:
        """Both ends of what comes back through one cast, [2, ...], kept, since many sources have the same.

        It carries the error of dx, and rstd's on its own size, which does not shrink where the parts cancel.
        """
        if s != self._scale:
            self._scale = s
            self._rounded.clear()
        if read not in self._rounded:
            part = _through(read, self.paths)
            width = _noise(s, self.budget.dx + np.abs(part) * self.budget.rstd) + (self.flip if any(read) else 0.0)
            self._rounded[read] = round_to(np.stack([part - width, part + width]), self.dtype)
        return self._rounded[read]

    @cached_property
    def _ends(self) -> Interval:
        return self._g()


def _dx(pulled: _Pulled) -> Placement:
    """dx from g, with nothing rounded before the end."""

    def placement(s: float) -> Interval:
        dx, width = sum(pulled.paths, np.zeros_like(pulled.norm.x)), pulled.flip + _noise(s, pulled.budget.dx)
        return dx - width, dx + width

    return placement


def _dx_by_reads(pulled: _Pulled, *, after: bool = False) -> list[Placement]:
    """dx from g for every way to cast x more than once; there is one path, and so no other way, where statistics are given.

    The three paths are also added at once, as a compiler does that fuses the additions. `after`: dresidual_out comes first,
    as it does where autograd starts with the outputs' own cotangents; only where there is one. Nothing is cast where the
    norm reads a sum that is not stored.
    """
    summed = pulled.norm.summed
    if pulled.norm.given is not None or not pulled.norm.reads_storage or (after and summed is None):
        return []
    reads = CENTRED_READS if pulled.norm.centred else RMS_NORM_READS
    if after and summed:
        return [_dx_of_reads(pulled, each, partial(_added_in_turn, first=summed.dresidual_out)) for each in reads]
    placements = [_dx_of_reads(pulled, each, _added_in_turn) for each in reads]
    if pulled.norm.centred:
        placements.append(_dx_of_reads(pulled, (DIRECT, MEAN, RSTD), _added_at_once))
    return placements


def _dx_of_reads(pulled: _Pulled, reads: Reads, added: Callable[[list[Array], str], Array]) -> Placement:
    """dx from g, as the sum of what comes back through each cast of x.

    Where a rounded part overflows though dx does not, the placement admits nothing: NaN.
    """

    def placement(s: float) -> Interval:
        low, high = added([pulled.rounded(read, s) for read in reads], pulled.dtype)
        overflows = np.isfinite(pulled.norm.dx) & ~(np.isfinite(low) & np.isfinite(high))
        return (np.where(overflows, np.nan, low), np.where(overflows, np.nan, high)) if overflows.any() else (low, high)

    return placement


def _through(read: Read, paths: tuple[Array, Array, Array]) -> Array:
    """What comes back through one cast: its shares of the paths. A share of zero keeps even a NaN out."""
    return sum((share * path for share, path in zip(read, paths, strict=True) if share), np.zeros_like(paths[0]))


def _added_in_turn(parts: list[Array], dtype: str, first: Array | None = None) -> Array:
    """The parts added one after another, every partial sum rounded; the last is left to the output's rounding."""
    total, *others = parts if first is None else [np.stack([first, first]), *parts]
    for number, part in enumerate(others):
        total = (round_to(total, dtype) if number else total) + part
    return total


def _added_at_once(parts: list[Array], dtype: str) -> Array:
    """The parts added with no rounding in between."""
    return sum(parts, np.zeros_like(parts[0]))


def _around(value: Array, half_width: Array | float) -> Placement:
    def placement(s: float) -> Interval:
        width = _noise(s, half_width)
        return value - width, value + width

    return placement


def _noise(s: float, half_width: Array | float) -> Array | float:
    """So much noise; none at a scale of zero, even where it may be infinite."""
    return s * half_width if s else 0.0


def _ordered(a: Array, b: Array) -> Interval:
    return np.minimum(a, b), np.maximum(a, b)


def _rounded(ends: Interval, dtype: str) -> Interval:
    return round_to(ends[0], dtype), round_to(ends[1], dtype)


def _product(ends: Interval, w: Array) -> Interval:
    """The ends times w: exact, or with w, or w and the product, rounded to float32: a fused multiply-add keeps the product.

    Between half-precision numbers there is no difference.
    """
    fused = [end * round_to(w, "float32") for end in ends]
    candidates = [end * w for end in ends] + fused + [round_to(product, "float32") for product in fused]
    return np.minimum.reduce(candidates), np.maximum.reduce(candidates)


def _sum(ends: Interval, bias: Array) -> Interval:
    """The ends plus the bias: exact, or rounded to float32."""
    low, high = (end + bias for end in ends)
    return np.minimum(low, round_to(low, "float32")), np.maximum(high, round_to(high, "float32"))


def _sum_rows(norm: NormValues, terms: Interval, half_width: Array | float) -> Interval:
    low, high = (norm.pullback.sum_rows(end) for end in terms)
    return low - half_width, high + half_width
