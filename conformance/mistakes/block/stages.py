"""What a mistake changes a stage into: the functions of a stage that the changes of a `Composite` are made of."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from conformance.mistakes.mistake import Of
from conformance.ops.block.program import Kind, Kinds, Pull, Pulled, Stage, altered

Become = Callable[[Stage], Stage]


def alters(kind: Kinds[Kind], make: Callable[[Kind], Any]) -> Become:
    """Its op of a kind becomes another, and what is wrapped around it stays.

    Nothing becomes of it where an earlier mistake has taken that op away.
    """
    return lambda stage: replace(stage, op=altered(stage.op, kind, make))


def wraps(make: Callable[[Any], Any]) -> Become:
    """Its op, whatever it is, becomes another that is made of it."""
    return lambda stage: replace(stage, op=make(stage.op))


def pulls(pull: Pull) -> Become:
    """It passes other cotangents back."""
    return wraps(lambda op: Pulled(op, pull))


def reads(instead: Mapping[str, str]) -> Of:
    """It reads other values instead of some of its own, all by their local names."""
    return Of(lambda composite: lambda stage: composite.program.reread(stage, instead))


def reads_also(stage: Stage, op: Any, *names: str) -> Stage:
    """Its op becomes another, which reads values of these local names besides."""
    return replace(stage, op=op, reads=(*stage.reads, *(stage.layer + name for name in names)))


def in_placements(*placements: str) -> Callable[[Any], bool]:
    """In the blocks whose norms are placed so."""
    return lambda composite: composite.config.placement in placements


def parameters_of(other: str, *, instead_of: str) -> Of:
    """It reads the weight and the bias of another."""
    return reads({f"{instead_of}.{kind}": f"{other}.{kind}" for kind in ("weight", "bias")})


def in_layer(index: int, become: Become) -> Of:
    """It becomes another in one layer of a stack, the first (0) or the last (-1)."""

    def one_alone(composite: Any) -> Become:
        layer = f"{range(composite.case.n_layers)[index]}."
        return lambda stage: become(stage) if stage.layer == layer else stage

    return Of(one_alone)
