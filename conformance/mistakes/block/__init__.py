"""Mistakes of the block, and of the ops that it is made of."""

from conformance.mistakes.block import (
    attending,
    attention_gradients,
    feed_forward,
    feed_forward_gradients,
    gradients,
    heads,
    layers,
    norm_parameters,
    norms,
    padding_mask,
    positions,
    precision,
    projections,
    residual,
    rotation,
    visibility,
    weight_gradients,
)
from conformance.mistakes.mistake import Mistake

MISTAKES: tuple[Mistake, ...] = (
    *rotation.MISTAKES,
    *positions.MISTAKES,
    *visibility.MISTAKES,
    *padding_mask.MISTAKES,
    *attending.MISTAKES,
    *heads.MISTAKES,
    *feed_forward.MISTAKES,
    *projections.MISTAKES,
    *residual.MISTAKES,
    *norms.MISTAKES,
    *norm_parameters.MISTAKES,
    *layers.MISTAKES,
    *gradients.MISTAKES,
    *feed_forward_gradients.MISTAKES,
    *weight_gradients.MISTAKES,
    *attention_gradients.MISTAKES,
    *precision.MISTAKES,
)
