"""What is passed back through a softmax with a sink, and to the sink itself.

The forward pass is right in all of these: no intermediate shows them.
"""

from collections.abc import Callable

import numpy as np

from conformance.mistakes.block.attending import in_float32
from conformance.mistakes.block.feed_forward_gradients import FORMULA
from conformance.mistakes.block.gradients import EXACT, Cotangents, made_by, scales
from conformance.mistakes.block.sinks import HIDDEN, Array, has_sink
from conformance.mistakes.block.stages import Become, pulls
from conformance.mistakes.mistake import MASKED, Mistake
from conformance.ops.block.attention_primitives import Softmax


def _beyond_maximum(op: Softmax) -> Callable[..., Cotangents]:
    """The sink's exponential overflows in float32, its share is infinity by infinity, and the keys have none either way."""

    def made(dy: Array, scores: Array, *sink: Array) -> Cotangents:
        dscores, *dsink = op.vjp(EXACT, dy, scores, *sink)
        top = np.max(np.where(op.visible, scores, -np.inf), axis=-1, keepdims=True)
        beyond = [np.isinf(in_float32(np.exp(each[:, None, None] - top))).any(axis=(0, -2, -1)) for each in sink]
        return dscores, *(np.where(over, np.nan, d) for over, d in zip(beyond, dsink, strict=True))

    return made


def _dsink(make: Callable[[Array, Array], Array]) -> Become:
    """The sink's gradient, made of its share of every row and of the row's mean of the probabilities' cotangents."""

    def other(op: Softmax) -> Callable[..., Cotangents]:
        def made(dy: Array, scores: Array, *sink: Array) -> Cotangents:
            probs = op.forward(EXACT, scores, *sink)
            share, mean = 1 - np.sum(probs, axis=-1), np.sum(probs * dy, axis=-1)  # batch h s
            return op.vjp(EXACT, dy, scores, *sink)[0], *(make(share, mean) for _ in sink)

        return made

    return made_by(Softmax, other)


def _of_keys_alone(op: Softmax) -> Callable[..., Cotangents]:
    """Backward, the probabilities are made again without the sink."""

    def made(dy: Array, scores: Array, *sink: Array) -> Cotangents:
        return op.vjp(EXACT, dy, scores)[0], *op.vjp(EXACT, dy, scores, *sink)[1:]

    return made


MISTAKES = (
    Mistake(
        "sink_left_out_of_maximum",
        "the row's maximum is that of its keys, and the sink's exponential overflows",
        {"probs": made_by(Softmax, _beyond_maximum)},
        "A sink that is 89 above all keys has a gradient of NaN; without one nothing.",
        "planted: a maximum that is older than the sink",
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
    Mistake(
        "sink_without_gradient",
        "sinks have no gradient",
        {"probs": pulls(scales(1.0, 0.0))},
        "dsink is zero.",
        "planted: a buffer for a parameter",
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
    Mistake(
        "softmax_backward_without_sink",
        "the probabilities made again for the backward pass know of no sink",
        {"probs": made_by(Softmax, _of_keys_alone)},
        "dq and dk are too large.",
        FORMULA,
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
    Mistake(
        "dsink_sign",
        "dsink has the other sign",
        {"probs": pulls(scales(1.0, -1.0))},
        "Sinks grow where they should shrink.",
        FORMULA,
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
    Mistake(
        "dsink_without_share",
        "dsink leaves out the sink's own probability",
        {"probs": _dsink(lambda share, mean: -np.sum(mean, axis=(0, -1)))},
        "A sink that dominates hides it.",
        FORMULA,
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
    Mistake(
        "dsink_of_last_query",
        "dsink is that of the last query",
        {"probs": _dsink(lambda share, mean: -np.sum((share * mean)[..., -1], axis=0))},
        "A single query hides it.",
        "planted: assigned where it should be added",
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
    Mistake(
        "dsink_of_first_sequence",
        "dsink is that of the first sequence",
        {"probs": _dsink(lambda share, mean: -np.sum((share * mean)[0], axis=-1))},
        "A single sequence hides it.",
        "planted: a sum over one axis of two",
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
    Mistake(
        "dsink_averaged",
        "dsink is averaged over the rows, not added up",
        {"probs": _dsink(lambda share, mean: -np.mean(share * mean, axis=(0, -1)))},
        "dsink is too small by the number of rows.",
        "planted: a mean for a sum",
        MASKED,
        HIDDEN,
        where=has_sink,
    ),
)
