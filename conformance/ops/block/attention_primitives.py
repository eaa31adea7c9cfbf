"""The primitives of attention; `primitives` says what one is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import ROUNDING, SAME, TINY, gamma
from reference.rows import sum_rows

Array = np.ndarray


@dataclass(frozen=True)
class DotProducts:
    """Queries with keys, scaled; query head i reads key head `groups[i]`."""

    scale: float
    groups: Sequence[int]

    def forward(self, m: Machine, q: Array, k: Array) -> Array:
        q, k = m.store(q), np.take(k, self.groups, axis=-2)
        dots = m.add_up(_dot(q, k), q.shape[-1], lambda: _dot(np.square(q), np.square(k)))
        return self.scale * m.store(dots)

    def vjp(self, m: Machine, dy: Array, q: Array, k: Array) -> tuple[Array, ...]:
        dy, k_heads = self.scale * m.store(dy), np.take(k, self.groups, axis=-2)
        dq = m.add_up(_mix(dy, k_heads), dy.shape[-1], lambda: _mix(np.square(dy), np.square(k_heads)))
        dk = m.add_up(_spread(dy, q), dy.shape[-2], lambda: _spread(np.square(dy), np.square(q)))
        return dq, _sum_groups(m.store(dk), self.groups, k)

    def bound(self, u: float, v: float, y: Array, q: Array, k: Array) -> Array:
        k = np.take(k, self.groups, axis=-2)
        size, spread = _dot(np.abs(q), np.abs(k)), np.sqrt(_dot(np.square(q), np.square(k)))
        # The products may be rounded before they are scaled, or q and k scaled and rounded before they are multiplied.
        return abs(self.scale) * (gamma(v, q.shape[-1]) * size + 2 * u * spread) + 2 * u * np.abs(y)


@dataclass(frozen=True)
class SoftCap:
    """cap · tanh(scores / cap)."""

    cap: float

    def forward(self, m: Machine, scores: Array) -> Array:
        return self.cap * self._tanh(m, scores)

    def vjp(self, m: Machine, dy: Array, scores: Array) -> tuple[Array, ...]:
        # The slope is one minus the square of what was kept: far beyond the cap nothing but its rounding is left.
        kept, tanh = self._tanh(m, scores), np.tanh(scores / self.cap)
        slope = 1 / np.square(np.cosh(scores / self.cap)) + (tanh - kept) * (tanh + kept)
        return (m.compute(dy * slope, 4 * np.abs(dy)),)

    def bound(self, u: float, v: float, y: Array, scores: Array) -> Array:
        # The quotient may be rounded, and so may the tanh; neither moves y by more than its own share.
        return (16 * v + 2 * ROUNDING * u) * np.abs(y)

    def _tanh(self, m: Machine, scores: Array) -> Array:
        tanh = np.tanh(m.store(scores / self.cap))
        return m.store(m.compute(tanh, 8 * np.abs(tanh)))


@dataclass(frozen=True)
class Softmax:
    """Over the keys that are visible, and a sink if there is one; `inner` is what becomes of every step's value."""

    visible: Array
    inner: Callable[[Array], Array] = SAME

    def forward(self, m: Machine, scores: Array, *sink: Array) -> Array:
        return self._shares(m, scores, *sink)[0]

    def vjp(self, m: Machine, dy: Array, scores: Array, *sink: Array) -> tuple[Array, ...]:
        probs, share = self._shares(m, scores, *sink)
        probs = m.store(probs)
        # The row's sum may come from other roundings than those of dy: flash attention forms it from its own output and that
        # one's cotangent, a sum that need not cancel where dy's does. The size of dy over all keys tells how large it is.
        size = np.sqrt(np.mean(np.square(dy), axis=-1, keepdims=True))
        total = np.sum(probs * m.store(dy), axis=-1, keepdims=True) + (m.store(size) - size)
        total = self.inner(m.compute(total, 4 * size))
        dscores = self.inner(probs * self.inner(dy - total))
        return (dscores, -sum_rows(np.sum(m.store(share) * total, axis=(-2, -1)))) if sink else (dscores,)

    def bound(self, u: float, v: float, y: Array, scores: Array, *sink: Array) -> Array:
        return y * v * (16 + math.sqrt(y.shape[-1]) + _size(*self._exponents(scores, *sink))) + TINY

    def _shares(self, m: Machine, scores: Array, *sink: Array) -> tuple[Array, Array]:
        """What each key has, and what the sink has, of one."""
        exponents, top = self._exponents(scores, *sink)
        exponentials = self.inner(np.exp(self.inner(m.compute(exponents, _size(exponents, top)))))
        total = np.sum(exponentials, axis=-1, keepdims=True)
        sunk = np.zeros_like(total)
        if sink:
            depth = sink[0][:, None, None] - top
            sunk = self.inner(np.exp(self.inner(m.compute(depth, _size(depth, top)))))
            total = total + sunk
        # Flash attention makes the probabilities again, or joins parts of a row, by the total's logarithm, as large as a score.
        total = self.inner(m.compute(total, total * np.abs(top)))
        total = np.where(total == 0, 1.0, total)
        return self.inner(exponentials / total), self.inner(sunk / total)

    def _exponents(self, scores: Array, *sink: Array) -> tuple[Array, Array]:
        """How far each score lies below the largest that its row sees, or its sink, and that one; zero where it sees none."""
        seen = np.where(self.visible, scores, -np.inf)
        top = np.max(seen, axis=-1, keepdims=True, initial=-np.inf)
        top = np.maximum(top, sink[0][:, None, None]) if sink else top
        top = np.where(np.isfinite(top), top, 0.0)
        return seen - top, top


