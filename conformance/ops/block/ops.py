"""The ops that a block is made of, each with its backward pass, and how far an honest implementation of it may be off.

An op is a frozen dataclass: its fields are what can be altered. `forward` and `vjp` run on a `Machine`; a `bound` is the
half-width, before the last rounding, of what it may return from inputs that are known exactly, with u and v the unit
roundoffs of the storage and the compute dtype.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

import reference
from conformance.numbers.rounding import smallest, storage_dtype
from conformance.ops.block.machine import Machine
from conformance.ops.norms.values import true_pullback
from conformance.question.dialects import Order
from reference.feed_forward import sigmoid, silu
from reference.rope import each_feature, quarter_turn
from reference.rows import sum_rows

Array = np.ndarray
SAME: Callable[[Array], Array] = lambda a: a  # noqa: E731
ROUNDING = 1.5  # units of u that a bound has for a rounding on the way, which is off by up to one
TINY = 2.0**-125  # twice the least normal float32: what lies below may be flushed to zero


def gamma(v: float, terms: int) -> float:
    """The relative error of a sum of so many terms; docs/tolerances.md."""
    return v * (8 + math.sqrt(terms))


class Op(Protocol):
    """What a stage does with the values it reads."""

    def forward(self, m: Machine, *values: Array) -> Array:
        """The stage's own value."""
        ...

    def vjp(self, m: Machine, dy: Array, *values: Array) -> tuple[Array, ...]:
        """The cotangents of the values read."""
        ...


class Bounded(Op, Protocol):
    """An op with a rule for its error; a norm has intervals of its own."""

    def bound(self, u: float, v: float, y: Array, *values: Array) -> Array:
        """The half-width around y."""
        ...


@dataclass(frozen=True)
class Norm:
    """RMSNorm, or with `centred` LayerNorm, of x with a weight and perhaps a bias; `order` is where it casts."""

    eps: float
    weight_offset: float
    centred: bool
    order: Order

    def forward(self, m: Machine, x: Array, weight: Array, *bias: Array) -> Array:
        rstd, x_hat = self._normalise(x)
        size = np.mean(np.abs(x), axis=-1, keepdims=True) * rstd if self.centred else 0.0
        w = weight + self.weight_offset
        x_hat = m.compute(x_hat, (8 + math.sqrt(x.shape[-1])) * (np.abs(x_hat) + size))
        x_hat = m.store(x_hat) if self.order == "cast_then_scale" else x_hat
        return x_hat * w + (bias[0] if bias else 0.0)

    def vjp(self, m: Machine, dy: Array, x: Array, weight: Array, *bias: Array) -> tuple[Array, ...]:
        rstd, x_hat = self._normalise(x)
        w = weight + self.weight_offset
        g = m.store(dy * w)
        direct, through_mean, through_rstd = true_pullback(w, x_hat, rstd, centred=self.centred).dx_paths(g)
        size = np.abs(through_mean) + np.abs(through_rstd) + np.abs(direct)
        dx = m.compute(m.store(direct) + m.store(through_mean + through_rstd), (8 + math.sqrt(x.shape[-1])) * size)
        dweight = sum_rows(m.store(dy * x_hat))
        return (dx, dweight, sum_rows(dy)) if bias else (dx, dweight)

    def _normalise(self, x: Array) -> tuple[Array, Array]:
        made = (reference.layer_norm if self.centred else reference.rms_norm)(x, eps=self.eps)
        return made.rstd, made.x_hat


@dataclass(frozen=True)
class Linear:
    """x @ weight.T + bias; with `d_head` split into heads."""

    d_head: int = 0

    def forward(self, m: Machine, x: Array, weight: Array, *bias: Array) -> Array:
        y = m.add_up(x @ weight.T, x.shape[-1], lambda: np.square(x) @ np.square(weight).T)
        return self._split(m.store(y) + bias[0] if bias else y)

    def vjp(self, m: Machine, dy: Array, x: Array, weight: Array, *bias: Array) -> tuple[Array, ...]:
        dy = dy.reshape(*x.shape[:-1], -1)
        rows, inputs = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = m.add_up(dy @ weight, dy.shape[-1], lambda: np.square(dy) @ np.square(weight))
        dweight = m.add_up(rows.T @ inputs, len(rows), lambda: np.square(rows).T @ np.square(inputs))
        return (dx, dweight, rows.sum(axis=0)) if bias else (dx, dweight)

    def bound(self, u: float, v: float, y: Array, x: Array, weight: Array, *bias: Array) -> Array:
        size = np.abs(x) @ np.abs(weight).T
        if bias:  # the product may be rounded before the bias is added
            return self._split(gamma(v, x.shape[-1]) * (size + np.abs(bias[0])) + ROUNDING * u * np.abs(x @ weight.T))
        return self._split(gamma(v, x.shape[-1]) * size)

    def _split(self, y: Array) -> Array:
        return y.reshape(*y.shape[:-1], -1, self.d_head) if self.d_head else y


