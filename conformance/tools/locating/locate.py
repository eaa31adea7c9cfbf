r"""Where two runs part: their activations by name, in data-flow order, and the first whose difference nothing before explains.

An honest run differs from another by roundings, and every operation hands on what it was given. So the relative difference

$$ e = \mathrm{rms}(b - a) / \max(\mathrm{rms}(a), \mathrm{rms}(b)) $$

of an activation is at most a small multiple of the largest of three: what one operation rounds by itself (two roundings to
the coarser dtype, and a sum in float32), the largest e so far, and, where the activation before it is nearly constant along
its rows, that one's e times rms/std, which is what subtracting the mean loses.

Roundings go either way: of n elements' differences e, a share of e/√n lies along a itself, and a little more where a weight's
rounding is common to many elements. A wrong eps, scale or weight lies there entirely. So the scale of b is held against 1,

$$ s - 1 = \langle a, b - a \rangle / \langle a, a \rangle $$

by what explains it: a quarter of what explains e, e² (where bits are lost, b is no longer along a), and the largest so far.

Rotary embedding turns features by an angle as large as the position p, which float32 knows to p·v, with v its unit roundoff.
So where rows keep their lengths, which no other operation leaves as they were, p·v explains e too.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from conformance.numbers.rounding import FORMATS, HALF, round_to

Array = np.ndarray
Fault = Literal["parts", "non-finite", "values"]

STEP = 6.0
"""How many times what explains it a difference is when it is called a parting; at least twice the largest such step before it.

Honest pairs stay below 2.3; below 4.8 where attention is so hot that every block multiplies the difference (docs/locate.md).
"""
ALONG = 1 / 4
"""The share of e that may lie along a, whatever the number of elements; honest pairs use up to twice as much."""
NO_BIT_LEFT = 0.5
TURNED = "rows keep their lengths, as features do that are turned by other angles"
HALF_ROUNDOFF = FORMATS["float16"].unit_roundoff


@dataclass(frozen=True)
class Statistics:
    """An activation of one run; mean, std, min and max are those of its finite values, NaN where there are none."""

    dtype: str
    shape: tuple[int, ...]
    mean: float
    std: float
    min: float
    max: float
    non_finite: float
    """The share of NaN and infinity."""
    broken: bool
    """Whether it holds NaN or +infinity; -infinity alone is what masks are made of."""


@dataclass(frozen=True)
class Finding:
    """An activation of both runs, or of the one that has it.

    `apart` is e, `scale` is s, `unit` the dtype whose roundings they are measured in, and `step` how many times what is
    explained they are, the worse of the two; None where nothing was compared: one run lacks it, or the shapes differ.
    Integers are equal or not: `apart` is the share that differs, and there is no more.
    """

    name: str
    a: Statistics | None
    b: Statistics | None
    apart: float | None = None
    scale: float | None = None
    step: float | None = None
    unit: str | None = None
    fault: Fault | None = None
    hint: str = ""

    @property
    def broken(self) -> bool:
        """Whether either run is NaN or infinite here."""
        return any(run.broken for run in (self.a, self.b) if run)


@dataclass(frozen=True)
class Location:
    """All findings in order."""

    findings: tuple[Finding, ...]

    @property
    def parting(self) -> Finding | None:
        """The first activation that nothing before it explains."""
        return next((finding for finding in self.findings if finding.fault), None)

    @property
    def broken(self) -> Finding | None:
        """The first activation with NaN or infinity in either run."""
        return next((finding for finding in self.findings if finding.broken), None)

    @property
    def drifted(self) -> Finding | None:
        """The first activation in which no bit agrees any more."""
        return next((each for each in self.findings if each.unit and (each.apart or 0.0) >= NO_BIT_LEFT), None)

    @property
    def coarser(self) -> Finding | None:
        """The first activation that is stored in a coarser dtype than all before it, if the first is not."""
        units = [finding for finding in self.findings if finding.unit]
        return next((each for each in units if each.unit != units[0].unit), None)

    @property
    def compared(self) -> int:
        """In how many activations the two were compared."""
        return sum(finding.apart is not None for finding in self.findings)

    @property
    def agrees(self) -> bool:
        """Whether nothing is broken, parts, or has drifted beyond recognition."""
        return not (self.parting or self.broken or self.drifted)


def describe(run: Mapping[str, Array]) -> Location:
    """One run's activations, in their order."""
    return Location(tuple(Finding(name, _statistics(x), None) for name, x in run.items()))


def locate(
    a: Mapping[str, Array], b: Mapping[str, Array], names: Iterable[str], dtype: str = "float64", position: int = 0
) -> Location:
    """Compare two runs' activations in the order of `names`.

    `dtype` is what one of them computes in, where that is coarser than what it stores. `position` is the largest that rotary
    embedding turns by.
    """
    findings: list[Finding] = []
    history = _History(dtype, position)
    for name in names:
        x, y = a.get(name), b.get(name)
        finding = Finding(name, None if x is None else _statistics(x), None if y is None else _statistics(y))
        if x is not None and y is not None and x.shape == y.shape:
            finding = (history.compare if _is_float(x) and _is_float(y) else _compare_exactly)(finding, x, y)
        findings.append(finding)
    return Location(tuple(findings))


