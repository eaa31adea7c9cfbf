"""Case -> Golden: the exact values, and for every element of every output the interval an honest port may return."""

from functools import cache

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


@Memory(2**28).keeps  # for all the mistakes that are tried on it
def lay_open(case: Case, seed: int) -> Anatomy:
    """A case's op with nothing altered, for a mistake to alter."""
    return OPS[case.op].anatomy(case, seed)
