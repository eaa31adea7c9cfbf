"""Mistakes of the norms."""

from conformance.mistakes.mistake import Mistake
from conformance.mistakes.norms import (
    batch_norm,
    dtypes,
    dx,
    epsilon,
    indexing,
    lanes,
    parameter_gradients,
    parameters,
    precision,
    rounding_modes,
    statistics,
)

MISTAKES: tuple[Mistake, ...] = (
    *epsilon.MISTAKES,
    *statistics.MISTAKES,
    *lanes.MISTAKES,
    *parameters.MISTAKES,
    *precision.MISTAKES,
    *rounding_modes.MISTAKES,
    *dtypes.MISTAKES,
    *dx.MISTAKES,
    *parameter_gradients.MISTAKES,
    *indexing.MISTAKES,
    *batch_norm.MISTAKES,
)
