"""Properties: what holds for any implementation of a norm, whatever its values, judged by comparing a port with itself.

Two answers that must agree are compared element by element. Where they are not the same bits, the golden's intervals say
how far two honest answers may be apart. The last three are judged against the golden, over whole tensors: they show what
no single element does. docs/properties.md argues for each property why it holds.
"""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np

from conformance.numbers.rounding import ulp
from conformance.ops.norms.cases import NormCase

Array = np.ndarray

FALSE_ALARM = 1e-6  # of every test that leaves something to chance
Z = NormalDist().inv_cdf(1 - FALSE_ALARM)
TELLING_ULPS = 1e4  # more are no rounding, and the values speak for themselves
Status = Literal["holds", "declared", "rounding", "violated", "error", "not asked"]


@dataclass(frozen=True, slots=True)
class Property:
    """What must hold, what it means in practice where it does not, and whether it is required to the bit.

    Where it is not (`exact` is False), two answers may differ as two honest implementations may: that is reported, and
    only more than that is a violation. `served` properties are required to the bit where `--bitwise` asks for it, as servers
    do whose answers must not depend on which requests share a batch.
    """

    id: str
    sentence: str
    consequence: str
    exact: bool
    served: bool = False

    def is_exact(self, *, bitwise: bool) -> bool:
        """Whether it is required to the bit, at this level."""
        return self.exact or (bitwise and self.served)


