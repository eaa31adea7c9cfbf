"""Mistakes in the gradients of the projections' weights and biases, and of a stack's layers."""

from collections.abc import Callable
from functools import partial

import numpy as np

from conformance.mistakes.block.gradients import Array, Cotangents, last_position, made_by, of_rows, scales
from conformance.mistakes.block.stages import in_layer, pulls
from conformance.mistakes.mistake import BLOCK, BLOCKS, STACK, Mistake, Of
from conformance.ops.block.anatomy import Composite, Values
from conformance.ops.block.primitives import Linear
from conformance.ops.block.program import Pull

LINEAR = ("q", "k", "v", "attn_out", "gate", "up", "ffn_out")


def _weight(alter: Callable[[Array], Array]) -> Pull:
    """The gradient of a projection's weight altered."""
    return lambda cotangents, dy, *values: (cotangents[0], alter(cotangents[1]), *cotangents[2:])


def _bias(alter: Callable[[Array, int], Array]) -> Pull:
    """The gradient of a bias made of its own, and of the number of rows."""

    def pull(cotangents: Cotangents, dy: Array, *values: Array) -> Cotangents:
        rows = values[0].size // values[0].shape[-1]
        return (*cotangents[:2], *(alter(bias, rows) for bias in cotangents[2:]))

    return pull


def _transposed(dweight: Array) -> Array:
    return dweight.T if dweight.shape[0] == dweight.shape[1] else dweight


def _first_sequence(x: Array) -> Array:
    kept = np.zeros((*x.shape[:-1], 1))
    kept[0] = 1.0
    return kept


def _last_sequence(x: Array) -> Array:
    kept = np.zeros((*x.shape[:-1], 1))
    kept[-1] = 1.0
    return kept


def _layers_swapped(composite: Composite, outputs: Values) -> Values:
    last, swapped = composite.case.n_layers - 1, dict(outputs)
    for name in composite.config.parameters():
        swapped[f"d0.{name}"], swapped[f"d{last}.{name}"] = outputs[f"d{last}.{name}"], outputs[f"d0.{name}"]
    return swapped


MISTAKES = (
    Mistake(
        "dweight_transposed",
        "the gradient of the weight after attention is transposed",
        {"attn_out": pulls(_weight(_transposed))},
        "Only a square weight allows it.",
        "planted: x·dy for dy·x",
        BLOCKS,
    ),
    Mistake(
        "dweight_missing",
        "the weight after attention has no gradient",
        {"attn_out": pulls(scales(1.0, 0.0))},
        "It is zero.",
        "unsloth#4533",
        BLOCKS,
    ),
    Mistake(
        "dweight_halved",
        "the gradients of all projections' weights are halved",
        dict.fromkeys(LINEAR, pulls(scales(1.0, 0.5))),
        "They are too small.",
        "planted: a mean over two sequences",
        BLOCKS,
    ),
    Mistake(
        "dweight_of_last_position",
        "the gradients of the projections' parameters are those of the last position",
        dict.fromkeys(LINEAR, made_by(Linear, of_rows(last_position))),
        "A single position hides it.",
        "planted: assigned where it should be added",
        BLOCKS,
    ),
    Mistake(
        "dweight_of_first_sequence",
        "the gradients of the projections' parameters are those of the first sequence",
        dict.fromkeys(LINEAR, made_by(Linear, of_rows(_first_sequence))),
        "A single sequence hides it.",
        "planted: a batch that is not summed over",
        BLOCKS,
    ),
    Mistake(
        "dweight_of_last_sequence",
        "the gradients of the projections' weights are those of the last sequence",
        dict.fromkeys(LINEAR, made_by(Linear, of_rows(_last_sequence))),
        "A single sequence hides it.",
        "planted: assigned where it should be added",
        BLOCKS,
    ),
    Mistake(
        "dbias_missing",
        "the projections' biases have no gradient",
        dict.fromkeys(LINEAR, pulls(_bias(lambda bias, rows: 0 * bias))),
        "They are zero; models without biases hide it.",
        "unsloth#4533",
        BLOCK,
    ),
    Mistake(
        "dbias_averaged",
        "the gradients of the projections' biases are means over the rows",
        dict.fromkeys(LINEAR, pulls(_bias(lambda bias, rows: bias / rows))),
        "They are too small; models without biases hide it.",
        "planted: a mean for a sum",
        BLOCK,
    ),
    Mistake(
        "layers_gradients_swapped",
        "the first and the last layer have each other's gradients",
        {"finish": Of(lambda composite: partial(_layers_swapped, composite))},
        "All of these layers' gradients; dx is right.",
        "planted: a list that is not reversed",
        STACK,
    ),
    Mistake(
        "gradient_stops_before_last_layer",
        "the last layer passes nothing back",
        dict.fromkeys(("attention_norm", "h"), in_layer(-1, pulls(scales(0.0)))),  # the stages that read its x
        "No other layer has a gradient, and dx is zero.",
        "planted: a detach too many",
        STACK,
    ),
)
