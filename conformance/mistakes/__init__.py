"""The catalogue: a mistake is the golden with exactly one thing altered.

The altered golden has intervals of its own, made by the same budgets and placements as the true one's. So the catalogue
proves that the kit rejects what people really do, and it is the dictionary of a diagnosis: a port whose numbers lie in the
intervals of an altered golden has made that mistake.
"""

from conformance.mistakes import (
    attending,
    attention_gradients,
    batch_norm,
    block_gradients,
    block_norms,
    block_precision,
    dtypes,
    epsilon,
    feed_forward,
    gradients,
    heads,
    indexing,
    lanes,
    layers,
    parameters,
    precision,
    residual,
    rotation,
    rounding_modes,
    statistics,
    visibility,
)
from conformance.mistakes.mistake import Mistake

MISTAKES: tuple[Mistake, ...] = (
    *epsilon.MISTAKES,
    *statistics.MISTAKES,
    *lanes.MISTAKES,
    *parameters.MISTAKES,
    *precision.MISTAKES,
    *rounding_modes.MISTAKES,
    *dtypes.MISTAKES,
    *gradients.MISTAKES,
    *indexing.MISTAKES,
    *batch_norm.MISTAKES,
    *rotation.MISTAKES,
    *visibility.MISTAKES,
    *attending.MISTAKES,
    *heads.MISTAKES,
    *feed_forward.MISTAKES,
    *residual.MISTAKES,
    *block_norms.MISTAKES,
    *layers.MISTAKES,
    *block_gradients.MISTAKES,
    *attention_gradients.MISTAKES,
    *block_precision.MISTAKES,
)
