"""Reverse-mode differentiation by name: what is computed is written down, and read backwards."""

from collections.abc import Callable
from typing import Any

from ports.numpy.rows import Array, Backward, widen


class Tape:
    """Values by name, and the steps that made them."""

    def __init__(self, **given: Array | None) -> None:
        self.values: dict[str, Array] = {name: value for name, value in given.items() if value is not None}
        self.steps: list[tuple[str, tuple[str, ...], Backward]] = []

    def step(self, name: str, op: Callable[..., tuple[Array, Backward]], *inputs: str, **constants: Any) -> None:
        """Name what an op makes of the values of these names; one that there is not, such as a bias, is None."""
        self.values[name], backward = op(*(self.values.get(each) for each in inputs), **constants)
        self.steps.append((name, inputs, backward))

    def backward(self, output: str, dy: Array) -> dict[str, Array]:
        """The gradients of ⟨output, dy⟩ for what was given: added up wide, and rounded to its dtype."""
        cotangents = {output: widen(dy)}
        for name, inputs, backward in reversed(self.steps):
            if name not in cotangents:
                continue
            shares = backward(cotangents.pop(name).astype(self.values[name].dtype))
            for each, share in zip(inputs, shares, strict=True):
                if share is not None:
                    cotangents[each] = widen(share) + cotangents.get(each, 0)
        return {name: cotangent.astype(self.values[name].dtype) for name, cotangent in cotangents.items()}