def _size(exponents: Array, top: Array) -> Array:
    """Of what a softmax's exponent is rounded with, if it is that of a score that is visible.

    A compiler may contract the scaling of a score with the subtraction, whose input is then not what was exported.
    """
    return np.where(np.isfinite(exponents), np.abs(exponents + top) + np.abs(top) - exponents, 0.0)


@dataclass(frozen=True)
class Mix:
    """The values averaged with the probabilities; query head i reads value head `groups[i]`.

    With `merged`, the heads stand side by side.
    """

    groups: Sequence[int]
    merged: bool = True

    def forward(self, m: Machine, probs: Array, values: Array) -> Array:
        values = np.take(values, self.groups, axis=-2)
        y = m.add_up(_mix(probs, values), probs.shape[-1], lambda: _mix(np.square(probs), np.square(values)))
        return y.reshape(*y.shape[:-2], -1) if self.merged else y

    def vjp(self, m: Machine, dy: Array, probs: Array, values: Array) -> tuple[Array, ...]:
        heads = np.take(values, self.groups, axis=-2)
        dy = dy.reshape(*dy.shape[:-1], len(self.groups), -1) if self.merged else dy
        dprobs = m.add_up(_dot(dy, heads), dy.shape[-1], lambda: _dot(np.square(dy), np.square(heads)))
        dvalues = m.add_up(_spread(probs, dy), probs.shape[-2], lambda: _spread(np.square(probs), np.square(dy)))
        return dprobs, _sum_groups(m.store(dvalues), self.groups, values)

    def bound(self, u: float, v: float, y: Array, probs: Array, values: Array) -> Array:
        size = _mix(np.abs(probs), np.abs(np.take(values, self.groups, axis=-2)))
        return gamma(v, probs.shape[-1]) * (size.reshape(y.shape))


def _dot(q: Array, k: Array) -> Array:
    return np.einsum("...shd,...thd->...hst", q, k, optimize=True)


def _mix(probs: Array, values: Array) -> Array:
    return np.einsum("...hst,...thd->...shd", probs, values, optimize=True)


def _spread(probs: Array, dy: Array) -> Array:
    return np.einsum("...hst,...shd->...thd", probs, dy, optimize=True)


def _sum_groups(d: Array, groups: Sequence[int], like: Array) -> Array:
    """The cotangents of the heads that read one key or value head, added up."""
    total = np.zeros_like(like)
    for head, group in enumerate(groups):
        total[..., group, :] += d[..., head, :]
    return total
