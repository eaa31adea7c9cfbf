"""Mistakes of the block's norms: their parameters, casts and axes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from conformance.mistakes.block.norms import ALL, Array, norms
from conformance.mistakes.block.places import NORMS
from conformance.mistakes.mistake import BLOCK, BLOCKS, Change, Mistake, all_but, in_half
from conformance.numbers.rounding import HALF, SINGLE
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Normalise
from conformance.ops.block.program import Stage, found
from conformance.ops.block.wrappers import After, Before, Map, Measured
from reference.rows import sum_rows


@dataclass(frozen=True)
class _OverPositions(Measured):
    """A norm of columns: of every feature over the positions; weight and bias are the features' own."""

    norm: Normalise

    def forward(self, m: Machine, x: Array, weight: Array, *bias: Array) -> Array:
        x_hat = np.swapaxes(self._normed(m, np.swapaxes(x, -1, -2)), -1, -2)
        return m.store(x_hat) * (weight + self.norm.weight_offset) + (bias[0] if bias else 0.0)

    def vjp(self, m: Machine, dy: Array, x: Array, weight: Array, *bias: Array) -> tuple[Array, ...]:
        columns = np.swapaxes(x, -1, -2)
        x_hat = np.swapaxes(self._normed(m, columns), -1, -2)
        g = np.swapaxes(dy * (weight + self.norm.weight_offset), -1, -2)
        dx, _ = replace(self.norm, weight_offset=0.0).vjp(m, g, columns, np.ones(columns.shape[-1]))
        gradients = (np.swapaxes(dx, -1, -2), sum_rows(dy * x_hat), sum_rows(dy))
        return gradients if bias else gradients[:2]

    def _normed(self, m: Machine, columns: Array) -> Array:
        return replace(self.norm, weight_offset=0.0).forward(m, columns, np.ones(columns.shape[-1]))


def _weight(function: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Change:
    """The norms multiply by a function of their weight, the offset included."""

    def reweighted(op: Normalise) -> Before:
        made = Map(lambda w: function(w + op.weight_offset), lambda dw, w: dw * slope(w + op.weight_offset))
        return Before(replace(op, weight_offset=0.0), made, 1)

    return norms(reweighted, ALL)


def _without_bias(stage: Stage) -> Stage:
    return replace(stage, reads=stage.reads[:2]) if found(stage.op, Normalise) else stage


def _as_it_is(op: Normalise) -> After:
    """A norm that no case of the norms is about, and whose intervals are not theirs."""
    return After(op, Map(lambda y: y))


def _other_order(op: Normalise) -> Normalise:
    return replace(op, order="scale_then_cast" if op.order == "cast_then_scale" else "cast_then_scale")


ORDER: dict[str, str] = dict.fromkeys(SINGLE, "nothing is cast where the storage dtype is the compute dtype")
CAST = (
    "the norms' order of casting moves every third element by one ulp, which matmuls average out: it is within a block's noise"
)
OFFSET = dict.fromkeys(
    all_but("float32", "bfloat16"), "a block whose norms have an offset is asked for in float32 and bfloat16"
)
MISTAKES = (
    Mistake(
        "norm_weight_missing",
        "the norms have no weight",
        _weight(np.ones_like, np.zeros_like),
        "What the branches read is x_hat; the norms' weights have no gradient.",
        ops=BLOCKS,
    ),
    Mistake(
        "norm_weight_twice",
        "the norms apply their weight twice",
        _weight(np.square, lambda w: 2 * w),
        "What the branches read is too large where the weight is; a weight of one hides it.",
        "planted: in the kernel and by the caller",
        BLOCKS,
    ),
    Mistake(
        "norm_bias_missing",
        "the norms have no bias",
        dict.fromkeys(NORMS, _without_bias),
        "What the branches read lacks the bias, which has no gradient; RMSNorm hides it.",
        "pytorch#69208",
        BLOCK,
    ),
    Mistake(
        "norm_of_the_other_kind",
        "LayerNorm stands for RMSNorm, or RMSNorm for LayerNorm",
        norms(lambda op: _as_it_is(replace(op, centred=not op.centred)), ALL),
        "Rows without a mean hide it.",
        "keras#22393",
        BLOCKS,
    ),
    Mistake(
        "norm_of_the_other_order",
        "the norms cast on the other side of the weight",
        norms(_other_order, ALL),
        "A third of the elements is off by one ulp.",
        "TransformerEngine#1132, transformers#38131",
        BLOCKS,
        ORDER,
        needs_taps=dict.fromkeys(HALF, CAST),
        where=in_half,
    ),
    Mistake(
        "norm_offset_missing",
        "one is not added to the norms' weights",
        norms(lambda op: replace(op, weight_offset=0.0), ALL),
        "A weight stored whole hides it.",
        "llama.cpp#5631",
        BLOCK,
        OFFSET,
    ),
    Mistake(
        "norm_offset_twice",
        "one is added to the norms' weights twice",
        norms(lambda op: _as_it_is(replace(op, weight_offset=2 * op.weight_offset)), ALL),
        "A weight stored whole hides it.",
        "llama.cpp#5631: by the converter of the checkpoint and by the model",
        BLOCK,
        OFFSET,
    ),
    Mistake(
        "norm_offset_unasked",
        "one is added to the norms' weights, which are stored whole",
        norms(lambda op: replace(op, weight_offset=1.0), ALL),
        "What branches read is too large by x_hat.",
        "llama.cpp#5631",
        BLOCKS,
    ),
    Mistake(
        "norm_over_positions",
        "the norms' statistics are those of a feature over all positions",
        norms(_OverPositions),
        "Every row.",
        "planted: the wrong axis",
        BLOCKS,
    ),
)
