"""Mistakes of the block, and of the ops that it is made of."""

from conformance.mistakes.block import (
    attending,
    attention_gradients,
    feed_forward,
    gradients,
    heads,
    layers,
    norms,
    precision,
    residual,
    rotation,
    visibility,
)
from conformance.mistakes.mistake import Mistake

MISTAKES: tuple[Mistake, ...] = (
    *rotation.MISTAKES,
    *visibility.MISTAKES,
    *attending.MISTAKES,
    *heads.MISTAKES,
    *feed_forward.MISTAKES,
    *residual.MISTAKES,
    *norms.MISTAKES,
    *layers.MISTAKES,
    *gradients.MISTAKES,
    *attention_gradients.MISTAKES,
    *precision.MISTAKES,
)
