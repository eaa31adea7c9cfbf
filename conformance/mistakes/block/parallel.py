"""Attention and the feed-forward layer side by side: both read one norm, and join the stream together."""

from conformance.mistakes.block.places import IN_PARALLEL, READERS, parameter_names, placed
from conformance.mistakes.block.stages import Become, alters, reads, reads_also
from conformance.mistakes.mistake import Change, Of
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.primitives import AddBoth, Normalise
from conformance.ops.block.program import Stage
from conformance.ops.block.wrappers import Fed, NormedAdd, Weighted


def _in_sequence(composite: Composite) -> Become:
    """It reads the norm of the sum of x and attention's output, with the parameters of the only norm."""
    norm, names = composite.op("attention_norm", Normalise), ["attn_out", *parameter_names(composite, "attention_norm")]

    def become(stage: Stage) -> Stage:
        stage = composite.program.reread(stage, {"attention_norm": "x"})
        return stage if norm is None else reads_also(stage, Fed(stage.op, NormedAdd(norm, whole=True), len(names)), *names)

    return become


def _weighted(*factors: float) -> Change:
    return {"out": alters(AddBoth, lambda op: Weighted(factors))}


MISTAKES = (
    placed(
        IN_PARALLEL,
        "branches_in_sequence",
        "the feed-forward layer reads what attention has been added to, normalised",
        dict.fromkeys(READERS[1], Of(_in_sequence)),
        "The feed-forward layer sees what attention found.",
        "planted: Pre-LN for the block of GPT-J, Falcon and Cohere",
    ),
    placed(
        IN_PARALLEL,
        "feed_forward_without_norm",
        "the feed-forward layer reads x as it is",
        dict.fromkeys(READERS[1], reads({"attention_norm": "x"})),
        "gate and up have the scale of x.",
        "planted: the norm inside of the attention module",
    ),
    placed(
        IN_PARALLEL,
        "attention_without_norm",
        "attention reads x as it is, the feed-forward layer its norm",
        dict.fromkeys(READERS[0], reads({"attention_norm": "x"})),
        "Scores and values have the scale of x.",
        "planted: the norm inside of the feed-forward module",
    ),
    placed(
        IN_PARALLEL,
        "stream_missing",
        "x is not added to the two branches",
        _weighted(0.0, 1.0, 1.0),
        "out is the sum of the branches alone.",
        "planted: a residual left out",
    ),
    placed(
        IN_PARALLEL,
        "stream_twice",
        "x is added to each of the two branches",
        _weighted(2.0, 1.0, 1.0),
        "out is too large by x.",
        "planted: two residual connections where one belongs",
    ),
    placed(
        IN_PARALLEL,
        "attention_not_added",
        "attention's output does not join x",
        _weighted(1.0, 0.0, 1.0),
        "Attention has no gradient.",
        "planted: a variable that is overwritten",
    ),
    placed(
        IN_PARALLEL,
        "feed_forward_not_added",
        "the feed-forward layer's output does not join x",
        _weighted(1.0, 1.0, 0.0),
        "The feed-forward layer has no gradient.",
        "planted: a variable that is overwritten",
    ),
)
