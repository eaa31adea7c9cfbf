"""What a block is made of: primitives, each with its backward pass, and how far an honest implementation may be off.

A primitive is a frozen dataclass: its fields are what can be altered. `forward` and `vjp` run on a `Machine`; a `bound` is the
half-width, before the last rounding, of what it may return from inputs that are known exactly, with u and v the unit
roundoffs of the storage and the compute dtype.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

import reference
from conformance.numbers.rounding import FORMATS, storage_dtype
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


class Primitive(Protocol):
    """What a stage does with the values it reads."""

    def forward(self, m: Machine, *values: Array) -> Array:
        """The stage's own value."""
        ...

    def vjp(self, m: Machine, dy: Array, *values: Array) -> tuple[Array, ...]:
        """The cotangents of the values read."""
        ...


class Bounded(Primitive, Protocol):
    """A primitive with a rule for its error; a norm has intervals of its own."""

    def bound(self, u: float, v: float, y: Array, *values: Array) -> Array:
        """The half-width around y."""
        ...


@dataclass(frozen=True)
class Normalise:
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
class OverHeads:
    """A norm of all heads of a position at once, side by side; its weight has an element for every feature of every head."""

    op: Any

    def forward(self, m: Machine, *values: Array) -> Array:
        x, weight = values
        return self.op.forward(m, merged(x), weight).reshape(x.shape)

    def vjp(self, m: Machine, dy: Array, *values: Array) -> tuple[Array, ...]:
        x, weight = values
        dx, dweight = self.op.vjp(m, merged(dy), merged(x), weight)
        return dx.reshape(x.shape), dweight

    def bound(self, u: float, v: float, y: Array, *values: Array) -> Array:
        x, weight = values
        return self.op.bound(u, v, merged(y), merged(x), weight).reshape(x.shape)


def merged(x: Array) -> Array:
    """[*batch, s, h, d_head] to [*batch, s, h·d_head]."""
    return x.reshape(*x.shape[:-2], -1)


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
    """Rotary embedding: every pair of features is turned by its angle, [s, pairs]; `growth` is that of the angles' error.

    Features behind those pairs stay as they are. `inner` is what becomes of the cosines and sines.
    """

    angles: Array
    interleaved: bool
    growth: float = 4.0
    inner: Callable[[Array], Array] = SAME

    def forward(self, m: Machine, x: Array) -> Array:
        (cos, sin), (x, others) = self._turn(m), self._split(x)
        turned = m.store(x * cos) + m.store(quarter_turn(x, interleaved=self.interleaved) * sin)
        return np.concatenate([turned, others], axis=-1)

    def vjp(self, m: Machine, dy: Array, x: Array) -> tuple[Array, ...]:
        (cos, sin), (dy, others) = self._turn(m), self._split(dy)
        turned = m.store(dy * cos) - quarter_turn(m.store(dy * sin), interleaved=self.interleaved)
        return (np.concatenate([turned, others], axis=-1),)

    def bound(self, u: float, v: float, y: Array, x: Array) -> Array:
        angles, (x, others) = each_feature(np.abs(self.angles), interleaved=self.interleaved), self._split(x)
        a, b = np.abs(x), np.abs(quarter_turn(x, interleaved=self.interleaved))
        # cos and sin may be rounded, and so may the two products.
        turned = v * (self.growth * angles + 4) * (a + b) + 2 * u * (a * np.abs(np.cos(angles)) + b * np.abs(np.sin(angles)))
        return np.concatenate([turned, np.zeros_like(others)], axis=-1)

    def _split(self, x: Array) -> list[Array]:
        return np.split(x, [2 * self.angles.shape[-1]], axis=-1)

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
class Add:
    """The residual stream and what joins it; `products` says which of the two are made by a multiplication."""

    products: tuple[bool, bool] = (False, False)

    def forward(self, m: Machine, x: Array, branch: Array) -> Array:
        return x + branch

    def vjp(self, m: Machine, dy: Array, x: Array, branch: Array) -> tuple[Array, ...]:
        return dy, dy

    def bound(self, u: float, v: float, y: Array, x: Array, branch: Array) -> Array:
        # A compiler may contract the multiplication with the sum, whose input is then not what was exported.
        contracted = sum(np.abs(value) for value, product in zip((x, branch), self.products, strict=True) if product)
        return v * (np.abs(y) + contracted)


@dataclass(frozen=True)
class AddBoth:
    """The residual stream and two branches that join it at once, in whatever order."""

    def forward(self, m: Machine, x: Array, attention: Array, feed_forward: Array) -> Array:
        return m.store(x + attention) + feed_forward

    def vjp(self, m: Machine, dy: Array, x: Array, attention: Array, feed_forward: Array) -> tuple[Array, ...]:
        return dy, dy, dy

    def bound(self, u: float, v: float, y: Array, x: Array, attention: Array, feed_forward: Array) -> Array:
        # Whichever two are added first, their sum may be rounded before the third is added.
        sums = np.abs([x + attention, attention + feed_forward, x + feed_forward])
        return ROUNDING * u * np.max(sums, axis=0) + v * np.abs(y)


@dataclass(frozen=True)
class SwiGLU:
    """The gate's SiLU, or another `activation` with its derivative, times up; one that `cancels` may be off by a part of x."""

    activation: Callable[[Array], Array] = silu
    slope: Callable[[Array], Array] = lambda x: sigmoid(x) * (1 + x * sigmoid(-x))
    cancels: bool = False

    def forward(self, m: Machine, gate: Array, up: Array) -> Array:
        return m.store(m.compute(self.activation(gate), 8 * np.abs(gate))) * up

    def vjp(self, m: Machine, dy: Array, gate: Array, up: Array) -> tuple[Array, ...]:
        inner = m.store(dy * up)
        return m.compute(inner * self.slope(gate), 8 * np.abs(inner)), dy * m.store(self.activation(gate))

    def bound(self, u: float, v: float, y: Array, gate: Array, up: Array) -> Array:
        # The activation may be rounded before it multiplies; a tiny one is rounded to a multiple of the smallest number.
        lost = ROUNDING * FORMATS[storage_dtype(u)].smallest / 2 + TINY + (8 * v * np.abs(gate) if self.cancels else 0.0)
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
