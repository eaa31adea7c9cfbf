"""An implementation played in NumPy: an op laid open, in some arithmetic and some order of summation."""

import numpy as np

from conformance.mistakes.mistake import Mistake
from conformance.numbers.expected import as_returned
from conformance.ops.block.taps import TAP
from conformance.ops.golden import lay_open
from conformance.ops.norms.anatomy import every_eighth, left_to_right, right_to_left
from conformance.ops.op import Anatomy, Style
from conformance.ops.table import OPS
from conformance.question.case import Case

Array = np.ndarray

STYLES = (
    Style(),
    Style(left_to_right, "formula", 1),
    Style(right_to_left, "autograd", 2),
    Style(every_eighth, "formula", 3),
)


def play(case: Case, seed: int, style: Style, mistake: Mistake | None = None) -> dict[str, Array]:
    """What an implementation in this style returns for a case, with a mistake in it, or none; and its intermediates as taps."""
    played: Anatomy = mistake.altered(case, seed) if mistake else lay_open(case, seed)
    returned = played.play(style)
    return {name: each for name, each in returned.items() if OPS[case.op].taps or not name.startswith(TAP)}


def numbers(mistake: Mistake, case: Case, seed: int = 0) -> dict[str, Array]:
    """What a mistake leads to: its exact values rounded as they should be, or played where nothing but a bound is known."""
    if not OPS[case.op].costly and mistake.exact(case):
        return as_returned(mistake.outputs(case, seed), lambda _, expected: expected.nearest)
    return play(case, seed, STYLES[1], mistake)
