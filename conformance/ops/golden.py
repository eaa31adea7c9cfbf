"""Case -> Golden: the exact values, and for every element of every output the interval an honest port may return."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from conformance.numbers.expected import Expected
from conformance.ops.block.cases import BlockCase
from conformance.ops.block.golden import block_golden
from conformance.ops.block.inputs import block_inputs
from conformance.ops.inputs import inputs
from conformance.ops.norms.cases import NormCase
from conformance.ops.norms.golden import expected_outputs, norm_values
from conformance.question.case import Case

Array = np.ndarray


@dataclass(frozen=True)
class Golden:
    """A case with its numbers: inputs in their storage dtypes, intermediates in float64, and what is expected."""

    case: Case
    seed: int
    inputs: dict[str, Array]
    intermediates: dict[str, Array]
    outputs: dict[str, Expected]


@cache
def golden(case: Case, seed: int = 0) -> Golden:
    """A case's golden; kept, since every port and mode is judged by the same one."""
    return compute(case, seed)


def compute(case: Case, seed: int) -> Golden:
    """A case's golden, computed anew."""
    if isinstance(case, BlockCase):
        return Golden(case, seed, block_inputs(case, seed), *block_golden(case, seed))
    assert isinstance(case, NormCase)
    given = inputs(case, seed)
    norm, intermediates = norm_values(case, given)
    with np.errstate(all="ignore"):
        outputs = expected_outputs(case, norm, case.dialect, case.outputs)
    if case.exact:
        outputs = {name: expected.without_noise() for name, expected in outputs.items()}
    return Golden(case, seed, given, intermediates, outputs)
