"""The projections of the whole block: biases and weights."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from conformance.mistakes.block.stages import wraps
from conformance.mistakes.mistake import BLOCK, BLOCKS, Change, Mistake
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.program import Stage
from conformance.ops.block.wrappers import Before, Map


def _unbiased(*names: str) -> Change:
    """These stages read no bias, whose gradient then is zero."""

    def become(stage: Stage) -> Stage:
        return replace(stage, reads=tuple(read for read in stage.reads if not read.endswith(".bias")))

    return dict.fromkeys(names, become)


def _is_square(weight: str) -> Callable[[Composite], bool]:
    """Where a projection has as many features as it reads."""

    def is_square(composite: Composite) -> bool:
        rows, columns = composite.config.parameters()[weight]
        return rows == columns

    return is_square


TRANSPOSED = Map(np.transpose, lambda dy, weight: dy.T)

MISTAKES = (
    Mistake(
        "qkv_bias_missing",
        "the biases of q, k and v are left out",
        _unbiased("q", "k", "v"),
        "Models without these biases hide it.",
        "planted: a checkpoint read without them",
        BLOCK,
    ),
    Mistake(
        "attention_bias_missing",
        "the bias after attention is left out",
        _unbiased("attn_out"),
        "Models without this bias hide it.",
        ops=BLOCK,
    ),
    Mistake(
        "feed_forward_bias_missing",
        "the biases of the feed-forward layer are left out",
        _unbiased("gate", "up", "ffn_out"),
        "Models without these biases hide it.",
        ops=BLOCK,
    ),
    Mistake(
        "down_bias_missing",
        "the last projection of the feed-forward layer has no bias",
        _unbiased("ffn_out"),
        "Models without these biases hide it.",
        ops=BLOCK,
    ),
    Mistake(
        "query_weight_transposed",
        "the weight of the queries is used transposed",
        {"q": wraps(lambda op: Before(op, TRANSPOSED, 1))},
        "Queries of the wrong features; only a square weight allows it.",
        "planted: [in, out] read as [out, in]",
        BLOCKS,
        where=_is_square("attention.q.weight"),
    ),
    Mistake(
        "attention_weight_transposed",
        "the weight after attention is used transposed",
        {"attn_out": wraps(lambda op: Before(op, TRANSPOSED, 1))},
        "attn_out is of the wrong features; only a square weight allows it.",
        "planted: [in, out] read as [out, in]",
        BLOCKS,
        where=_is_square("attention.o.weight"),
    ),
)
