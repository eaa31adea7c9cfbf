r"""How many bits an output's numbers take to tell to someone who believes a hypothesis about it.

A hypothesis gives an interval for every element. An element inside is told by which of the interval's numbers it is, an
element outside by all of its digits:

$$ \mathrm{bits} = \begin{cases} \log_2(1 + N) & \text{inside, of } N \text{ numbers of the dtype} \\
   \mathrm{whole} & \text{outside} \end{cases} $$

An interval that admits everything costs as much as none, so it explains nothing. The hypothesis that takes the fewest bits
describes the numbers best (minimum description length: Rissanen 1978, "Modeling by shortest data description").
"""

from dataclasses import dataclass, field

import numpy as np

from conformance.judging.compare import OutputVerdict
from conformance.numbers.expected import Expected
from conformance.numbers.rounding import FORMATS

Array = np.ndarray

WHOLE = {
    **{"float8_e5m2": 5.0, "float8_e4m3fn": 6.0, "int8": 8.0},
    **{"bfloat16": 10.0, "float16": 13.0, "float32": 25.0, "float64": 54.0},
}
"""What all the digits of a number cost: a sign, a mantissa and some two bits of exponent, as its size is roughly known."""


@dataclass(frozen=True, slots=True)
class Told:
    """An output as a hypothesis tells it.

    `bits` is what it takes, `width` what each element takes inside its interval. `outside` counts the elements outside, and
    `excess` is what they cost more than they would inside.
    """

    bits: float
    outside: int
    excess: float
    width: Array = field(repr=False)

    @property
    def share(self) -> float:
        """The share of the elements that lie inside."""
        return 1 - self.outside / self.width.size if self.width.size else 1.0


def tell(
    expected: Expected | None,
    output: OutputVerdict,
    least: Array | float = 0.0,
    size: Array | float = 0.0,
    *,
    any_not_finite: bool = False,
) -> Told:
    """An output as these intervals tell it; where there are none, or their dtype is another, it lies outside whole.

    Inside, an element takes `least` bits or more: an interval narrower than honest noise tells no more than that noise allows.
    Nor do numbers count that are closer together than those of its right `size`: around zero there are more than around it.
    Whether a mistake that overflows leads to an infinity or to NaN depends on the order of operations: with `any_not_finite`
    one stands for the other. An expected one has no noise, and takes what one number takes.
    """
    if expected is None or output.dtype != expected.dtype:
        return whole(output)
    digits = _digits(output)
    noise = np.where(np.isfinite(expected.value), least, 0.0)
    width = np.clip(np.log2(1 + _numbers(expected, size)), noise, digits)
    inside = expected.admits(output.actual)
    if any_not_finite:
        inside |= ~(np.isfinite(expected.value) | np.isfinite(output.actual))
    bits = np.where(inside, width, digits)
    return Told(float(np.sum(bits)), int(inside.size - np.count_nonzero(inside)), float(np.sum(bits - width)), width)


def whole(output: OutputVerdict) -> Told:
    """An output of which every element lies outside: all is told by its digits."""
    size, digits = output.actual.size, _digits(output)
    return Told(digits * size, size, (digits - 1) * size, np.ones(output.actual.shape))


def _digits(output: OutputVerdict) -> float:
    return WHOLE.get(output.dtype, WHOLE["float64"])


def _numbers(expected: Expected, size: Array | float) -> Array:
    """How many numbers of the dtype each interval holds, if all are as far apart as at its larger end, or at a size."""
    lower, upper = expected.interval()
    its = FORMATS[expected.dtype]
    with np.errstate(all="ignore"):
        largest = np.fmax(np.maximum(np.maximum(np.abs(lower), np.abs(upper)), its.smallest_normal), size)
        apart = 2 * its.unit_roundoff * largest
        return 1 + np.fmax((upper - lower) / apart, 0.0)  # which leaves out a NaN
