"""A stack: which layers there are, in which order, with whose parameters."""

from collections.abc import Callable
from dataclasses import replace

from conformance.mistakes.block.stages import Become, alters, in_layer
from conformance.mistakes.mistake import STACK, Mistake, Of
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.primitives import Add, Normalise
from conformance.ops.block.program import Stage
from conformance.ops.block.wrappers import First, Weighted


def _parameters_of(layer: Callable[[int, int], int]) -> Of:
    """Layer i of n takes the parameters of another."""

    def taken(composite: Composite) -> Become:
        n, local = composite.case.n_layers, composite.config.parameters()

        def become(stage: Stage) -> Stage:
            own = {stage.layer + name: f"{layer(int(stage.layer[:-1]), n)}.{name}" for name in local}
            return replace(stage, reads=tuple(own.get(name, name) for name in stage.reads))

        return become

    return Of(taken)


def _reads_stack_input(stage: Stage) -> Stage:
    """Each layer's branch and residual begin at x again."""
    return replace(stage, reads=tuple("x" if name.endswith(".out") else name for name in stage.reads))


WITHOUT_BRANCH = alters(Add, lambda op: Weighted((1.0, 0.0)))


MISTAKES = (
    Mistake(
        "layers_reversed",
        "the layers' parameters are taken from the last to the first",
        {"*": _parameters_of(lambda layer, n: n - 1 - layer)},
        "Everything; a single layer hides it.",
        ops=STACK,
    ),
    Mistake(
        "layers_share_parameters",
        "every layer has the first one's parameters",
        {"*": _parameters_of(lambda layer, n: 0)},
        "Everything from the second layer on, and no other layer has a gradient.",
        "planted: a closure over the loop's variable",
        STACK,
    ),
    Mistake(
        "layers_shifted",
        "each layer has the next one's parameters, the last the first's",
        {"*": _parameters_of(lambda layer, n: (layer + 1) % n)},
        "Everything.",
        "planted: an index off by one",
        STACK,
    ),
    Mistake(
        "first_layer_missing",
        "the first layer is skipped",
        dict.fromkeys(("h", "out"), in_layer(0, WITHOUT_BRANCH)),
        "Everything; the first layer has no gradient.",
        "planted: a range that begins at one",
        STACK,
    ),
    Mistake(
        "last_layer_missing",
        "the last layer is skipped",
        dict.fromkeys(("h", "out"), in_layer(-1, WITHOUT_BRANCH)),
        "out is the layer before's; the last layer has no gradient.",
        "planted: a range that ends too early",
        STACK,
    ),
    Mistake(
        "first_norm_of_last_layer_missing",
        "the last layer's attention reads its x as it is",
        {"attention_norm": in_layer(-1, alters(Normalise, lambda op: First()))},
        "The last layer alone.",
        "planted: one layer that is made otherwise",
        STACK,
    ),
    Mistake(
        "layers_read_first_x",
        "every layer reads the stack's x",
        {"*": _reads_stack_input},
        "Only the last layer is left.",
        "planted: a variable that is not overwritten",
        STACK,
    ),
)
