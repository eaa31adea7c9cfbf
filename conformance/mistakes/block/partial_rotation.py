"""Rotary embedding of a part of the head: which features are turned, which are pairs, and by which frequencies."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from conformance.mistakes.block.rotation import ROTATED, Array, made_of, turns
from conformance.mistakes.block.stages import alters
from conformance.mistakes.mistake import BLOCK, Mistake, all_but
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Rotate
from conformance.ops.block.wrappers import Measured


@dataclass(frozen=True)
class _LastFeatures(Measured):
    """The last features of a head are turned instead of the first."""

    rotate: Rotate

    def forward(self, m: Machine, x: Array) -> Array:
        return self._back(self.rotate.forward(m, self._last_first(x)))

    def vjp(self, m: Machine, dy: Array, x: Array) -> tuple[Array, ...]:
        (dx,) = self.rotate.vjp(m, self._last_first(dy), self._last_first(x))
        return (self._back(dx),)

    def _last_first(self, x: Array) -> Array:
        return np.roll(x, 2 * self.rotate.angles.shape[-1], axis=-1)

    def _back(self, x: Array) -> Array:
        return np.roll(x, -2 * self.rotate.angles.shape[-1], axis=-1)


def _all(composite: Composite, true: Array) -> Array:
    return made_of()(composite, np.empty((len(true), composite.config.d_head // 2)))


def _pairs_of_the_head(composite: Composite, true: Array) -> Array:
    """As many pairs as the head has, of which those behind the true ones are not turned."""
    return np.pad(true, [(0, 0), (0, composite.config.d_head // 2 - true.shape[-1])])


def _frequencies_of_the_head(composite: Composite, true: Array) -> Array:
    return made_of(exponent=2 * true.shape[-1] / composite.config.d_head)(composite, true)


def _without(pair: int) -> Callable[[Composite, Array], Array]:
    def angles(composite: Composite, true: Array) -> Array:
        still = true.copy()
        still[:, pair] = 0.0
        return still

    return angles


def _is_partial(composite: Composite) -> bool:
    return composite.config.rotary_features is not None


OPS = ("rope", *BLOCK)
HIDDEN = dict.fromkeys(all_but("float32"), "a part of each head is turned in float32")
MISTAKES = (
    Mistake(
        "rotary_features_last",
        "the last features of a head are turned, not the first",
        dict.fromkeys(ROTATED, alters(Rotate, _LastFeatures)),
        "All features, but where there are twice as many as are turned none is turned twice.",
        "planted: the two parts of a split exchanged",
        OPS,
        HIDDEN,
        where=_is_partial,
    ),
    Mistake(
        "rotary_features_all",
        "all features of a head are turned",
        dict.fromkeys(ROTATED, turns(_all)),
        "Pairs and frequencies are others.",
        "pie#602, transformers#48652, maxtext#4742",
        OPS,
        HIDDEN,
        where=_is_partial,
    ),
    Mistake(
        "rotary_pairs_of_the_head",
        "a pair is a feature of the head's first half and one of its second, though only a part is turned",
        dict.fromkeys(ROTATED, turns(_pairs_of_the_head)),
        "Pairs of neighbours hide it.",
        "pie#602, transformers#48652, maxtext#4742",
        OPS,
        HIDDEN,
        where=_is_partial,
    ),
    Mistake(
        "rotary_frequencies_of_the_head",
        "the exponent is -2i/d_head, not -2i/rotary_features",
        dict.fromkeys(ROTATED, turns(_frequencies_of_the_head)),
        "Angles are too large but for the first pair's.",
        "pie#602, transformers#48652, maxtext#4742",
        OPS,
        HIDDEN,
        where=_is_partial,
    ),
    Mistake(
        "rotary_first_pair_still",
        "the first of the pairs that are to be turned is not",
        dict.fromkeys(ROTATED, turns(_without(0))),
        "Two features of every head.",
        "planted: an index from one",
        OPS,
        HIDDEN,
        where=_is_partial,
    ),
    Mistake(
        "rotary_last_pair_still",
        "the last of the pairs that are to be turned is not",
        dict.fromkeys(ROTATED, turns(_without(-1))),
        "Two features of every head, whose angles are small.",
        "planted: an end off by one",
        OPS,
        HIDDEN,
        where=_is_partial,
    ),
)
