"""Sinks, one more score a head in the softmax: what they are added to, and whose they are."""

import math
from dataclasses import dataclass

import numpy as np

from conformance.mistakes.block.stages import Become, alters
from conformance.mistakes.mistake import MASKED, Mistake, Of
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention_primitives import Softmax
from conformance.ops.block.machine import Machine
from conformance.ops.block.wrappers import Before, Map, Measured

Array = np.ndarray
SINK = 1  # which of the values that a softmax reads


@dataclass(frozen=True)
class _Sinkless(Softmax):
    """Of the keys alone."""

    def vjp(self, m: Machine, dy: Array, scores: Array, *sink: Array) -> tuple[Array, ...]:
        return *super().vjp(m, dy, scores), *map(np.zeros_like, sink)

    def _exponents(self, scores: Array, *sink: Array) -> tuple[Array, Array]:
        return super()._exponents(scores)

    def _shares(self, m: Machine, scores: Array, *sink: Array) -> tuple[Array, Array]:
        return super()._shares(m, scores)


@dataclass(frozen=True)
class _Valued(Measured):
    """The sink's share goes to the first key, whose value it so gets."""

    softmax: Softmax

    def forward(self, m: Machine, scores: Array, *sink: Array) -> Array:
        return self._given(self.softmax.forward(m, scores, *sink)) if sink else self.softmax.forward(m, scores)

    def vjp(self, m: Machine, dy: Array, scores: Array, *sink: Array) -> tuple[Array, ...]:
        return self.softmax.vjp(m, dy - dy[..., :1] if sink else dy, scores, *sink)

    def _given(self, probs: Array) -> Array:
        share = 1 - np.sum(probs, axis=-1)
        return np.concatenate([(probs[..., 0] + share)[..., None], probs[..., 1:]], axis=-1)


@dataclass(frozen=True)
class _AddedAfter(Measured):
    """The keys' softmax, made smaller by what the sink's exponential would be beside a sum of one."""

    softmax: Softmax

    def forward(self, m: Machine, scores: Array, *sink: Array) -> Array:
        return self.softmax.forward(m, scores) * self._left(*sink)

    def vjp(self, m: Machine, dy: Array, scores: Array, *sink: Array) -> tuple[Array, ...]:
        dscores = self.softmax.vjp(m, dy * self._left(*sink), scores)
        dleft = np.sum(dy * self.softmax.forward(m, scores), axis=-1, keepdims=True)
        slope = -self._left(*sink) * (1 - self._left(*sink))
        return *dscores, *(np.sum(dleft * slope, axis=(0, -2, -1)) for _ in sink)

    def _left(self, *sink: Array) -> Array | float:
        return 1 / (1 + np.exp(sink[0][:, None, None])) if sink else 1.0


def _other_sink(make: Map) -> Become:
    return alters(Softmax, lambda op: Before(op, make, SINK))


def _first_for_all(dsink: Array, sink: Array) -> Array:
    return np.concatenate([np.sum(dsink, keepdims=True), np.zeros(len(sink) - 1)])


def _scale(composite: Composite) -> float:
    return 1 / math.sqrt(composite.config.d_head)


def has_sink(composite: Composite) -> bool:
    """Whether heads have sinks."""
    return composite.config.sink


HIDDEN = {"float64": "nothing in float64 is asked for with a sink"}
MISTAKES = (
    Mistake(
        "sink_missing",
        "heads have no sink",
        {"probs": alters(Softmax, lambda op: _Sinkless(op.visible, op.inner))},
        "Rows sum to one; sinks have no gradient.",
        "TransformerEngine#2541",
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
    Mistake(
        "sink_has_a_value",
        "the sink's share goes to the first key's value",
        {"probs": alters(Softmax, _Valued)},
        "Rows sum to one.",
        "planted: the sink of streaming attention, which is the first token",
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
    Mistake(
        "sink_after_softmax",
        "the sink's exponential is added to a sum that is one already",
        {"probs": alters(Softmax, _AddedAfter)},
        "Rows whose exponentials sum to one hide it.",
        "planted: a kernel's output corrected without its row's logarithm",
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
    Mistake(
        "sink_of_first_head",
        "all heads have the first one's sink",
        {"probs": _other_sink(Map(lambda sink: np.full_like(sink, sink[0]), _first_for_all))},
        "The other sinks have no gradient.",
        "planted: a vector broadcast along the wrong axis",
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
    Mistake(
        "sink_scaled",
        "the sink is scaled by 1/sqrt(d_head), as scores are",
        {
            "probs": Of(
                lambda c: _other_sink(Map(lambda sink: sink * _scale(c), lambda dsink, sink: dsink * _scale(c))),
            )
        },
        "Sinks are too close to zero.",
        "planted: joined to the dot products before they are scaled",
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
)
