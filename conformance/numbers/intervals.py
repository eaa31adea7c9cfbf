"""Arithmetic of intervals, as far as the roundings inside a formula need it."""

import numpy as np

from conformance.numbers.expected import Interval, Placement
from conformance.numbers.rounding import round_to

Array = np.ndarray


def around(value: Array, half_width: Array | float) -> Placement:
    """The value, give or take so much at a scale of one."""

    def placement(s: float) -> Interval:
        width = noise(s, half_width)
        return (value, value) if isinstance(width, float) and not width else (value - width, value + width)

    return placement


def noise(s: float, half_width: Array | float) -> Array | float:
    """So much noise; none at a scale of zero, even where it may be infinite."""
    return s * half_width if s else 0.0


def ordered(a: Array, b: Array) -> Interval:
    """The interval between two numbers, whichever is the smaller."""
    return np.minimum(a, b), np.maximum(a, b)


def rounded(ends: Interval, dtype: str) -> Interval:
    """Both ends rounded to a dtype: rounding is monotone."""
    return round_to(ends[0], dtype), round_to(ends[1], dtype)


def rounded_to(dtype: str, placed: Placement) -> Placement:
    """A placement rounded to a dtype."""
    return lambda s: rounded(placed(s), dtype)


def product(ends: Interval, w: Array) -> Interval:
    """The ends times w: exact, or with w, or w and the product, rounded to float32: a fused multiply-add keeps the product.

    Between half-precision numbers there is no difference.
    """
    apart = _apart(ends)
    fused = [end * round_to(w, "float32") for end in apart]
    candidates = [end * w for end in apart] + fused + [round_to(product, "float32") for product in fused]
    return np.minimum.reduce(candidates), np.maximum.reduce(candidates)


def plus(ends: Interval, bias: Array) -> Interval:
    """The ends plus the bias: exact, or rounded to float32."""
    low, high = (end + bias for end in ends)
    return np.minimum(low, round_to(low, "float32")), np.maximum(high, round_to(high, "float32"))


def times(a: Interval, b: Interval) -> Interval:
    """The products of what lies between two numbers and of what lies between two others."""
    products = [end * other for end in _apart(a) for other in _apart(b)]
    return np.minimum.reduce(products), np.maximum.reduce(products)


def _apart(ends: Interval) -> tuple[Array, ...]:
    """Both ends, or the one that is both."""
    return ends[:1] if ends[0] is ends[1] else ends
