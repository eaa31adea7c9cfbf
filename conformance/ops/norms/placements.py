"""Where a norm's dialect rounds, and so which interval every element of its outputs may lie in.

In float32 and float64 nothing is rounded on the way: one placement remains, value ∓ t. In half precision a dialect
fixes the roundings of y; the gradients are those that autograd of the dialect can produce:

- dx: nothing rounded before the end; or, where the weight multiplies last, g = dy·w rounded first, as the
  multiplication's own backward does; each also as the sum of what comes back through every cast of x, where the source
  casts x to float32 more than once. Autograd rounds each, adds them one after another, and rounds every partial sum.
- dweight: x_hat as it is; or, where the weight multiplies last, x_hat as rounded in the forward pass; or the products
  with it rounded as well, before the sum.

Where a gate multiplies what the norm makes, that may be rounded or not if the weight multiplies last, and so may its gradient.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from conformance.numbers.expected import Interval, Placement
from conformance.numbers.intervals import around, noise, ordered, plus, product, rounded, rounded_to, times
from conformance.numbers.rounding import HALF, round_to
from conformance.ops.norms.tolerances import NormBudget
from conformance.ops.norms.values import NormValues, Stage

Array = np.ndarray
Placements = dict[str, list[Placement]]
Read = tuple[float, float, float]
"""How much of dx's three paths (direct, through the mean, through rstd) comes back through one cast of x to float32."""
Paths = tuple[Array, Array, Array]
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
    return {name: [around(getattr(norm, name), getattr(budget, name))] for name in names}


def scale_then_cast(norm: NormValues, budget: NormBudget, dtype: str) -> Placements:
    """One rounding, at the end; dx also by the casts of x. `dtype` is x's."""
    placements = unrounded(norm, budget)
    pulled = _Pulled(norm, budget, dtype, around(norm.dy * norm.pullback.w, 0.0))
    placements["dx"] += _dx_by_reads(pulled)
    placements["dx_after"] = _dx_by_reads(pulled, after=True)
    return placements


def cast_then_scale(norm: NormValues, budget: NormBudget, dtype: str, output_dtype: str) -> Placements:
    """x_hat is rounded to x's `dtype`, then multiplied; the product has the `output_dtype`."""
    placements = scale_then_cast(norm, budget, dtype)
    placements["unrounded y"] = placements["y"]
    cast = rounded_to(dtype, around(norm.x_hat, budget.x_hat))
    placements["y"] = [
        lambda s: plus(product(cast(s), norm.w), norm.bias),
        lambda s: plus(rounded(product(cast(s), norm.w), output_dtype), norm.bias),
    ]
    dy, dy_of_weight = around(norm.dy, budget.dy), around(norm.dy_of_weight, budget.dy)
    ways = [_backward(norm, budget, (dtype, output_dtype), dy, dy_of_weight)]
    if norm.after:  # y may be stored in half precision before the gate, and then so is its gradient, dy
        stored = rounded_to(dtype, dy), rounded_to(dtype, dy_of_weight)
        ways += [_backward(norm, budget, (dtype, output_dtype), *stored, casts=casts) for casts in (True, False)]
    for way in ways:
        placements = {name: placed + way.get(name, []) for name, placed in placements.items()}
    return placements


def _backward(
    norm: NormValues, budget: NormBudget, dtypes: tuple[str, str], dy: Placement, dy_of_weight: Placement, *, casts: bool = True
) -> Placements:
    """dx and dweight, from dy. It `casts` as the backward pass of a weight that multiplies last: g and x_hat are rounded."""
    dtype, output_dtype = dtypes
    multiplicand = around(norm.pullback.multiplicand, budget.x_hat)

    def g(s: float) -> Interval:
        return rounded(product(dy(s), norm.pullback.w), dtype) if casts else product(dy(s), norm.pullback.w)

    def terms(s: float) -> Interval:
        return times(dy_of_weight(s), rounded(multiplicand(s), dtype) if casts else multiplicand(s))

    pulled = _Pulled(norm, budget, dtype, g)
    return {
        "dx": [_dx(pulled), *_dx_by_reads(pulled)],
        "dx_after": _dx_by_reads(pulled, after=True),
        "dweight": [_of_rows(norm, each, budget.dweight) for each in (terms, rounded_to(output_dtype, terms))],
    }


