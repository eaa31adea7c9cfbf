"""What is expected of one output: its exact value, and for every element the interval an honest port may return."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from conformance.numbers.rounding import RoundingMode, round_to, store

Array = np.ndarray
Interval = tuple[Array, Array]
Placement = Callable[[float], Interval]
"""Maps a scale s to the ends of an interval, before the last rounding: the noise s·t around the exact value, pushed
through the roundings that stand inside the formula. Rounding is monotone: the ends stay ends."""

KEPT_SCALES = 0.0, 1.0
KEPT_ELEMENTS = 10_000  # larger intervals are computed again when they are needed again, to save memory


@dataclass(frozen=True)
class Expected:
    """One output: its exact value, its dtype, and the placements of roundings that its dialect admits.

    Every element lies in its interval, and the root mean square of the errors of all finite values is at most `rms`. The last
    rounding, to the dtype, is in `mode`: to nearest, unless a mistake is to round otherwise. Any mode is monotone.
    `of` is set where an output is judged by others that a port returned, as a quantised one is by its scale.
    """

    value: Array
    dtype: str
    placements: tuple[Placement, ...]
    rms: float = float("inf")
    mode: RoundingMode = "nearest_even"
    of: "Callable[[Mapping[str, Array]], Expected] | None" = field(default=None, repr=False, compare=False)
    _intervals: dict[float, Interval] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def around(cls, value: Array, half_width: Array, dtype: str, rms: float = float("inf")) -> "Expected":
        """The value, give or take so much, then rounded to the dtype."""

        def placed(s: float) -> Interval:
            off = s * half_width if s else np.zeros_like(half_width)  # without noise, even where it may be infinite
            return value - off, value + off

        return cls(value, dtype, (placed,), rms)

    def given(self, outputs: Mapping[str, Array]) -> "Expected":
        """The same, given what a port returned for the outputs that it is judged by; itself where there are none."""
        return self.of(outputs) if self.of else self

    def without_noise(self) -> "Expected":
        """The same where no noise is admitted at a scale of 1; an error is still measured in units of what noise would be."""

        def exactly(placement: Placement) -> Placement:
            return lambda s: placement(s if s > 1 else 0.0)

        of = self.of and (lambda outputs: self.given(outputs).without_noise())
        return replace(self, placements=tuple(map(exactly, self.placements)), of=of, _intervals={})

    def admits(self, actual: Array, scale: float = 1.0) -> Array:
        """Which elements lie in their intervals; none, where all of them together are too far off."""
        return self.within(actual, scale) & self.admits_together(actual, scale)

    def admits_together(self, actual: Array, scale: float = 1.0) -> bool:
        """Whether the root mean square of all errors is small enough."""
        if self.rms == float("inf") or np.array_equal(actual, self.interval(0.0)[0], equal_nan=True):
            return True
        with np.errstate(all="ignore"):
            return root_mean_square(np.square(actual - self.value), self.value) <= scale * self.rms

    def within(self, actual: Array, scale: float = 1.0) -> Array:
        """Which elements lie in their own intervals, or are NaN where the exact value is, however far off all of them are.

        What the first placements admit need not be held against the others.
        """
        inside = np.isnan(self.value) & np.isnan(actual)
        known = self._intervals.get(scale)
        for lower, upper in [known] if known else map(self._rounded, self._growing(scale)):
            inside |= (lower <= actual) & (actual <= upper)
            if inside.all():
                break
        return inside

    def interval(self, scale: float = 1.0) -> Interval:
        """Lower and upper for noise `scale` times the budget: float64 arrays of numbers of the output's dtype.

        They are the hull over all placements, rounded. A NaN in both says that the output must be NaN there.
        """
        if scale in self._intervals:
            return self._intervals[scale]
        *_, hull = self._growing(scale)
        whole = self._rounded(hull)
        if scale in KEPT_SCALES and self.value.size <= KEPT_ELEMENTS:
            self._intervals[scale] = whole
        return whole

    def _growing(self, scale: float) -> Iterator[Interval]:
        """The hull, not rounded yet, as it grows with each placement."""
        hull: Interval | None = None
        for placement in self.placements:
            with np.errstate(all="ignore"):
                low, high = placement(scale)
                hull = (np.fmin(hull[0], low), np.fmax(hull[1], high)) if hull else (low, high)
            yield hull

    def _rounded(self, hull: Interval) -> Interval:
        low, high = hull
        with np.errstate(all="ignore"):
            lower = round_to(low, self.dtype, self.mode)
            return lower, lower if high is low else round_to(high, self.dtype, self.mode)

    def times(self, factor: float) -> "Expected":
        """The same, so many times as large before its last rounding, or after it and rounded again."""

        def scaled(placement: Placement) -> Placement:
            def ends(s: float) -> Interval:
                one, other = (factor * end for end in placement(s))
                return np.minimum(one, other), np.maximum(one, other)

            return ends

        placements = tuple(map(scaled, (*self.placements, self.interval)))
        of = self.of and (lambda outputs: self.given(outputs).times(factor))
        return Expected(factor * self.value, self.dtype, placements, abs(factor) * self.rms, self.mode, of)

    def reshaped(self, shape: tuple[int, ...]) -> "Expected":
        """The same elements in another shape."""

        def placed(placement: Placement) -> Placement:
            def ends(s: float) -> Interval:
                low, high = placement(s)
                return np.reshape(low, shape), np.reshape(high, shape)

            return ends

        of = self.of and (lambda outputs: self.given(outputs).reshaped(shape))
        return Expected(self.value.reshape(shape), self.dtype, tuple(map(placed, self.placements)), self.rms, self.mode, of)

    @property
    def nearest(self) -> Array:
        """What an implementation without any noise returns, in the output's dtype."""
        return store(np.broadcast_to(self.interval(0.0)[0], np.shape(self.value)), self.dtype)

    @property
    def lower(self) -> Array:
        """The smallest admissible value of every element, in the output's dtype."""
        return store(self.interval()[0], self.dtype)

    @property
    def upper(self) -> Array:
        """The largest admissible value of every element, in the output's dtype."""
        return store(self.interval()[1], self.dtype)


def as_returned(outputs: Mapping[str, Expected], made: Callable[[str, Expected], Array]) -> dict[str, Array]:
    """What a port returns that makes every output so, those first that another is judged by."""
    returned: dict[str, Array] = {}
    for name in sorted(outputs, key=lambda name: outputs[name].of is not None):
        returned[name] = made(name, outputs[name].given(returned))
    return {name: returned[name] for name in outputs}


def root_mean_square(squares: Array, exact: Array) -> float:
    """The root of the mean of squared errors, over the elements whose exact value is finite; zero where there are none."""
    finite = np.isfinite(exact)
    return float(np.sqrt(np.mean(squares[finite]))) if finite.any() else 0.0