PROPERTIES = (
    Property(
        "inputs_kept",
        "the inputs are what they were before the call",
        "whatever reads x or dy next, the residual above all, reads other numbers",
        exact=True,
    ),
    Property(
        "repeatable",
        "the same inputs give the same bits again, a dozen times, whatever was asked in between",
        "a run cannot be repeated: state is kept between calls, or a sum's order or memory not yet written decides",
        exact=True,
    ),
    Property(
        "stateless",
        "other inputs of the same shape give what another process gives, which was not asked the first",
        "an earlier answer is remembered, or a buffer used again with what it held",
        exact=False,
        served=True,
    ),
    Property(
        "row_count",
        "a row of y and dx does not depend on how many rows there are, and the parts' dweight and dbias add up",
        "an answer changes with the batch that a request happens to share",
        exact=False,
        served=True,
    ),
    Property(
        "row_order",
        "permuting the rows permutes y and dx",
        "a row's result depends on its place, or on its neighbours: rows leak into each other",
        exact=False,
        served=True,
    ),
    Property(
        "scale_x",
        "x times 2^k with eps times 4^k gives the same y and dweight, and dx times 2^-k",
        "eps is not added to the mean square as it was given: another place, another value, or a clamp",
        exact=False,
    ),
    Property(
        "scale_dy",
        "dy times 2^k gives every gradient times 2^k",
        "the backward pass is not linear: a constant is added, clamped or rounded on the way",
        exact=True,
    ),
    Property(
        "scale_weight",
        "weight and bias times 2^k give y and dx times 2^k, and the same dweight and dbias",
        "the forward pass is not linear in its parameters: the weight is offset, clamped, or normalised along",
        exact=True,
    ),
    Property(
        "layout",
        "strided, sliced, permuted and expanded inputs give what contiguous ones give",
        "a view of a tensor is read as if it lay in one piece: wrong numbers, and no error",
        exact=False,
    ),
    Property(
        "mode",
        "compiled and eager give the same",
        "what was debugged is not what runs: the compiler made it another function",
        exact=False,
    ),
    Property(
        "row_scale",
        "over many rows, y is the golden's in scale: no more off, and no more scattered, than its rounding explains",
        "off by less than one element shows: another divisor, an rstd of few bits, or a rounding too many",
        exact=False,
    ),
    Property(
        "unbiased",
        "over many elements, the errors of y, dx, dweight and dbias are on neither side",
        "off to one side by less than one element shows: truncation, or rounding up; errors add up over layers and steps",
        exact=False,
    ),
    Property(
        "precise",
        "over many elements, the errors are no larger than the roundings of honest arithmetic",
        "each is admissible, all together are not: steps in a lower precision, or roundings at random",
        exact=False,
    ),
)
BY_ID = {each.id: each for each in PROPERTIES}


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a property in one case. `figure` orders findings of one status, `shown` is it in a table's cell.

    `declared`: it does not hold, as the port says of itself.
    """

    property: Property
    case: NormCase
    status: Status
    words: str
    figure: float = 0.0
    shown: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """One output of two answers that must agree.

    `output` begins with its name. `differing` of `size` elements are not equal, and `beyond` differ by more than two honest
    answers can; in `free` of them those may differ at all. The worst element is `actual` and should be `expected`, `ulps` of
    the output's `dtype` apart.
    """

    output: str
    dtype: str
    differing: int
    size: int
    free: int
    beyond: int
    ulps: float
    index: tuple[int, ...]
    expected: float
    actual: float

    @property
    def admissible(self) -> bool:
        """Whether the two can both be honest.

        Honest answers differ only where the interval holds more than one value, and by no more than its width. A port with
        other values than the golden's crosses its rounding boundaries elsewhere, so it is given an ulp anywhere, in about
        as many elements: two counts of rare events, which under one mean differ by more than this with `FALSE_ALARM`.
        """
        chance = Z * sqrt(self.differing + self.free)
        return not self.beyond and self.differing - self.free <= chance

    @property
    def words(self) -> str:
        """What differs, by how much, and the worst element."""
        where = f"{self.output.partition(' ')[0]}[{', '.join(map(str, self.index))}]"
        elements = f"{self.differing} of {self.size} element{'s' * (self.size != 1)} of {self.output}"
        share = f"{elements} differ{'s' * (self.differing == 1)} ({self.differing / self.size:.1%})"
        if self.beyond:
            extent = f"{self.beyond} by more than two honest answers can"
        elif not self.admissible:
            extent = f"where two honest answers could in {self.free}: one of the two rounds where the other does not"
        else:
            extent = "as two honest answers may"
        digits = 17 if self.dtype == "float64" else 9
        apart = f" ({self.ulps:.3g} ulp)" if self.ulps < TELLING_ULPS else ""
        return f"{share}, {extent}; worst {where}: {self.actual:.{digits}g}, not {self.expected:.{digits}g}{apart}"


def difference(output: str, expected: Array, actual: Array, width: Array, judged: Array, dtype: str) -> Difference:
    """Compare one output of two answers, in float64 and of one shape, where `judged`; `width` is that of the intervals."""
    unequal = judged & ~((expected == actual) | (np.isnan(expected) & np.isnan(actual)))
    with np.errstate(all="ignore"):  # a port may return anything
        gap = np.abs(actual - expected)
        gap = np.where(unequal, np.where(np.isnan(gap), np.inf, gap), 0.0)
        unit = ulp(np.maximum(np.abs(expected), np.abs(actual)), dtype)
        ulps, excess = gap / unit, gap / np.maximum(width, unit)
    index = np.unravel_index(int(np.argmax(excess)), excess.shape)
    return Difference(
        output,
        dtype,
        differing=int(np.count_nonzero(unequal)),
        size=int(np.count_nonzero(judged)),
        free=int(np.count_nonzero(judged & (width > 0))),
        beyond=int(np.count_nonzero(excess > 1)),
        ulps=float(ulps[index]),
        index=tuple(int(i) for i in index),
        expected=float(expected[index]),
        actual=float(actual[index]),
    )


def verdict(property_: Property, case: NormCase, what: str, differences: list[Difference], *, bitwise: bool = False) -> Finding:
    """One finding of all outputs compared; `what` says which two answers they were."""
    unequal = [each for each in differences if each.differing]
    if not unequal:
        return Finding(property_, case, "holds", f"{what}: the same bits")
    worst = max(unequal, key=lambda each: (not each.admissible, each.beyond, each.differing / each.size))
    exact, share = property_.is_exact(bitwise=bitwise), worst.differing / worst.size
    status = "violated" if exact or not worst.admissible else "rounding"
    required = ", but the same bits are required" if exact and worst.admissible else ""
    return Finding(property_, case, status, f"{what}: {worst.words}{required}", share, f"{share:.1%}")