def with_stages(placements: Placements, norm: NormValues, budget: NormBudget, dtype: str) -> Placements:
    """What is returned where something stands before the norm, or after it: what becomes of dx, and of y.

    Where the norm reads a sum as it is stored, in x's `dtype`, dx may be rounded to it before dresidual_out is added, or
    dresidual_out be the first of the terms that come back.
    """
    made: Placements = {}
    if norm.before:
        rounds = norm.reads_storage and dtype in HALF
        dx = placements["dx"] + [rounded_to(dtype, each) for each in placements["dx"]] * rounds
        made |= {name: _of_stage(norm.before, name, dx, budget.before) for name in norm.before.made}
        if rounds and norm.before.first is not None:
            made = {name: each + placements["dx_after"] for name, each in made.items()}
        made |= {name: [around(value, 0.0)] for name, value in norm.before.exact.items()}
    if norm.after:
        z = [*placements.get("unrounded y", []), *placements["y"]]
        made |= {name: _of_stage(norm.after, name, z, budget.after) for name in norm.after.made}
        made["y"] = _of_stage(norm.after, "y", placements["y"], budget.after)
    return made


def _of_stage(stage: Stage, name: str, q: list[Placement], widths: Mapping[str, Array]) -> list[Placement]:
    """An output that a stage makes of one of the norm's, q, for every placement of it."""

    def made_of(placed: Placement) -> Placement:
        def placement(s: float) -> Interval:
            low, high = ordered(*(stage.made[name].of(end) for end in placed(s)))
            width = noise(s, widths[name])
            return low - width, high + width

        return placement

    return [made_of(placed) for placed in q]


class _Pulled:
    """dx from a g that may lie between two numbers: what comes back through each cast of x, rounded to x's `dtype`."""

    def __init__(self, norm: NormValues, budget: NormBudget, dtype: str, g: Placement) -> None:
        self.norm, self.budget, self.dtype, self._g = norm, budget, dtype, g
        self._at: dict[float, tuple[Paths, Array]] = {}
        self._scale = 0.0
        self._rounded: dict[Read, Array] = {}  # of that scale

    def at(self, s: float) -> tuple[Paths, Array]:
        """The three paths of dx from the lower g, and how far dx moves where every g was rounded the other way.

        Kept; the same at every scale, where dy is exact.
        """
        s = s if self.norm.after else 0.0
        if s not in self._at:
            low, high = self._g(s)
            self._at = {s: (self.norm.pullback.dx_paths(low), self._flip(high - low))}
        return self._at[s]

    def _flip(self, doubt: Array) -> Array:
        norm, size = self.norm, np.abs(self.norm.x_hat)
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
            paths, flip = self.at(s)
            part = _through(read, paths)
            width = noise(s, self.budget.dx + np.abs(part) * self.budget.rstd) + (flip if any(read) else 0.0)
            self._rounded[read] = round_to(np.stack([part - width, part + width]), self.dtype)
        return self._rounded[read]


def _dx(pulled: _Pulled) -> Placement:
    """dx from g, with nothing rounded before the end."""

    def placement(s: float) -> Interval:
        paths, flip = pulled.at(s)
        dx, width = sum(paths, np.zeros_like(pulled.norm.x)), flip + noise(s, pulled.budget.dx)
        return dx - width, dx + width

    return placement


def _dx_by_reads(pulled: _Pulled, *, after: bool = False) -> list[Placement]:
    """dx from g for every way to cast x more than once; there is one path, and so no other way, where statistics are given.

    The three paths are also added at once, as a compiler does that fuses the additions. `after`: dresidual_out comes first,
    as it does where autograd starts with the outputs' own cotangents; only where there is one. Nothing is cast where the
    norm reads a sum that is not stored.
    """
    first = pulled.norm.before.first if after and pulled.norm.before else None
    if pulled.norm.given is not None or not pulled.norm.reads_storage or (after and first is None):
        return []
    reads = CENTRED_READS if pulled.norm.centred else RMS_NORM_READS
    if first is not None:
        return [_dx_of_reads(pulled, each, partial(_added_in_turn, first=first)) for each in reads]
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


def _through(read: Read, paths: Paths) -> Array:
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


def _of_rows(norm: NormValues, terms: Placement, half_width: Array) -> Placement:
    """The sum over the rows."""

    def placement(s: float) -> Interval:
        (low, high), width = (norm.pullback.sum_rows(end) for end in terms(s)), noise(s, half_width)
        return low - width, high + width

    return placement
