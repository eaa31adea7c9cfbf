"""How a norm quantises y, laid open: the scale, what becomes of y over it, and the intervals of both.

A quotient, a saturation and a rounding are monotone: the interval of y, pushed through them, is the interval of q. The scale of
a row is its largest |y| over a constant, and has an interval of its own; q is judged given the scale that a port returned.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from conformance.numbers.expected import Expected, Interval, Placement
from conformance.numbers.rounding import FORMATS, QuantisedDType, RoundingMode, round_to
from conformance.ops.norms.values import NormValues
from reference.quantised_norm import GROUPS, LEAST_MX, MX_OF_ZEROS, QUANTISED_FORMATS

Array = np.ndarray
Scaling = Literal["static", "per_row", "per_group_128", "mx"]
Bound = Literal["maximum", "scale", "none"]


def group_size(scaling: Scaling, d: int) -> int:
    """How many neighbours share a scale."""
    return GROUPS.get(scaling, d)


def _unchanged(a: Array) -> Array:
    return a


@dataclass(frozen=True)
class Quantising:
    """What a norm has besides that quantises y: how, and the parts of that; the true ones, until a field is replaced.

    `scale` is given where the scaling is static, [1]; `y_dtype` is what y is rounded to first, None where it is not. A field
    below is a number, a choice, or a function that is applied to both ends of an interval.
    """

    dtype: QuantisedDType
    scaling: Scaling
    scale: Array | None
    scale_ub: float
    y_dtype: str | None

    # the scale
    measured: Callable[[NormValues], Array] | None = None  # what the maximum is taken of, exactly, if not of y
    signed: bool = False  # whether of y itself, not of its magnitude
    size: int | None = None  # of a group, if not that of the scaling
    maxima: Callable[[Array], Array] = _unchanged  # which group's maximum a group is given, [*batch, groups]
    bound: Bound = "maximum"  # what `scale_ub` is a bound of
    divisor: float | None = None  # of the maximum, if not qmax
    floor: float | None = None
    exponent: Callable[[Array, "Quantising"], Array] = lambda maximum, q: np.frexp(maximum)[1] - q.emax - 1.0  # of an MX scale
    returned: Callable[[Array], Array] = _unchanged

    # q
    used: Callable[[Array], Array] = _unchanged  # what of the returned scales, [*batch, groups], divides y
    quotient: Callable[[Array, "Quantising"], Array] = lambda z, q: np.clip(z, -q.qmax, q.qmax)  # what of y / scale is rounded

    @property
    def qmax(self) -> float:
        """The largest number that is used."""
        return FORMATS[self.dtype].largest

    @property
    def emax(self) -> int:
        """The exponent of qmax."""
        return int(np.frexp(self.qmax)[1]) - 1

    def expected(
        self, y: Placement, norm: NormValues, relative: Array, modes: Mapping[str, RoundingMode]
    ) -> dict[str, Expected]:
        """What is expected of the scale, unless it is given, and of q; from y as it is before it is rounded.

        `relative` is the error of what is measured instead of y, for its size.
        """

        def rounded(s: float) -> Interval:
            low, high = (end.astype(np.float64) for end in y(s))
            return (low, high) if self.y_dtype is None else (round_to(low, self.y_dtype), round_to(high, self.y_dtype))

        def measured(s: float) -> Interval:
            if self.measured is None:
                return rounded(s)
            value = self.measured(norm).astype(np.float64)
            width = s * relative * np.abs(value) if s else np.zeros_like(value)
            return value - width, value + width

        if self.scale is not None:
            return {"q": self._q(rounded, self.scale, modes)}
        scale = self._scale(measured, modes)
        own = scale.nearest.astype(np.float64)

        def given(outputs: Mapping[str, Array]) -> Expected:
            returned = outputs["scale"].astype(np.float64)
            with np.errstate(all="ignore"):
                return self._q(rounded, np.where((returned > 0) & np.isfinite(returned), returned, own), modes)

        return {"scale": scale, "q": replace(self._q(rounded, own, modes), of=given)}

    def _scale(self, y: Placement, modes: Mapping[str, RoundingMode]) -> Expected:
        ways = (self._power_of_two,) if self.scaling == "mx" else (_quotient, _single_quotient, _single_product)

        def placed(way: Callable[[Array, float], Array]) -> Placement:
            return lambda s: _ordered(*(self.returned(each) for each in self._bounded(way, *self._largest(*y(s)))))

        placements = tuple(map(placed, ways))
        return Expected(placements[0](0.0)[1], "float32", placements, mode=modes.get("scale", "nearest_even"))

    def _largest(self, low: Array, high: Array) -> Interval:
        """The largest number of every group, [*batch, groups]."""
        if not self.signed:
            low, high = np.maximum(np.maximum(low, -high), 0.0), np.maximum(-low, high)
        d = low.shape[-1]
        size, own = self.size or group_size(self.scaling, d), group_size(self.scaling, d)
        starts = np.arange(0, d, size)
        largest = (np.maximum.reduceat(end, starts, axis=-1) for end in (low, high))
        low, high = (self.maxima(np.repeat(each, size, axis=-1)[..., :d:own]) for each in largest)
        return low, high

    def _bounded(self, way: Callable[[Array, float], Array], low: Array, high: Array) -> Interval:
        divisor = self.qmax if self.divisor is None else self.divisor
        floor = QUANTISED_FORMATS[self.dtype].floor if self.floor is None else self.floor
        ub = {"maximum": self.scale_ub, "scale": divisor * self.scale_ub, "none": np.inf}[self.bound]
        ends = (way(np.minimum(end, ub), divisor) for end in (low, high))
        if self.scaling != "mx":
            ends = (np.maximum(end, floor) for end in ends)
        low_scale, high_scale = ends
        if self.scaling == "mx":  # which leaves the scale of a block of zeros open
            low_scale, high_scale = np.where(low == 0, LEAST_MX, low_scale), np.where(high == 0, MX_OF_ZEROS, high_scale)
        return low_scale, high_scale

    def _power_of_two(self, maximum: Array, divisor: float) -> Array:
        return np.exp2(np.maximum(self.exponent(maximum, self), np.log2(LEAST_MX)))

    def _q(self, y: Placement, scale: Array, modes: Mapping[str, RoundingMode]) -> Expected:
        used = self.used(scale)

        def placed(way: Callable[[Array, Array], Array]) -> Placement:
            def ends(s: float) -> Interval:
                low, high = y(s)
                divisor = np.repeat(used, low.shape[-1] // used.shape[-1], axis=-1)
                return _ordered(*(self.quotient(_without_nan(way(end, divisor), self.dtype), self) for end in (low, high)))

            return ends

        placements = tuple(map(placed, (_quotient, _single_quotient, _single_product)))
        return Expected(placements[0](0.0)[1], self.dtype, placements, mode=modes.get("q", "nearest_even"))


def _quotient(a: Array, divisor: Array | float) -> Array:
    return a / divisor


def _single_quotient(a: Array, divisor: Array | float) -> Array:
    """In float32, as scales are."""
    return round_to(a / divisor, "float32")


def _single_product(a: Array, divisor: Array | float) -> Array:
    """By the reciprocal, which is rounded to float32 as well."""
    return round_to(a * round_to(np.divide(1.0, divisor), "float32"), "float32")


def _without_nan(z: Array, dtype: str) -> Array:
    """Integers have none: a conversion makes zero of it."""
    return np.nan_to_num(z, nan=0.0, posinf=np.inf, neginf=-np.inf) if dtype == "int8" else z


def _ordered(a: Array, b: Array) -> Interval:
    return np.minimum(a, b), np.maximum(a, b)
