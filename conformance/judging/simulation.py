"""An implementation played in NumPy: the norm laid open, in float32 arithmetic and some order of summation."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from conformance.mistakes.mistake import Mistake
from conformance.numbers.rounding import store
from conformance.ops.block.cases import BlockCase
from conformance.ops.block.golden import run, true_composite
from conformance.ops.block.machine import PlayedMachine
from conformance.ops.block.taps import TAP, tap_names
from conformance.ops.norms.anatomy import (
    Backward,
    every_eighth,
    in_compute_dtype,
    left_to_right,
    outputs_of,
    right_to_left,
    true_norm,
)
from conformance.ops.norms.cases import NormCase
from conformance.question.case import TAPPED, Case

Array = np.ndarray
Sequence = Callable[[int], Array]


@dataclass(frozen=True, slots=True)
class Style:
    """How an implementation is written: its order of summation (None: pairwise), whether its backward is autograd's, and
    which of the admitted placements of roundings it takes, counted from the first.
    """

    sequence: Sequence | None = None
    backward: Backward = "autograd"
    placement: int = 0


STYLES = (
    Style(),
    Style(left_to_right, "formula", 1),
    Style(right_to_left, "autograd", 2),
    Style(every_eighth, "formula", 3),
)


def play(case: Case, seed: int, style: Style, mistake: Mistake | None = None) -> dict[str, Array]:
    """What an implementation in this style returns for a case; with a mistake in it, or none."""
    if isinstance(case, BlockCase):
        return _play_composite(case, seed, mistake)
    assert isinstance(case, NormCase)
    true = true_norm(case, seed)
    norm = replace(in_compute_dtype(mistake.alter(true) if mistake else true), sequence=style.sequence)
    made: dict[str, Array] = {}
    with np.errstate(all="ignore"):
        for name, expected in outputs_of(norm, style.backward).items():
            placement = expected.placements[style.placement % len(expected.placements)]
            value = np.broadcast_to(placement(0.0)[0], case.output_shape(name))
            made[name] = store(value.astype(np.float64), expected.dtype, expected.mode)
    return made


def _play_composite(case: BlockCase, seed: int, mistake: Mistake | None) -> dict[str, Array]:
    """Every stage rounded to the storage dtype; the outputs, and every intermediate as a tap."""
    composite = true_composite(case, seed)
    composite = mistake.alter(composite) if mistake else composite
    values, outputs = run(composite, PlayedMachine(case.dtype), seed)
    taps = {TAP + name: values[name] for name in tap_names(composite.program)} if case.op in TAPPED else {}
    return {name: store(value, case.dtype) for name, value in (outputs | taps).items()}


def numbers(mistake: Mistake, case: Case, seed: int = 0) -> dict[str, Array]:
    """What a mistake leads to: its exact values rounded as they should be, or played where nothing but a bound is known."""
    if isinstance(case, NormCase) and mistake.exact(case):
        return {name: expected.nearest for name, expected in mistake.outputs(case, seed).items()}
    return play(case, seed, STYLES[1], mistake)
