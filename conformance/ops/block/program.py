"""A program: named stages in data-flow order, evaluated forward and backward on a machine.

The op of a stage may be wrapped in others, one around another: a wrapper holds what it wraps as `op`. An alteration of a
kind of op reaches it through its wrappers. What an op holds under another name is its own affair, and is not reached.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Primitive

Array = np.ndarray
Values = dict[str, Array]
Kind = TypeVar("Kind")
Kinds = type[Kind] | tuple[type[Kind], ...]
Pull = Callable[..., tuple[Array, ...]]
"""Makes the cotangents of what an op reads, of its true ones, the op's own cotangent, and the values read."""


@dataclass(frozen=True)
class Stage:
    """One op, the names of the values that it reads, and the name of the one that it makes; `layer` is a stack's prefix."""

    local_name: str
    op: Any
    reads: tuple[str, ...]
    layer: str = ""

    @property
    def name(self) -> str:
        """What its value is called."""
        return self.layer + self.local_name

    def value(self, m: Machine, values: Values) -> Array:
        """What it makes of the values it reads."""
        op: Primitive = self.op
        return m.store(op.forward(m, *(values[name] for name in self.reads)))

    def cotangents(self, m: Machine, dy: Array, values: Values) -> Iterator[tuple[str, Array]]:
        """What it passes back, by the names of the values read."""
        op: Primitive = self.op
        reads = [values[name] for name in self.reads]
        yield from zip(self.reads, op.vjp(m, dy, *reads), strict=True)


@dataclass(frozen=True)
class Pulled:
    """An op that is what it was forward, and passes other cotangents back."""

    op: Any
    pull: Pull

    def forward(self, m: Machine, *values: Array) -> Array:
        """The op's own value."""
        return self.op.forward(m, *values)

    def vjp(self, m: Machine, dy: Array, *values: Array) -> tuple[Array, ...]:
        """What is made of the op's own cotangents."""
        return self.pull(self.op.vjp(m, dy, *values), dy, *values)


def found(op: Any, kind: Kinds[Kind]) -> Kind | None:
    """The op of a kind, or of one of some kinds, that an op is or wraps; None where there is none."""
    while op is not None and not isinstance(op, kind):
        op = getattr(op, "op", None)
    return op


def altered(op: Any, kind: Kinds[Kind], make: Callable[[Kind], Any]) -> Any:
    """An op with the one of a kind that it is or wraps made another; unchanged where there is none."""
    if isinstance(op, kind):
        return make(op)
    inner = getattr(op, "op", None)
    return op if inner is None else replace(op, op=altered(inner, kind, make))


@dataclass(frozen=True)
class Program:
    """Stages, each after those it reads; the last one makes the output."""

    stages: tuple[Stage, ...]

    def forward(self, m: Machine, given: Values) -> Values:
        """What is given, and the value of every stage, by name."""
        values = dict(given)
        for stage in self.stages:
            values[stage.name] = stage.value(m, values)
        return values

    def backward(self, m: Machine, values: Values, dout: Array) -> Values:
        """The cotangent of every value that the output depends on, by the value's name."""
        cotangents = {self.stages[-1].name: dout}
        for stage in reversed(self.stages):
            if stage.name in cotangents:
                for name, cotangent in stage.cotangents(m, cotangents[stage.name], values):
                    cotangent = m.store(cotangent)
                    cotangents[name] = m.store(cotangents[name] + cotangent) if name in cotangents else cotangent
        return cotangents

    def changed(self, change: Mapping[str, Callable[[Stage], Stage]]) -> "Program":
        """The program with the stages of these local names altered in every layer, and with all of them altered by `*`."""

        def become(stage: Stage) -> Stage:
            for name in (stage.local_name, "*"):
                stage = change[name](stage) if name in change else stage
            return stage

        return Program(tuple(map(become, self.stages)))

    def reread(self, stage: Stage, instead: Mapping[str, str]) -> Stage:
        """A stage that reads other values instead of some of its own, all by their local names."""
        swap = {self.full_name(stage.layer, old): self.full_name(stage.layer, new) for old, new in instead.items()}
        return replace(stage, reads=tuple(swap.get(name, name) for name in stage.reads))

    def full_name(self, layer: str, local_name: str) -> str:
        """A value's name in a layer; a layer's x is what its first stage reads, the `out` of the layer below."""
        if local_name != "x":
            return layer + local_name
        return next(stage.reads[0] for stage in self.stages if stage.layer == layer)

    def op(self, local_name: str) -> Any:
        """The op of the first stage of a name; None where there is none."""
        return next((stage.op for stage in self.stages if stage.local_name == local_name), None)
