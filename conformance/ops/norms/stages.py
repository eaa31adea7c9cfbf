"""What may stand around a norm: a residual that is added before it; a gate that multiplies what it reads, or what it makes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.numbers.rounding import DType, round_to
from conformance.ops.norms.values import Made, Stage
from reference.gated_norm import sigmoid

Array = np.ndarray
Passed = Callable[[Array, Array], tuple[Array, Array]]
"""ds and dresidual_out, the gradients of a sum and of its copy that is returned -> dx and dresidual."""
Act = Callable[[Array], tuple[Array, Array]]
"""A gate -> its activation, and the derivative of that."""


def both_summands(ds: Array, dresidual_out: Array) -> tuple[Array, Array]:
    """A sum passes its gradient on to both summands whole."""
    return ds + dresidual_out, ds + dresidual_out


@dataclass(frozen=True)
class Added:
    """What a norm has besides that first adds a residual to x: the residual, and the cotangent of the sum, both [*batch, d].

    `dtype` is that of the sum returned; `stored`: whether the norm reads the sum as it is stored, and not as it was before.
    """

    residual: Array
    dresidual_out: Array
    dtype: DType
    stored: bool
    total: Callable[[Array, Array], Array] = lambda x, residual: x + residual
    read: Callable[[Array, Array, Array], Array] = lambda x, residual, s: (
        s
    )  # what the norm reads of x, the residual and the sum
    returned: Callable[[Array, Array, Array], Array] = lambda x, residual, s: s  # what of them is returned as the sum
    after: Callable[[Array], Array | float] = lambda residual: 0.0  # what is added to y
    passed: Passed = both_summands

    def input(self, x: Array) -> Array:
        """What the norm reads."""
        s = self.total(x, self.residual)
        s = round_to(s.astype(np.float64), self.dtype).astype(x.dtype) if self.stored else s
        return self.read(x, self.residual, s)

    def before(self, x: Array) -> Stage:
        """The sum that is returned, and the gradients of the two summands. A sum that is not stored is off by a rounding."""
        d = self.dresidual_out
        return Stage(
            made={"dx": Made(lambda ds: self.passed(ds, d)[0]), "dresidual": Made(lambda ds: self.passed(ds, d)[1])},
            doubt=None if self.stored else np.abs(self.input(x)),
            exact={"residual_out": self.returned(x, self.residual, self.total(x, self.residual))},
            first=d if self.passed is both_summands else None,
        )

    def astype(self, dtype: Any) -> "Added":
        """The same on arrays of another dtype."""
        return replace(self, residual=self.residual.astype(dtype), dresidual_out=self.dresidual_out.astype(dtype))


def multiplied(gated: "Gated", x: Array) -> tuple[Array, Array, Array, Array]:
    """x times the activation of the gate, the derivatives of that by x and by the activation, and the activation's own."""
    a, slope = gated.act(gated.gate)
    return x * a, a, x, slope


@dataclass(frozen=True)
class Gated:
    """What a norm has besides that multiplies by an activation of a gate, [*batch, d]: what it makes, if the norm is first,
    or else what it reads.

    `is_silu`: whether the true activation is the gate's SiLU, and not its sigmoid.
    """

    gate: Array
    norm_first: bool
    is_silu: bool
    act: Act
    product: Callable[["Gated", Array], tuple[Array, Array, Array, Array]] = multiplied
    to_x: Callable[[Array, Array], Array] = lambda d, a: d * a  # the gradient of the product, passed on to x
    to_gate: Callable[[Array, Array], Array] = lambda d, x: d * x  # to the activation, whose derivative passes it to the gate
    to_weight: Callable[[Array, Array], Array] = lambda d, a: d * a  # and the weight, where the norm is first

    def input(self, x: Array) -> Array:
        """What the norm reads, where the gate is first."""
        return self.product(self, x)[0]

    def before(self, x: Array) -> Stage:
        """The gradients of x and of the gate, where the gate is first."""
        s, a, by_a, slope = self.product(self, x)
        of_a, of_slope = self._doubts()
        made = {
            "dx": Made(lambda ds: self.to_x(ds, a), lambda ds: np.abs(ds) * of_a),
            "dgate": Made(lambda ds: self.to_gate(ds, by_a) * slope, lambda ds: np.abs(self.to_gate(ds, x)) * of_slope),
        }
        return Stage(made, doubt=np.abs(x) * of_a + np.abs(s))

    def cotangents(self, dy: Array, z: Array) -> tuple[Array, Array]:
        """The gradients of what the norm makes, z, where it is first: for dx, and for dweight."""
        a = self.product(self, z)[1]
        return self.to_x(dy, a), self.to_weight(dy, a)

    def after(self, dy: Array) -> Stage:
        """y and the gradient of the gate, where the norm is first."""
        a, _ = self.act(self.gate)
        of_a, of_slope = self._doubts()
        made = {
            "y": Made(lambda z: self.product(self, z)[0], lambda z: np.abs(z) * of_a),
            "dgate": Made(self._dgate(dy), lambda z: np.abs(self.to_gate(dy, z)) * of_slope),
        }
        return Stage(made, doubt=np.abs(dy) * of_a + np.abs(dy * a))

    def _dgate(self, dy: Array) -> Callable[[Array], Array]:
        """The gradient of the gate, of what the norm makes."""

        def dgate(z: Array) -> Array:
            _, _, by_a, slope = self.product(self, z)
            return self.to_gate(dy, by_a) * slope

        return dgate

    def _doubts(self) -> tuple[Array, Array]:
        """How far off the activation of the gate and its derivative may be, in units of v; docs/tolerances.md derives it."""
        size = np.abs(self.gate)
        share, rest = sigmoid(self.gate)[0], sigmoid(-self.gate)[0]
        relative = 8 + 2 * size * rest
        if self.is_silu:
            return size * share * relative, (1 + size) * share * relative
        return share * relative, share * relative

    def astype(self, dtype: Any) -> "Gated":
        """The same on arrays of another dtype."""
        return replace(self, gate=self.gate.astype(dtype))


def around(added: Added | None = None, gated: Gated | None = None, **_: Any) -> tuple[Added | Gated | None, Gated | None]:
    """Of the parts of a norm, what stands before it, and what stands after it."""
    if gated and gated.norm_first:
        return None, gated
    return added or gated, None
