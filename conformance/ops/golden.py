"""Case -> Golden: the exact values, and for every element of every output the interval an honest port may return."""

from collections.abc import Mapping
from functools import cache

import numpy as np

from conformance.numbers.expected import Expected
from conformance.numbers.memory import Memory
from conformance.ops.op import Anatomy
from conformance.ops.op import Golden as Golden
from conformance.ops.table import OPS
from conformance.question.case import Case


@cache
def golden(case: Case, seed: int = 0) -> Golden:
    """A case's golden; kept, since every port and mode is judged by the same one."""
    return compute(case, seed)


def compute(case: Case, seed: int) -> Golden:
    """A case's golden, computed anew."""
    return OPS[case.op].golden(case, seed)


def on_its_own(case: Case, expected: Mapping[str, Expected], returned: Mapping[str, np.ndarray]) -> dict[str, Expected]:
    """What is expected of a case's outputs, each given the others that it is judged by, as a port returned them itself."""
    by = {output.name: output.given for output in OPS[case.op].outputs}
    own = {name: {other: returned[other] for other in by.get(name, ()) if other in returned} for name in expected}
    return {name: each.given(own[name]) if own[name] else each for name, each in expected.items()}


@Memory(2**28).keeps  # for all the mistakes that are tried on it
def lay_open(case: Case, seed: int) -> Anatomy:
    """A case's op with nothing altered, for a mistake to alter."""
    return OPS[case.op].anatomy(case, seed)
