"""What is expected of a case's outputs under a hypothesis: that nothing is wrong, or that a mistake was made."""

from collections.abc import Mapping

import numpy as np

from conformance.block.anatomy import true_program
from conformance.block.cases import BlockCase
from conformance.block.taps import TAP, expected_taps
from conformance.compare import Verdict
from conformance.expected import Expected
from conformance.golden import golden
from conformance.mistakes.mistake import Mistake
from conformance.rounding import store

Array = np.ndarray
Outputs = Mapping[str, Expected]

NEAR = 32.0  # times the error that honest arithmetic may have; a mistake rarely magnifies it by more


def if_right(verdict: Verdict, seed: int) -> Outputs:
    """What is expected of a case's outputs, its intermediates included, if nothing is wrong."""
    case, right = verdict.case, golden(verdict.case, seed)
    if not verdict.taps:
        return right.outputs
    assert isinstance(case, BlockCase)
    program = true_program(case, right.inputs)
    return right.outputs | _as_taps(expected_taps(case, program, right.inputs, _exported(verdict)))


def if_made(mistake: Mistake, verdict: Verdict, seed: int) -> list[Outputs]:
    """What is expected of a case's outputs if a mistake was made, for every way to write its backward pass."""
    case = verdict.case
    if isinstance(case, BlockCase):
        return [_near_outputs(mistake, verdict, seed) | _taps(mistake, verdict, seed)]
    return [mistake.outputs(case, seed, backward) for backward in mistake.backwards(case, seed)]


def _near_outputs(mistake: Mistake, verdict: Verdict, seed: int) -> dict[str, Expected]:
    """A composite op's outputs, but for those nowhere near: to find an interval costs many times what a value does."""
    values, right = mistake.values(verdict.case, seed), golden(verdict.case, seed).outputs
    with np.errstate(all="ignore"):
        off = {each.output: np.sqrt(np.mean(np.square(each.actual - values[each.output]))) for each in verdict.outputs}
    near = [name for name in off if not off[name] > NEAR * right[name].rms]
    return {name: mistake.outputs(verdict.case, seed)[name] for name in near}


def _taps(mistake: Mistake, verdict: Verdict, seed: int) -> Outputs:
    """A block's intermediates, each given what the port itself fed to it."""
    if not verdict.taps:
        return {}
    assert isinstance(verdict.case, BlockCase)
    return _as_taps(mistake.taps(verdict.case, seed, _exported(verdict)))


def _exported(verdict: Verdict) -> dict[str, Array]:
    return {tap.output.removeprefix(TAP): store(tap.actual, tap.dtype) for tap in verdict.taps}


def _as_taps(expected: Outputs) -> dict[str, Expected]:
    return {TAP + name: each for name, each in expected.items()}