@dataclass(frozen=True)
class Rotate:
    """Rotary embedding: every pair of features is turned by its angle, [s, d_head/2]; `growth` is that of the angles' error.

    `inner` is what becomes of the cosines and sines.
    """

    angles: Array
    interleaved: bool
    growth: float = 4.0
    inner: Callable[[Array], Array] = SAME

    def forward(self, m: Machine, x: Array) -> Array:
        cos, sin = self._turn(m)
        return m.store(x * cos) + m.store(quarter_turn(x, interleaved=self.interleaved) * sin)

    def vjp(self, m: Machine, dy: Array, x: Array) -> tuple[Array, ...]:
        cos, sin = self._turn(m)
        return (m.store(dy * cos) - quarter_turn(m.store(dy * sin), interleaved=self.interleaved),)

    def bound(self, u: float, v: float, y: Array, x: Array) -> Array:
        angles = each_feature(np.abs(self.angles), interleaved=self.interleaved)
        a, b = np.abs(x), np.abs(quarter_turn(x, interleaved=self.interleaved))
        # cos and sin may be rounded, and so may the two products.
        return v * (self.growth * angles + 4) * (a + b) + 2 * u * (a * np.abs(np.cos(angles)) + b * np.abs(np.sin(angles)))

    def _turn(self, m: Machine) -> tuple[Array, Array]:
        angles = m.compute(self.angles, self.growth * np.abs(self.angles))
        angles = each_feature(angles, interleaved=self.interleaved)
        return m.store(self.inner(np.cos(angles))), m.store(self.inner(np.sin(angles)))


@dataclass(frozen=True)
class Concatenate:
    """What was cached, then what is new, along the positions; or the reverse."""

    cached_first: bool = True

    def forward(self, m: Machine, cached: Array, new: Array) -> Array:
        return np.concatenate([cached, new] if self.cached_first else [new, cached], axis=-3)

    def vjp(self, m: Machine, dy: Array, cached: Array, new: Array) -> tuple[Array, ...]:
        if self.cached_first:
            dcached, dnew = np.split(dy, [cached.shape[-3]], axis=-3)
        else:
            dnew, dcached = np.split(dy, [new.shape[-3]], axis=-3)
        return dcached, dnew

    def bound(self, u: float, v: float, y: Array, cached: Array, new: Array) -> Array:
        return np.zeros_like(y)


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
class Softmax:
    """Over the keys that are visible; `inner` is what becomes of every step's value."""

    visible: Array
    inner: Callable[[Array], Array] = SAME

    def forward(self, m: Machine, scores: Array) -> Array:
        exponents, top = self._exponents(scores)
        exponentials = self.inner(np.exp(self.inner(m.compute(exponents, _size(exponents, top)))))
        total = np.sum(exponentials, axis=-1, keepdims=True)
        # Flash attention makes the probabilities again, or joins parts of a row, by the total's logarithm, as large as a score.
        total = self.inner(m.compute(total, total * np.abs(top)))
        return self.inner(exponentials / np.where(total == 0, 1.0, total))

    def vjp(self, m: Machine, dy: Array, scores: Array) -> tuple[Array, ...]:
        probs = m.store(self.forward(m, scores))
        # The row's sum may come from other roundings than those of dy: flash attention forms it from its own output and that
        # one's cotangent, a sum that need not cancel where dy's does. The size of dy over all keys tells how large it is.
        size = np.sqrt(np.mean(np.square(dy), axis=-1, keepdims=True))
        total = np.sum(probs * m.store(dy), axis=-1, keepdims=True) + (m.store(size) - size)
        total = self.inner(m.compute(total, 4 * size))
        return (self.inner(probs * self.inner(dy - total)),)

    def bound(self, u: float, v: float, y: Array, scores: Array) -> Array:
        return y * v * (16 + math.sqrt(y.shape[-1]) + _size(*self._exponents(scores))) + TINY

    def _exponents(self, scores: Array) -> tuple[Array, Array]:
        """How far each score lies below the largest that its row sees, and that one; zero where it sees none."""
        seen = np.where(self.visible, scores, -np.inf)
        top = np.max(seen, axis=-1, keepdims=True, initial=-np.inf)
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


@dataclass(frozen=True)
class Add:
    """The residual stream and what joins it."""

    def forward(self, m: Machine, x: Array, branch: Array) -> Array:
        return x + branch

    def vjp(self, m: Machine, dy: Array, x: Array, branch: Array) -> tuple[Array, ...]:
        return dy, dy

    def bound(self, u: float, v: float, y: Array, x: Array, branch: Array) -> Array:
        return v * np.abs(y)


@dataclass(frozen=True)
class SwiGLU:
    """The gate's SiLU, or another `activation` with its derivative, times up."""

    activation: Callable[[Array], Array] = silu
    slope: Callable[[Array], Array] = lambda x: sigmoid(x) * (1 + x * sigmoid(-x))

    def forward(self, m: Machine, gate: Array, up: Array) -> Array:
        return m.store(m.compute(self.activation(gate), 8 * np.abs(gate))) * up

    def vjp(self, m: Machine, dy: Array, gate: Array, up: Array) -> tuple[Array, ...]:
        inner = m.store(dy * up)
        return m.compute(inner * self.slope(gate), 8 * np.abs(inner)), dy * m.store(self.activation(gate))

    def bound(self, u: float, v: float, y: Array, gate: Array, up: Array) -> Array:
        # The activation may be rounded before it multiplies; a tiny one is rounded to a multiple of the smallest number.
        lost = ROUNDING * smallest(storage_dtype(u)) / 2 + TINY
        return (16 * v + ROUNDING * u) * np.abs(y) + lost * np.abs(up) + TINY


@dataclass(frozen=True)
class Gelu:
    """x times the share of the normal distribution below it, exactly or by a hyperbolic tangent."""

    approximate: bool
    inner: Callable[[Array], Array] = SAME

    def forward(self, m: Machine, x: Array) -> Array:
        return m.compute(self.inner(reference.gelu(x, approximate=self.approximate)), 4 * np.abs(x))

    def vjp(self, m: Machine, dy: Array, x: Array) -> tuple[Array, ...]:
        dx = self.inner(reference.gelu_vjp(dy, x, approximate=self.approximate))
        return (m.compute(dx, 8 * np.abs(dy)),)

    def bound(self, u: float, v: float, y: Array, x: Array) -> Array:
        return 8 * v * np.abs(x) + ROUNDING * u * np.abs(y)


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
