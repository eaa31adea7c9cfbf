"""One placement of a block's norms given for another, and mistakes of Post-LN."""

from dataclasses import dataclass, replace

import numpy as np

from conformance.mistakes.block.places import BEFORE, NORMS, OF_SUMS, READERS, normed, normed_first, placed, without
from conformance.mistakes.block.stages import Become, in_placements, reads
from conformance.mistakes.mistake import BLOCKS, Mistake, Of
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Normalise
from conformance.ops.block.wrappers import Before, Measured

Array = np.ndarray


@dataclass(frozen=True)
class _Unweighted(Measured):
    """A norm without parameters."""

    norm: Normalise

    def forward(self, m: Machine, x: Array) -> Array:
        return self.norm.forward(m, x, np.ones(x.shape[-1]))

    def vjp(self, m: Machine, dy: Array, x: Array) -> tuple[Array, ...]:
        return self.norm.vjp(m, dy, x, np.ones(x.shape[-1]))[:1]


def _unweighted(composite: Composite) -> Become:
    norm = _Unweighted(Normalise(composite.case.eps, 0.0, composite.config.norm == "layer_norm", composite.config.order))
    return lambda stage: replace(stage, op=Before(stage.op, norm))


IN_PRE, IN_POST, IN_NONE = (in_placements(each) for each in ("pre", "post", "none"))
MISTAKES = (
    Mistake(
        "norms_missing",
        "attention and the feed-forward layer have no norm, neither before nor behind",
        without(NORMS),
        "Everything; the norms have no gradient.",
        "planted: a block without its norms",
        BLOCKS,
    ),
    Mistake(
        "post_ln",
        "the sums are normalised, not what the branches read",
        {**normed(BEFORE, BEFORE, whole=True), **without(BEFORE)},
        "Everything; out has the norm's scale.",
        "planted: the transformer of 2017",
        BLOCKS,
        where=IN_PRE,
    ),
    Mistake(
        "branches_normed_later",
        "the norms stand after attention and the feed-forward layer, not before",
        {**normed(BEFORE, BEFORE, whole=False), **without(BEFORE)},
        "Everything.",
        "planted: x + norm(f(x)) for x + f(norm(x))",
        BLOCKS,
        where=IN_PRE,
    ),
    Mistake(
        "branches_normed_twice",
        "what attention and the feed-forward layer give is normalised once more",
        normed(BEFORE, BEFORE, whole=False),
        "Both branches have the scale of the norms' weights.",
        "planted: the sandwich of another model",
        BLOCKS,
        where=IN_PRE,
    ),
    placed(
        IN_POST,
        "pre_ln",
        "what attention and the feed-forward layer read is normalised, not the sums",
        {**normed_first(OF_SUMS, BEFORE), **without(OF_SUMS)},
        "Everything; out has the scale of the sums.",
        "planted: norm_first of torch.nn.TransformerEncoderLayer",
    ),
    placed(
        IN_POST,
        "normed_before_the_sum",
        "attention's and the feed-forward layer's outputs are normalised before they are added, not the sums",
        {**normed(OF_SUMS, BEFORE, whole=False), **without(OF_SUMS)},
        "Everything from h on; out has the scale of the sums.",
        "planted: x + norm(f(x)) for norm(x + f(x))",
    ),
    placed(
        IN_POST,
        "first_sum_not_normed",
        "the sum of x and attention's output is not normalised",
        without(OF_SUMS[:1]),
        "h, and all that follows.",
        "planted: one of two lines",
    ),
    placed(
        IN_POST,
        "last_sum_not_normed",
        "the sum of h and the feed-forward layer's output is not normalised",
        without(OF_SUMS[1:]),
        "out alone, and all gradients.",
        "planted: the norm of the next block, as Pre-LN has it",
    ),
    placed(
        IN_POST,
        "feed_forward_reads_the_sum",
        "the feed-forward layer reads the sum, not its norm",
        dict.fromkeys(READERS[1], reads({"h": "attn_sum"})),
        "What the feed-forward layer gives.",
        "planted: a variable that is not overwritten",
    ),
    placed(
        IN_POST,
        "second_residual_from_the_sum",
        "the feed-forward layer's output is added to the sum, not to its norm",
        {"ffn_sum": reads({"h": "attn_sum"})},
        "out has the sum in it as it was.",
        "planted: a residual path that is kept clean of norms",
    ),
    placed(
        IN_NONE,
        "norms_where_none_belong",
        "what attention and the feed-forward layer read is normalised",
        dict.fromkeys((*READERS[0], *READERS[1]), Of(_unweighted)),
        "Everything.",
        "planted: a norm without parameters",
    ),
)
