"""The catalogue: a mistake is the golden with exactly one thing altered.

The altered golden has intervals of its own, made by the same budgets and placements as the true one's. So the catalogue
proves that the kit rejects what people really do, and it is the dictionary of a diagnosis: a port whose numbers lie in the
intervals of an altered golden has made that mistake.
"""

from conformance.mistakes import (
    attending,
    block_gradients,
    block_precision,
    dtypes,
    epsilon,
    feed_forward,
    gradients,
    indexing,
    parameters,
    precision,
    residual,
    rotation,
    statistics,
)
from conformance.mistakes.mistake import Mistake

MISTAKES: tuple[Mistake, ...] = (
    *epsilon.MISTAKES,
    *statistics.MISTAKES,
    *parameters.MISTAKES,
    *precision.MISTAKES,
    *dtypes.MISTAKES,
    *gradients.MISTAKES,
    *indexing.MISTAKES,
    *rotation.MISTAKES,
    *attending.MISTAKES,
    *feed_forward.MISTAKES,
    *residual.MISTAKES,
    *block_gradients.MISTAKES,
    *block_precision.MISTAKES,
)
