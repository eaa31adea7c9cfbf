"""The block's wiring: what joins the residual stream, and where."""

from conformance.mistakes.block.stages import alters, reads
from conformance.mistakes.mistake import BLOCKS, Change, Mistake
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.primitives import Add
from conformance.ops.block.wrappers import Weighted

FIRST_SUM, SECOND_SUM = ("attn_sum", "h"), ("ffn_sum", "out")  # the sum itself, unless that is what is normalised


def _add(sums: tuple[str, ...], stream: float, branch: float) -> Change:
    return dict.fromkeys(sums, alters(Add, lambda op: Weighted((stream, branch))))


def _has_norms_before(composite: Composite) -> bool:
    return composite.has("attention_norm") and composite.has("ffn_norm")


MISTAKES = (
    Mistake(
        "attention_residual_missing",
        "x is not added to attention's output",
        _add(FIRST_SUM, 0.0, 1.0),
        "h is attention's output alone.",
        ops=BLOCKS,
    ),
    Mistake(
        "feed_forward_residual_missing",
        "h is not added to the feed-forward layer's output",
        _add(SECOND_SUM, 0.0, 1.0),
        "out is the feed-forward layer's output alone.",
        ops=BLOCKS,
    ),
    Mistake(
        "attention_residual_twice",
        "x is added to attention's output twice",
        _add(FIRST_SUM, 2.0, 1.0),
        "The norm that follows hides some of it.",
        "planted: by the block and by the attention",
        BLOCKS,
    ),
    Mistake(
        "feed_forward_residual_twice",
        "h is added to the feed-forward layer's output twice",
        _add(SECOND_SUM, 2.0, 1.0),
        "out is too large by h.",
        "planted: by the block and by the layer",
        BLOCKS,
    ),
    Mistake(
        "sums_halved",
        "both sums are halved",
        _add((*FIRST_SUM, *SECOND_SUM), 0.5, 0.5),
        "h and out are too small.",
        "planted: a mean for a sum",
        BLOCKS,
    ),
    Mistake(
        "attention_left_out",
        "attention's output is not added to x",
        _add(FIRST_SUM, 1.0, 0.0),
        "h is x, and attention has no gradient.",
        ops=BLOCKS,
    ),
    Mistake(
        "feed_forward_left_out",
        "the feed-forward layer's output is not added to h",
        _add(SECOND_SUM, 1.0, 0.0),
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
        where=_has_norms_before,
    ),
    Mistake(
        "residual_from_normed_h",
        "the feed-forward layer's output is added to the normalised h",
        {"out": reads({"h": "ffn_norm"})},
        "out has h normalised.",
        "pytorch#61165, OLMo#680",
        BLOCKS,
        where=_has_norms_before,
    ),
    Mistake(
        "second_residual_from_x",
        "the feed-forward layer's output is added to x instead of h",
        dict.fromkeys(SECOND_SUM, reads({"h": "x"})),
        "out lacks attention's output.",
        "planted: a variable that is not overwritten",
        BLOCKS,
    ),
    Mistake(
        "parallel_branches",
        "attention and the feed-forward layer both read x",
        dict.fromkeys(("ffn_norm", "gate", "up"), reads({"h": "x"})),
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
)
