"""An op: one object with all that the kit knows of it. The port, the skeleton, the schemas, the CLI and the reports read it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from conformance.numbers.expected import Expected
from conformance.question.case import Case

Array = np.ndarray
Backward = Literal["autograd", "formula"]
BACKWARDS: tuple[Backward, ...] = get_args(Backward)
"""The ways to write a backward pass: as autograd makes it of the forward pass, or by the formula."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that an op reads; `by_name` where a port is passed it as a keyword. `parameters` are many, in a dict.

    One that is `sometimes` passed comes last, and only in the cases that have it: a method gives it a default.
    """

    name: str
    differentiable: bool = True
    by_name: bool = False
    sometimes: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """A number or a choice that an op is called with, by name.

    `offered` to a method that takes it, and to no other, such as a norm's order; `sometimes` passed, in the cases that have it,
    so that a method gives it a default. `explicit`: a method takes it only if it names it; `**keywords` do not say that it
    knows what is meant.
    """

    name: str
    offered: bool = False
    sometimes: bool = False
    explicit: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that an op returns, in x's dtype if its case does not say otherwise.

    `cotangent`: whether it is given one, `d` and its name. The gradients are those of ⟨output, cotangent⟩, summed over the
    outputs whose cotangent is there. `given`: the other outputs that it is judged by, as the port itself returned them.
    """

    name: str
    dtype: Callable[[Case], str] = lambda case: case.dtype
    cotangent: bool = True
    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class Golden:
    """A case with its numbers: inputs in their storage dtypes, intermediates in float64, and what is expected."""

    case: Case
    seed: int
    inputs: dict[str, Array]
    intermediates: dict[str, Array]
    outputs: dict[str, Expected]


@dataclass(frozen=True, slots=True)
class Style:
    """How an implementation is written: its order of summation (None: pairwise), whether its backward is autograd's, and
    which of the admitted placements of roundings it takes, counted from the first.
    """

    sequence: Callable[[int], Array] | None = None
    backward: Backward = "autograd"
    placement: int = 0


class Anatomy(Protocol):
    """An op laid open on a case's inputs: what a mistake alters, and what a port with that mistake would return."""

    def changed(self, change: Mapping[str, Any]) -> Any:
        """The same with something else under these names."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether its numbers are known up to honest noise: no sum depends on its order by more than that."""
        ...

    def backwards(self, true: Any) -> tuple[Backward, ...]:
        """The ways to write its backward pass, if `true` is what it was before it was altered."""
        ...

    def outputs(self, backward: Backward) -> Mapping[str, Expected]:
        """What the case would expect if this were right."""
        ...

    def in_orders(self) -> tuple[dict[str, Expected], ...]:
        """The same for every usual order of summation, where a sum in low precision depends on it."""
        ...

    def values(self) -> dict[str, Array]:
        """The outputs, exactly."""
        ...

    def true_taps(self, exported: dict[str, Array]) -> dict[str, Expected]:
        """What is expected of every intermediate that a port exported, given what it fed to each."""
        ...

    def expected_taps(self, true: Any, exported: dict[str, Array]) -> dict[str, Expected]:
        """The same of those alone that part from the `true` ones."""
        ...

    def play(self, style: Style) -> dict[str, Array]:
        """What an implementation in this style returns."""
        ...


@dataclass(frozen=True)
class Op:
    """What the kit knows of an op.

    name, formula
        What it is called, and what it computes, in a line.
    tensors, constants
        What it reads, in the order in which a port's method takes them.
    outputs
        What a port's method may return, in order.
    taps
        Whether a port may export its intermediates.
    costly
        Whether its intervals cost many times what its values do.
    built_on
        The ops that it does something more than: what can go wrong there can go wrong in it, too, and is named. That it is seen
        is asked there alone.
    cases
        The questions about it.
    golden, anatomy
        A case, and a seed, to its golden; and to the op laid open on its inputs.
    """

    name: str
    formula: str
    tensors: tuple[Tensor, ...]
    cases: tuple[Any, ...]
    golden: Callable[[Any, int], Golden]
    anatomy: Callable[[Any, int], Anatomy]
    outputs: tuple[Output, ...]
    constants: tuple[Constant, ...] = ()
    taps: bool = False
    costly: bool = False
    built_on: tuple[str, ...] = ()

    @property
    def cotangents(self) -> tuple[str, ...]:
        """The cotangents that it may be given, in the order of its outputs."""
        return tuple(f"d{output.name}" for output in self.outputs if output.cotangent)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The tensors that a port's method is called with, in order."""
        return tuple(tensor.name for tensor in self.tensors if not tensor.by_name)

    @property
    def signature(self) -> str:
        """A port's method, as it is written."""
        keywords = [tensor.name for tensor in self.tensors if tensor.by_name]
        arguments = [tensor.name + "=None" * tensor.sometimes for tensor in self.tensors if not tensor.by_name]
        keywords += [each.name + "=None" * each.sometimes for each in self.constants if not each.offered]
        keywords = ["*", *keywords] if keywords else []
        return f"{self.name}(self, {', '.join((*arguments, *keywords))})"