class _History:
    """What all activations so far account for in the next one."""

    def __init__(self, dtype: str, position: int) -> None:
        self.unit, self.width, self.position = dtype, 1, position
        self.apart, self.along, self.handed_on, self.step = 0.0, 0.0, 0.0, 1.0

    def compare(self, finding: Finding, x: Array, y: Array) -> Finding:
        """Compare the next activation, and remember it."""
        self.unit = max(self.unit, x.dtype.name, y.dtype.name, key=lambda dtype: FORMATS[dtype].unit_roundoff)
        self.width = max(self.width, *x.shape[-1:])
        finer = all(FORMATS[each.dtype.name].unit_roundoff < HALF_ROUNDOFF for each in (x, y))
        x, y = _as_float64(x), _as_float64(y)
        apart, along, odd = _compare(x, y)
        explained = max(_one_operation(self.unit, self.width), self.apart, self.handed_on)
        turned = apart > STEP * explained and _keep_lengths(x, y, explained)
        explained = max(explained, self.position * _compute_roundoff(self.unit)) if turned else explained
        explained_along = max(ALONG * explained, 3 * apart / math.sqrt(max(x.size, 1)), apart**2, self.along)
        step = max(apart / explained, abs(along) / explained_along)
        fault: Fault | None = "non-finite" if odd else "parts" if step > max(STEP, 2 * self.step) else None
        hint = (
            TURNED if turned else f"b is {1 + along:.4g} times a" if abs(along) > apart / 2 else _in_half(x, y) if finer else ""
        )
        if fault is None:
            self.step = max(self.step, step)
        self.apart, self.along = max(self.apart, apart), max(self.along, abs(along))
        self.handed_on = max(apart, FORMATS[self.unit].unit_roundoff) * _rms_over_std(y)
        hint = hint if fault == "parts" else ""
        return replace(finding, apart=apart, scale=1 + along, step=step, unit=self.unit, fault=fault, hint=hint)


def _compare_exactly(finding: Finding, x: Array, y: Array) -> Finding:
    share = float(np.mean(x != y)) if x.size else 0.0
    return replace(finding, apart=share, fault="values" if share else None)


def _one_operation(unit: str, width: int) -> float:
    """How far apart one operation on equal operands comes out: a few roundings, and a sum in float32 or what is finer.

    A sum of n products is off by 0.4·√n roundings of the natural size, that of √(Σ(a·b)²).
    """
    return 2 * FORMATS[unit].unit_roundoff + 0.4 * _compute_roundoff(unit) * math.sqrt(width)


def _compute_roundoff(unit: str) -> float:
    """That of float32, or of what is finer."""
    return min(FORMATS[unit].unit_roundoff, FORMATS["float32"].unit_roundoff)


def _keep_lengths(x: Array, y: Array, explained: float) -> bool:
    """Whether every row is about as long in one run as in the other, as after a rotation."""
    if x.ndim == 0 or x.shape[-1] == 1 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return False
    size = max(_rms(x), _rms(y))
    lengths = [np.sqrt(np.sum(np.square(values / size), axis=-1)) for values in (x, y)]
    return _rms(lengths[1] - lengths[0]) <= explained * _rms(lengths[0])


def _compare(x: Array, y: Array) -> tuple[float, float, bool]:
    """E and s − 1, where both are finite, and whether one is not finite where the other is, or differently."""
    finite = np.isfinite(x) & np.isfinite(y)
    odd = bool(np.any(~finite & (x != y) & ~(np.isnan(x) & np.isnan(y))))
    x, y = x[finite], y[finite]
    size = max(_rms(x), _rms(y))
    if not size:
        return 0.0, 0.0, odd
    x, difference = x / size, y / size - x / size
    square = float(np.mean(np.square(x)))
    return _rms(difference), float(np.mean(x * difference)) / square if square else 0.0, odd


def _rms_over_std(x: Array) -> float:
    """What subtracting every row's mean multiplies a relative error by; 1 where nothing would be left, or can be told."""
    if x.ndim == 0 or x.size == 0 or not np.isfinite(x).all():
        return 1.0
    size = _rms(x)
    std = _rms(x / size - np.mean(x / size, axis=-1, keepdims=True)) if size else 0.0
    return 1 / std if std else 1.0


def _in_half(x: Array, y: Array) -> str:
    """Says so where all values of one are numbers of a half precision, and those of the other are not."""
    for dtype in HALF:
        of_dtype = [bool(np.array_equal(values, round_to(values, dtype))) for values in (x, y)]
        if of_dtype[0] != of_dtype[1]:
            return f"all values of {'ab'[of_dtype[1]]} are {dtype} numbers"
    return ""


def _statistics(x: Array) -> Statistics:
    dtype, x = x.dtype.name, _as_float64(x)
    finite = x[np.isfinite(x)]
    low, high = (np.min(finite), np.max(finite)) if finite.size else (math.nan, math.nan)
    size = max(abs(low), abs(high)) or 1.0  # so that no square overflows
    mean, std = (size * np.mean(finite / size), size * np.std(finite / size)) if finite.size else (math.nan, math.nan)
    share = 1 - finite.size / x.size if x.size else 0.0
    broken = bool(np.any(np.isnan(x) | (x == np.inf)))
    return Statistics(dtype, x.shape, float(mean), float(std), float(low), float(high), share, broken)


def _rms(x: Array) -> float:
    size = float(np.max(np.abs(x))) if x.size else 0.0
    return size * math.sqrt(np.mean(np.square(x / size))) if size else 0.0


def _as_float64(x: Array) -> Array:
    with np.errstate(invalid="ignore"):  # a signalling NaN is only a NaN
        return x.astype(np.float64)


def _is_float(x: Array) -> bool:
    return x.dtype.name in FORMATS
