"""What goes wrong where several ranks, or devices, split a norm's rows or features: what is not summed, or not as it should be.

The catalogue has none of it, since how many ranks there are is part of the mistake. A mistake is made where its axis is split,
and nowhere else: whole arrays are computed by code of their own.
"""

from functools import lru_cache
from typing import Literal

from conformance.mistakes.mistake import Mistake
from conformance.mistakes.ranks.parameter_gradients import of_parameter_gradients
from conformance.mistakes.ranks.statistics import of_statistics


@lru_cache
def mistakes_among(count: int, who: Literal["rank", "device"] = "rank") -> tuple[Mistake, ...]:
    """The mistakes that so many ranks, or devices, make among themselves."""
    return (*of_parameter_gradients(count, who), *of_statistics(count, who))
