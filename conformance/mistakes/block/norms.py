"""A block's norms: which stands where, with which parameters, and over which heads."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.mistakes.block.places import BEFORE, NORMS
from conformance.mistakes.block.stages import alters, in_placements, parameters_of
from conformance.mistakes.mistake import BLOCK, BLOCKS, Change, Mistake
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Normalise
from conformance.ops.block.wrappers import First, Measured

Array = np.ndarray
HEAD_NORMS = ("q_norm", "k_norm")
ALL = (*NORMS, *HEAD_NORMS)
Root = Callable[[Array, float, int], Array]


@dataclass(frozen=True)
class _OtherRoot(Measured, Normalise):
    """A norm whose rstd is another function of the row's mean square, eps and the width.

    Its slope, d rstd / d mean square, is that of a complex step.
    """

    root: Root

    def vjp(self, m: Machine, dy: Array, x: Array, weight: Array, *bias: Array) -> tuple[Array, ...]:
        _, *gradients = super().vjp(m, dy, x, weight, *bias)
        centred, mean_square = self._statistics(x)
        g = m.store(dy * (weight + self.weight_offset))
        step = 1e-20 * mean_square + 1e-290
        slope = np.imag(self.root(mean_square + 1j * step, self.eps, x.shape[-1])) / step
        through_rstd = m.store(2 * centred * slope * np.mean(g * centred, axis=-1, keepdims=True))
        dx = m.store(g * self._normalise(x)[0]) + through_rstd
        return dx - np.mean(dx, axis=-1, keepdims=True) * self.centred, *gradients

    def _normalise(self, x: Array) -> tuple[Array, Array]:
        centred, mean_square = self._statistics(x)
        rstd = np.real(self.root(mean_square + 0j, self.eps, x.shape[-1]))
        return rstd, centred * rstd

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        centred = x - np.mean(x, axis=-1, keepdims=True) if self.centred else x
        return centred, np.mean(np.square(centred), axis=-1, keepdims=True)


def _root(root: Root) -> Change:
    return norms(lambda op: _OtherRoot(op.eps, op.weight_offset, op.centred, op.order, root), ALL)


def norms(make: Callable[[Normalise], Any], names: tuple[str, ...] = NORMS) -> Change:
    """These norms are others; by default those of the block, which queries and keys may have besides."""
    return dict.fromkeys(names, alters(Normalise, make))


def _eps(value: float) -> Change:
    return norms(lambda op: replace(op, eps=value), ALL)


FIRST_FOR_SECOND: Change = dict.fromkeys(("ffn_norm", "out"), parameters_of("attention_norm", instead_of="ffn_norm"))
SECOND_FOR_FIRST: Change = dict.fromkeys(("attention_norm", "h"), parameters_of("ffn_norm", instead_of="attention_norm"))
IN_TWO = in_placements("pre", "post", "sandwich")  # which have an attention_norm and a ffn_norm


MISTAKES = (
    Mistake(
        "attention_norm_missing",
        "attention reads x as it is",
        norms(lambda op: First(), BEFORE[:1]),
        "Scores and values have the scale of x.",
        ops=BLOCKS,
        where=IN_TWO,
    ),
    Mistake(
        "ffn_norm_missing",
        "the feed-forward layer reads h as it is",
        norms(lambda op: First(), BEFORE[1:]),
        "gate and up have the scale of h.",
        ops=BLOCKS,
    ),
    Mistake(
        "norm_weights_swapped",
        "each of the two norms has the other's parameters",
        {**SECOND_FOR_FIRST, **FIRST_FOR_SECOND},
        "Equal weights hide it.",
        "planted: a checkpoint's names",
        BLOCKS,
        where=IN_TWO,
    ),
    Mistake(
        "norm_weights_shared",
        "the second norm has the parameters of the first",
        FIRST_FOR_SECOND,
        "Equal weights hide it; the second norm has no gradient.",
        "OLMo#222",
        BLOCKS,
    ),
    Mistake(
        "norm_eps_missing",
        "the norms have no eps",
        _eps(0.0),
        "Rows near eps are too large.",
        "apache/tvm#15856",
        BLOCK,
    ),
    Mistake(
        "norm_eps_1e-3",
        "the norms' eps is 1e-3, whatever is asked for",
        _eps(1e-3),
        "Rows near eps are too small.",
        "keras-hub#642",
        BLOCK,
    ),
    Mistake(
        "norm_eps_1e-6",
        "the norms' eps is 1e-6, whatever is asked for",
        _eps(1e-6),
        "Rows near eps are too large.",
        "meta-llama/llama#771, torchtitan#4395",
        BLOCK,
    ),
    Mistake(
        "norm_eps_1e-12",
        "the norms' eps is 1e-12, whatever is asked for",
        _eps(1e-12),
        "Rows near eps are too large.",
        "keras-hub#642",
        BLOCK,
    ),
    Mistake(
        "norm_eps_outside_root",
        "the norms add eps to the root, not under it",
        _root(lambda ms, eps, n: 1 / (ms**0.5 + eps)),
        "Rows near eps are too large.",
        "gpt-neox#1342, OLMo#281, tilelang#1243",
        BLOCK,
    ),
    Mistake(
        "norm_eps_clamps",
        "the norms take eps for the least that the mean square may be",
        _root(lambda ms, eps, n: np.where(np.real(ms) > eps, ms, eps) ** -0.5),
        "Rows near eps are too large, or too small.",
        "planted: a maximum for a sum",
        BLOCK,
    ),
    Mistake(
        "norm_without_root",
        "the norms divide by the mean square, not by its root",
        _root(lambda ms, eps, n: 1 / (ms + eps)),
        "Right only where the mean square is one.",
        "ncnn#6903",
        BLOCKS,
    ),
    Mistake(
        "norm_divides_by_n_minus_1",
        "the norms divide the sum of squares by n - 1",
        _root(lambda ms, eps, n: (ms * n / (n - 1) + eps) ** -0.5),
        "What the branches read is too small by 1/(2n).",
        "annotated-transformer#119, Flux.jl#529",
        BLOCKS,
    ),
    Mistake(
        "norm_divides_by_n_plus_1",
        "the norms divide the sum of squares by n + 1",
        _root(lambda ms, eps, n: (ms * n / (n + 1) + eps) ** -0.5),
        "What the branches read is too large by 1/(2n).",
        "planted: an index that starts at the other end",
        BLOCKS,
    ),
    Mistake(
        "norm_sum_for_mean",
        "the norms sum the squares and do not divide by the width",
        _root(lambda ms, eps, n: (ms * n + eps) ** -0.5),
        "What the branches read is too small by the root of the width.",
        "tt-mlir#8798",
        BLOCKS,
    ),
)
