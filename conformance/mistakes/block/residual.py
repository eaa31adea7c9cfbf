"""The block's wiring: what joins the residual stream, and where."""

from dataclasses import replace
from functools import partial

from conformance.mistakes.block.stages import Become, alters, reads
from conformance.mistakes.mistake import BLOCKS, Change, Mistake, Of
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.primitives import Add, Normalise
from conformance.ops.block.program import Stage, altered, found
from conformance.ops.block.wrappers import First, NormedAdd, Weighted

NORMS = ("attention_norm", "ffn_norm")


def _add(stream: float, branch: float) -> Become:
    return alters(Add, lambda op: Weighted(stream, branch))


def _normed(*, whole: bool) -> Change:
    """Each branch, or its sum with the stream, goes through the norm that what made it has read."""

    def joined(composite: Composite, name: str) -> Become:
        norm = composite.op(name, Normalise)
        normed = norm and NormedAdd(norm, whole)
        parameters = [read for read in composite.config.parameters() if read.startswith(f"{name}.")]

        def become(stage: Stage) -> Stage:
            if normed is None or found(stage.op, Add) is None:
                return stage
            reads = (*stage.reads, *(stage.layer + parameter for parameter in parameters))
            return replace(stage, op=altered(stage.op, Add, lambda op: normed), reads=reads)

        return become

    return {sum_: Of(partial(joined, name=norm)) for sum_, norm in zip(("h", "out"), NORMS, strict=True)}


NO_NORMS = dict.fromkeys(NORMS, alters(Normalise, lambda op: First()))


MISTAKES = (
    Mistake(
        "attention_residual_missing",
        "x is not added to attention's output",
        {"h": _add(0.0, 1.0)},
        "h is attention's output alone.",
        ops=BLOCKS,
    ),
    Mistake(
        "feed_forward_residual_missing",
        "h is not added to the feed-forward layer's output",
        {"out": _add(0.0, 1.0)},
        "out is the feed-forward layer's output alone.",
        ops=BLOCKS,
    ),
    Mistake(
        "attention_residual_twice",
        "x is added to attention's output twice",
        {"h": _add(2.0, 1.0)},
        "The norm that follows hides some of it.",
        "planted: by the block and by the attention",
        BLOCKS,
    ),
    Mistake(
        "feed_forward_residual_twice",
        "h is added to the feed-forward layer's output twice",
        {"out": _add(2.0, 1.0)},
        "out is too large by h.",
        "planted: by the block and by the layer",
        BLOCKS,
    ),
    Mistake(
        "sums_halved",
        "both sums are halved",
        {"h": _add(0.5, 0.5), "out": _add(0.5, 0.5)},
        "h and out are too small.",
        "planted: a mean for a sum",
        BLOCKS,
    ),
    Mistake(
        "attention_left_out",
        "attention's output is not added to x",
        {"h": _add(1.0, 0.0)},
        "h is x, and attention has no gradient.",
        ops=BLOCKS,
    ),
    Mistake(
        "feed_forward_left_out",
        "the feed-forward layer's output is not added to h",
        {"out": _add(1.0, 0.0)},
        "out is h, and the layer has no gradient.",
        ops=BLOCKS,
    ),
    Mistake(
        "residual_from_normed_x",
        "attention's output is added to the normalised x",
        {"h": reads({"x": "attention_norm"})},
        "h has x normalised; out keeps the scale of one layer.",
        "pytorch#61165, OLMo#680",
        BLOCKS,
    ),
    Mistake(
        "residual_from_normed_h",
        "the feed-forward layer's output is added to the normalised h",
        {"out": reads({"h": "ffn_norm"})},
        "out has h normalised.",
        "pytorch#61165, OLMo#680",
        BLOCKS,
    ),
    Mistake(
        "second_residual_from_x",
        "the feed-forward layer's output is added to x instead of h",
        {"out": reads({"h": "x"})},
        "out lacks attention's output.",
        "planted: a variable that is not overwritten",
        BLOCKS,
    ),
    Mistake(
        "parallel_branches",
        "attention and the feed-forward layer both read x",
        {"ffn_norm": reads({"h": "x"})},
        "The feed-forward layer does not see what attention found.",
        "OLMo#222",
        BLOCKS,
    ),
    Mistake(
        "parallel_branches_of_one_norm",
        "attention and the feed-forward layer read the same normalised x",
        dict.fromkeys(("gate", "up"), reads({"ffn_norm": "attention_norm"})),
        "The feed-forward layer does not see what attention found, and its norm has no gradient.",
        "OLMo#222",
        BLOCKS,
    ),
    Mistake(
        "post_ln",
        "the sums are normalised, not what the branches read",
        {**_normed(whole=True), **NO_NORMS},
        "Everything; out has the norm's scale.",
        "planted: the transformer of 2017",
        BLOCKS,
    ),
    Mistake(
        "branches_normed_later",
        "the norms stand after attention and the feed-forward layer, not before",
        {**_normed(whole=False), **NO_NORMS},
        "Everything.",
        "planted: x + norm(f(x)) for x + f(norm(x))",
        BLOCKS,
    ),
    Mistake(
        "branches_normed_twice",
        "what attention and the feed-forward layer give is normalised once more",
        _normed(whole=False),
        "Both branches have the scale of the norms' weights.",
        "planted: the sandwich of another model",
        BLOCKS,
    ),
)
