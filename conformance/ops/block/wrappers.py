"""Ops made of other ops, with something done before or after: what mistakes are made of.

Nothing is proved about their errors: how far an honest run of one may be off is found by running it, as for a whole block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.numbers.rounding import HALF, storage_dtype
from conformance.ops.block.machine import RUNS, TAU, Machine, NoisyMachine
from conformance.ops.block.primitives import Normalise

Array = np.ndarray


class Measured:
    """An op whose bound is a multiple of what noise does to it, the one that a block's outputs have."""

    def bound(self: Any, u: float, v: float, y: Array, *values: Array) -> Array:
        dtype = storage_dtype(u)
        deviations = (self._run(NoisyMachine(dtype, key), *values) - y for key in range(RUNS))
        return TAU["half" if dtype in HALF else "single"] * np.sqrt(sum(map(np.square, deviations)) / RUNS)

    def _run(self: Any, m: Machine, *values: Array) -> Array:
        y = self.forward(m, *values)
        return m.compute(y, 4 * np.abs(y))


@dataclass(frozen=True)
class Map(Measured):
    """A function of one value, and its pullback: of the cotangent, and of the value."""

    function: Callable[[Array], Array]
    pullback: Callable[[Array, Array], Array] = lambda dy, x: dy

    def forward(self, m: Machine, x: Array) -> Array:
        return self.function(x)

    def vjp(self, m: Machine, dy: Array, x: Array) -> tuple[Array, ...]:
        return (self.pullback(dy, x),)


@dataclass(frozen=True)
class After(Measured):
    """An op, and what is done to its value."""

    op: Any
    then: Any

    def forward(self, m: Machine, *values: Array) -> Array:
        return self.then.forward(m, self.op.forward(m, *values))

    def vjp(self, m: Machine, dy: Array, *values: Array) -> tuple[Array, ...]:
        (inner,) = self.then.vjp(m, dy, self.op.forward(m, *values))
        return self.op.vjp(m, inner, *values)


@dataclass(frozen=True)
class Before(Measured):
    """An op, and what is done to one of the values that it reads."""

    op: Any
    first: Any
    index: int = 0

    def forward(self, m: Machine, *values: Array) -> Array:
        return self.op.forward(m, *self._changed(m, values))

    def vjp(self, m: Machine, dy: Array, *values: Array) -> tuple[Array, ...]:
        cotangents = list(self.op.vjp(m, dy, *self._changed(m, values)))
        (cotangents[self.index],) = self.first.vjp(m, cotangents[self.index], values[self.index])
        return tuple(cotangents)

    def _changed(self, m: Machine, values: tuple[Array, ...]) -> list[Array]:
        changed = list(values)
        changed[self.index] = self.first.forward(m, values[self.index])
        return changed


@dataclass(frozen=True)
class First(Measured):
    """The first of the values read, as it is: a step left out."""

    def forward(self, m: Machine, x: Array, *others: Array) -> Array:
        return x

    def vjp(self, m: Machine, dy: Array, x: Array, *others: Array) -> tuple[Array, ...]:
        return dy, *(np.zeros_like(other) for other in others)


