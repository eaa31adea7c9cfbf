"""Mistakes of the norms."""

from conformance.mistakes.mistake import Mistake
from conformance.mistakes.norms import (
    arithmetic,
    batch_norm,
    dtypes,
    dx,
    epsilon,
    gating,
    grouping,
    indexing,
    lanes,
    output_precision,
    padding,
    parameter_gradients,
    parameters,
    precision,
    quantised,
    residual,
    rounding_modes,
    saved,
    scales,
    statistics,
)

MISTAKES: tuple[Mistake, ...] = (
    *residual.MISTAKES,  # first: what rounds the sum is put down to the sum
    *scales.MISTAKES,
    *quantised.MISTAKES,
    *gating.MISTAKES,
    *grouping.MISTAKES,
    *epsilon.MISTAKES,
    *statistics.MISTAKES,
    *padding.MISTAKES,
    *lanes.MISTAKES,
    *parameters.MISTAKES,
    *precision.MISTAKES,
    *output_precision.MISTAKES,
    *arithmetic.MISTAKES,
    *rounding_modes.MISTAKES,
    *dtypes.MISTAKES,
    *dx.MISTAKES,
    *saved.MISTAKES,
    *parameter_gradients.MISTAKES,
    *indexing.MISTAKES,
    *batch_norm.MISTAKES,
)
