"""Whether two mistakes lead to the same numbers, so that nothing can tell them apart."""

from functools import cache

import numpy as np

from conformance.mistakes.mistake import Mistake
from conformance.numbers.rounding import DType
from conformance.tools.selftest.selftest import TRIED


@cache
def equivalent(one: Mistake, other: Mistake, op: str, dtype: DType) -> bool:
    """Whether the numbers of one lie in the intervals of the other, in every small case of a norm and a dtype."""
    if one is other:
        return True
    if not (one.can_be_made_in(op) and other.can_be_made_in(op)):
        return False
    for case in TRIED:
        if (case.op, case.dtype) == (op, dtype):
            ours, theirs = one.outputs(case), other.outputs(case)
            for name, expected in theirs.items():
                lower, upper = expected.interval()
                nearest = ours[name].nearest.astype(np.float64)
                admitted = (lower <= nearest) & (nearest <= upper) | np.isnan(nearest) & np.isnan(expected.value)
                if ours[name].dtype != expected.dtype or not admitted.all():
                    return False
    return True
