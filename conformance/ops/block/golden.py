"""A composite op's case -> its golden: the values are those of `reference`, the intervals those of its program."""

import numpy as np

from conformance.numbers.cache import kept
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.inputs import composite_inputs
from conformance.ops.block.inputs import exact_inputs as exact_inputs
from conformance.ops.op import Golden

Array = np.ndarray
Values = dict[str, Array]


def composite_golden(composite: Composite, intermediates: Values, exact: Values) -> Golden:
    """The golden of a case, laid open, with its intermediates by name and its outputs."""
    case, seed = composite.case, composite.seed
    noise = kept(f"{case!r} {seed}", lambda: composite.noise(exact))
    return Golden(case, seed, composite_inputs(case, seed), intermediates, composite.around(exact, noise))
