"""The block's wiring: what joins the residual stream, and where."""

from collections.abc import Callable
from dataclasses import replace

from conformance.mistakes.mistake import BLOCKS, Mistake
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.primitives import Add, Normalise
from conformance.ops.block.program import Stage, altered, found
from conformance.ops.block.wrappers import First, NormedAdd, Weighted

NORMS = ("attention_norm", "ffn_norm")


def _add(name: str, stream: float, branch: float) -> Callable[[Composite], Composite]:
    return lambda composite: composite.alter(name, Add, lambda op: Weighted(stream, branch))


def rereads(name: str, instead: dict[str, str]) -> Callable[[Composite], Composite]:
    """A stage reads other values."""
    return lambda composite: composite.reread(name, instead)


def _one_norm(composite: Composite) -> Composite:
    """gate and up read what the queries read."""
    for name in ("gate", "up"):
        composite = composite.reread(name, {"ffn_norm": "attention_norm"})
    return composite


def _normed(composite: Composite, *, whole: bool) -> Composite:
    """Each branch, or its sum with the stream, goes through the norm that what made it has read."""

    def joined(stage: Stage) -> Stage:
        name = NORMS[stage.local_name == "out"]
        norm = composite.op(name, Normalise)
        if norm is None or found(stage.op, Add) is None:
            return stage
        parameters = [read for read in composite.config.parameters() if read.startswith(f"{name}.")]
        reads = (*stage.reads, *(stage.layer + parameter for parameter in parameters))
        return replace(stage, op=altered(stage.op, Add, lambda op: NormedAdd(norm, whole)), reads=reads)

    return replace(composite, program=composite.program.each("h", joined).each("out", joined))


def _normed_later(*, whole: bool) -> Callable[[Composite], Composite]:
    """No norm before a branch, but one of it, or of its sum with the stream."""

    def alter(composite: Composite) -> Composite:
        composite = _normed(composite, whole=whole)
        for name in NORMS:
            composite = composite.alter(name, Normalise, lambda op: First())
        return composite

    return alter


MISTAKES = (
    Mistake(
        "attention_residual_missing",
        "x is not added to attention's output",
        _add("h", 0.0, 1.0),
        "h is attention's output alone.",
        ops=BLOCKS,
    ),
    Mistake(
        "feed_forward_residual_missing",
        "h is not added to the feed-forward layer's output",
        _add("out", 0.0, 1.0),
        "out is the feed-forward layer's output alone.",
        ops=BLOCKS,
    ),
    Mistake(
        "attention_residual_twice",
        "x is added to attention's output twice",
        _add("h", 2.0, 1.0),
        "The norm that follows hides some of it.",
        "planted: by the block and by the attention",
        BLOCKS,
    ),
    Mistake(
        "feed_forward_residual_twice",
        "h is added to the feed-forward layer's output twice",
        _add("out", 2.0, 1.0),
        "out is too large by h.",
        "planted: by the block and by the layer",
        BLOCKS,
    ),
    Mistake(
        "sums_halved",
        "both sums are halved",
        lambda composite: _add("out", 0.5, 0.5)(_add("h", 0.5, 0.5)(composite)),
        "h and out are too small.",
        "planted: a mean for a sum",
        BLOCKS,
    ),
    Mistake(
        "attention_left_out",
        "attention's output is not added to x",
        _add("h", 1.0, 0.0),
        "h is x, and attention has no gradient.",
        ops=BLOCKS,
    ),
    Mistake(
        "feed_forward_left_out",
        "the feed-forward layer's output is not added to h",
        _add("out", 1.0, 0.0),
        "out is h, and the layer has no gradient.",
        ops=BLOCKS,
    ),
    Mistake(
        "residual_from_normed_x",
        "attention's output is added to the normalised x",
        rereads("h", {"x": "attention_norm"}),
        "h has x normalised; out keeps the scale of one layer.",
        "pytorch#61165, OLMo#680",
        BLOCKS,
    ),
    Mistake(
        "residual_from_normed_h",
        "the feed-forward layer's output is added to the normalised h",
        rereads("out", {"h": "ffn_norm"}),
        "out has h normalised.",
        "pytorch#61165, OLMo#680",
        BLOCKS,
    ),
    Mistake(
        "second_residual_from_x",
        "the feed-forward layer's output is added to x instead of h",
        rereads("out", {"h": "x"}),
        "out lacks attention's output.",
        "planted: a variable that is not overwritten",
        BLOCKS,
    ),
    Mistake(
        "parallel_branches",
        "attention and the feed-forward layer both read x",
        rereads("ffn_norm", {"h": "x"}),
        "The feed-forward layer does not see what attention found.",
        "OLMo#222",
        BLOCKS,
    ),
    Mistake(
        "parallel_branches_of_one_norm",
        "attention and the feed-forward layer read the same normalised x",
        _one_norm,
        "The feed-forward layer does not see what attention found, and its norm has no gradient.",
        "OLMo#222",
        BLOCKS,
    ),
    Mistake(
        "post_ln",
        "the sums are normalised, not what the branches read",
        _normed_later(whole=True),
        "Everything; out has the norm's scale.",
        "planted: the transformer of 2017",
        BLOCKS,
    ),
    Mistake(
        "branches_normed_later",
        "the norms stand after attention and the feed-forward layer, not before",
        _normed_later(whole=False),
        "Everything.",
        "planted: x + norm(f(x)) for x + f(norm(x))",
        BLOCKS,
    ),
    Mistake(
        "branches_normed_twice",
        "what attention and the feed-forward layer give is normalised once more",
        lambda composite: _normed(composite, whole=False),
        "Both branches have the scale of the norms' weights.",
        "planted: the sandwich of another model",
        BLOCKS,
    ),
)