@dataclass(frozen=True)
class Fed(Measured):
    """An op, and another that makes the first of its values, of that one and of the last `taken` that are read."""

    op: Any
    first: Any
    taken: int

    def forward(self, m: Machine, x: Array, *values: Array) -> Array:
        own, taken = self._parted(values)
        return self.op.forward(m, m.store(self.first.forward(m, x, *taken)), *own)

    def vjp(self, m: Machine, dy: Array, x: Array, *values: Array) -> tuple[Array, ...]:
        own, taken = self._parted(values)
        inner, *cotangents = self.op.vjp(m, dy, self.first.forward(m, x, *taken), *own)
        dx, *others = self.first.vjp(m, m.store(inner), x, *taken)
        return dx, *cotangents, *others

    def _parted(self, values: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        return values[: len(values) - self.taken], values[len(values) - self.taken :]


@dataclass(frozen=True)
class Weighted(Measured):
    """The residual stream and what joins it, each times a number."""

    factors: tuple[float, ...]

    def forward(self, m: Machine, *values: Array) -> Array:
        return sum((factor * value for factor, value in zip(self.factors, values, strict=True)), np.zeros_like(values[0]))

    def vjp(self, m: Machine, dy: Array, *values: Array) -> tuple[Array, ...]:
        return tuple(factor * dy for factor in self.factors)


@dataclass(frozen=True)
class NormedAdd(Measured):
    """x and a branch, with a norm of the branch, or with `whole` of their sum."""

    norm: Normalise
    whole: bool

    def forward(self, m: Machine, x: Array, branch: Array, *parameters: Array) -> Array:
        if self.whole:
            return self.norm.forward(m, m.store(x + branch), *parameters)
        return x + m.store(self.norm.forward(m, branch, *parameters))

    def vjp(self, m: Machine, dy: Array, x: Array, branch: Array, *parameters: Array) -> tuple[Array, ...]:
        normed = x + branch if self.whole else branch
        inner, *gradients = self.norm.vjp(m, dy, normed, *parameters)
        return inner if self.whole else dy, inner, *gradients


@dataclass(frozen=True)
class Fused(Measured):
    """One of so many projections that were one: rows `take` of their product with the weights one above the other.

    It reads all of their weights, then all of their biases, if they have any.
    """

    take: Sequence[int]
    projections: int
    d_head: int = 0

    def forward(self, m: Machine, x: Array, *parameters: Array) -> Array:
        weight, bias = self._fused(parameters)
        y = m.add_up(x @ weight.T, x.shape[-1], lambda: np.square(x) @ np.square(weight).T)
        y = m.store(y) + bias
        return y.reshape(*y.shape[:-1], -1, self.d_head) if self.d_head else y

    def vjp(self, m: Machine, dy: Array, x: Array, *parameters: Array) -> tuple[Array, ...]:
        weight, _ = self._fused(parameters)
        rows, inputs = dy.reshape(-1, len(self.take)), x.reshape(-1, x.shape[-1])
        dweight, dbias = np.zeros((self._height(parameters), x.shape[-1])), np.zeros(self._height(parameters))
        dweight[[*self.take]], dbias[[*self.take]] = rows.T @ inputs, rows.sum(axis=0)
        starts = np.cumsum([len(part) for part in self._weights(parameters)])[:-1]
        gradients = np.split(dweight, starts) + (np.split(dbias, starts) if len(parameters) > self.projections else [])
        return (rows @ weight).reshape(x.shape), *gradients

    def _fused(self, parameters: tuple[Array, ...]) -> tuple[Array, Array]:
        weights, biases = self._weights(parameters), parameters[self.projections :]
        bias = np.concatenate(biases)[[*self.take]] if biases else np.zeros(len(self.take))
        return np.concatenate(weights)[[*self.take]], bias

    def _weights(self, parameters: tuple[Array, ...]) -> tuple[Array, ...]:
        return parameters[: self.projections]

    def _height(self, parameters: tuple[Array, ...]) -> int:
        return sum(len(part) for part in self._weights(parameters))


@dataclass(frozen=True)
class Swapped(Measured):
    """An op, with two axes of the first value that it reads exchanged before and after."""

    inside: Any
    first: int
    second: int

    def forward(self, m: Machine, x: Array, *others: Array) -> Array:
        return self._swap(self.inside.forward(m, self._swap(x), *others))

    def vjp(self, m: Machine, dy: Array, x: Array, *others: Array) -> tuple[Array, ...]:
        dx, *dothers = self.inside.vjp(m, self._swap(dy), self._swap(x), *others)
        return self._swap(dx), *dothers

    def _swap(self, a: Array) -> Array:
        return np.swapaxes(a, self.first, self.second)
