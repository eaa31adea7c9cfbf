"""A stack: which layers there are, in which order, with whose parameters."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from conformance.mistakes.mistake import STACK, Mistake
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.primitives import Add, Normalise
from conformance.ops.block.program import Stage, altered
from conformance.ops.block.wrappers import First, Weighted


def _parameters_of(layer: Callable[[int, int], int]) -> Callable[[Composite], Composite]:
    """Layer i of n takes the parameters of another."""

    def alter(composite: Composite) -> Composite:
        n, local = composite.case.n_layers, composite.config.parameters()

        def taken(stage: Stage) -> Stage:
            own = {stage.layer + name: f"{layer(int(stage.layer[:-1]), n)}.{name}" for name in local}
            return replace(stage, reads=tuple(own.get(name, name) for name in stage.reads))

        return replace(composite, program=replace(composite.program, stages=tuple(map(taken, composite.program.stages))))

    return alter


def _in_layer(layer: Callable[[int], int], names: tuple[str, ...], alter: Callable[[Stage], Stage]) -> Any:
    def in_layer(composite: Composite) -> Composite:
        prefix = f"{layer(composite.case.n_layers)}."
        stages = tuple(
            alter(stage) if stage.layer == prefix and stage.local_name in names else stage for stage in composite.program.stages
        )
        return replace(composite, program=replace(composite.program, stages=stages))

    return in_layer


def _without_branch(stage: Stage) -> Stage:
    return replace(stage, op=altered(stage.op, Add, lambda op: Weighted(1.0, 0.0)))


def _unnormed(stage: Stage) -> Stage:
    return replace(stage, op=altered(stage.op, Normalise, lambda op: First()))


def _reads_stack_input(composite: Composite) -> Composite:
    """Each layer's branch and residual begin at x again."""
    program = composite.program
    for layer in range(1, composite.case.n_layers):
        below = f"{layer - 1}.out"
        stages = tuple(
            replace(stage, reads=tuple("x" if name == below else name for name in stage.reads)) for stage in program.stages
        )
        program = replace(program, stages=stages)
    return replace(composite, program=program)


MISTAKES = (
    Mistake(
        "layers_reversed",
        "the layers' parameters are taken from the last to the first",
        _parameters_of(lambda layer, n: n - 1 - layer),
        "Everything; a single layer hides it.",
        ops=STACK,
    ),
    Mistake(
        "layers_share_parameters",
        "every layer has the first one's parameters",
        _parameters_of(lambda layer, n: 0),
        "Everything from the second layer on, and no other layer has a gradient.",
        "planted: a closure over the loop's variable",
        STACK,
    ),
    Mistake(
        "layers_shifted",
        "each layer has the next one's parameters, the last the first's",
        _parameters_of(lambda layer, n: (layer + 1) % n),
        "Everything.",
        "planted: an index off by one",
        STACK,
    ),
    Mistake(
        "first_layer_missing",
        "the first layer is skipped",
        _in_layer(lambda n: 0, ("h", "out"), _without_branch),
        "Everything; the first layer has no gradient.",
        "planted: a range that begins at one",
        STACK,
    ),
    Mistake(
        "last_layer_missing",
        "the last layer is skipped",
        _in_layer(lambda n: n - 1, ("h", "out"), _without_branch),
        "out is the layer before's; the last layer has no gradient.",
        "planted: a range that ends too early",
        STACK,
    ),
    Mistake(
        "first_norm_of_last_layer_missing",
        "the last layer's attention reads its x as it is",
        _in_layer(lambda n: n - 1, ("attention_norm",), _unnormed),
        "The last layer alone.",
        "planted: one layer that is made otherwise",
        STACK,
    ),
    Mistake(
        "layers_read_first_x",
        "every layer reads the stack's x",
        _reads_stack_input,
        "Only the last layer is left.",
        "planted: a variable that is not overwritten",
        STACK,
    ),
)
