"""A block's norms: which stands where, with which parameters, and over which heads."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.mistakes.block.residual import NORMS, rereads
from conformance.mistakes.mistake import BLOCK, BLOCKS, Mistake
from conformance.numbers.rounding import HALF
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Normalise
from conformance.ops.block.wrappers import After, Before, First, Map, Measured
from reference.rows import sum_rows

Array = np.ndarray
HEAD_NORMS = ("q_norm", "k_norm")
ALL = (*NORMS, *HEAD_NORMS)
Root = Callable[[Array, float, int], Array]
"""rstd, made of the mean square of a row, eps, and the row's width."""


@dataclass(frozen=True)
class _AllHeads(Measured):
    """A norm of all heads of a position together; its weight is that of one head, as often as there are heads."""

    norm: Normalise

    def forward(self, m: Machine, x: Array, weight: Array) -> Array:
        return self.norm.forward(m, x.reshape(*x.shape[:-2], -1), np.tile(weight, x.shape[-2])).reshape(x.shape)

    def vjp(self, m: Machine, dy: Array, x: Array, weight: Array) -> tuple[Array, ...]:
        flat = x.reshape(*x.shape[:-2], -1)
        dx, dweight = self.norm.vjp(m, dy.reshape(flat.shape), flat, np.tile(weight, x.shape[-2]))
        return dx.reshape(x.shape), dweight.reshape(x.shape[-2:]).sum(axis=0)


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


def _root(root: Root) -> Callable[[Composite], Composite]:
    return _norms(lambda op: _OtherRoot(op.eps, op.weight_offset, op.centred, op.order, root), ALL)


def _weight(function: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Callable[[Composite], Composite]:
    """The norms multiply by a function of their weight, the offset included."""

    def reweighted(op: Normalise) -> Before:
        made = Map(lambda w: function(w + op.weight_offset), lambda dw, w: dw * slope(w + op.weight_offset))
        return Before(replace(op, weight_offset=0.0), made, 1)

    return _norms(reweighted, ALL)


def _unbiased(composite: Composite) -> Composite:
    program = composite.program
    for name in NORMS:
        program = program.each(name, lambda stage: replace(stage, reads=stage.reads[:2]))
    return replace(composite, program=program)


def _norms(alter: Callable[[Normalise], Any], names: tuple[str, ...] = NORMS) -> Callable[[Composite], Composite]:
    """These norms are others; by default those of the block, which queries and keys may have besides."""

    def altered(composite: Composite) -> Composite:
        for name in names:
            composite = composite.alter(name, Normalise, alter)
        return composite

    return altered


def _as_it_is(op: Normalise) -> After:
    """A norm that no case of the norms is about, and whose intervals are not theirs."""
    return After(op, Map(lambda y: y))


def _eps(value: float) -> Callable[[Composite], Composite]:
    return _norms(lambda op: replace(op, eps=value), ALL)


def _weights_of(name: str, other: str) -> Callable[[Composite], Composite]:
    return rereads(name, {f"{name}.{kind}": f"{other}.{kind}" for kind in ("weight", "bias")})


def _weights_swapped(composite: Composite) -> Composite:
    first, second = NORMS
    return _weights_of(second, first)(_weights_of(first, second)(composite))


def _head_weights_swapped(composite: Composite) -> Composite:
    for name, other in (HEAD_NORMS, HEAD_NORMS[::-1]):
        composite = composite.reread(name, {f"attention.{name}.weight": f"attention.{other}.weight"})
    return composite


def _other_order(composite: Composite) -> Composite:
    if composite.case.dtype not in HALF:
        return composite
    order = "scale_then_cast" if composite.config.order == "cast_then_scale" else "cast_then_scale"
    return _norms(lambda op: replace(op, order=order), ALL)(composite)


ORDER: dict[str, str] = dict.fromkeys(("float64", "float32"), "nothing is cast where the storage dtype is the compute dtype")
CAST = (
    "the norms' order of casting moves every third element by one ulp, which matmuls average out: it is within a block's noise"
)
OFFSET: dict[str, str] = dict.fromkeys(
    ("float64", "bfloat16", "float16"), "a block whose norms have an offset is asked for in float32"
)
MISTAKES = (
    Mistake(
        "attention_norm_missing",
        "attention reads x as it is",
        _norms(lambda op: First(), NORMS[:1]),
        "Scores and values have the scale of x.",
        ops=BLOCKS,
    ),
    Mistake(
        "ffn_norm_missing",
        "the feed-forward layer reads h as it is",
        _norms(lambda op: First(), NORMS[1:]),
        "gate and up have the scale of h.",
        ops=BLOCKS,
    ),
    Mistake(
        "norm_weights_swapped",
        "each of the two norms has the other's parameters",
        _weights_swapped,
        "Equal weights hide it.",
        "planted: a checkpoint's names",
        BLOCKS,
    ),
    Mistake(
        "norm_weights_shared",
        "the second norm has the parameters of the first",
        _weights_of("ffn_norm", "attention_norm"),
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
        _unbiased,
        "What the branches read lacks the bias, which has no gradient; RMSNorm hides it.",
        "pytorch#69208",
        BLOCK,
    ),
    Mistake(
        "norm_of_the_other_kind",
        "LayerNorm stands for RMSNorm, or RMSNorm for LayerNorm",
        _norms(lambda op: _as_it_is(replace(op, centred=not op.centred)), ALL),
        "Rows without a mean hide it.",
        "keras#22393",
        BLOCKS,
    ),
    Mistake(
        "norm_of_the_other_order",
        "the norms cast on the other side of the weight",
        _other_order,
        "A third of the elements is off by one ulp.",
        "TransformerEngine#1132, transformers#38131",
        BLOCKS,
        ORDER,
        needs_taps=dict.fromkeys(HALF, CAST),
    ),
    Mistake(
        "norm_offset_missing",
        "one is not added to the norms' weights",
        _norms(lambda op: replace(op, weight_offset=0.0), ALL),
        "A weight stored whole hides it.",
        "llama.cpp#5631",
        BLOCK,
        OFFSET,
    ),
    Mistake(
        "norm_offset_twice",
        "one is added to the norms' weights twice",
        _norms(lambda op: _as_it_is(replace(op, weight_offset=2 * op.weight_offset)), ALL),
        "A weight stored whole hides it.",
        "llama.cpp#5631: by the converter of the checkpoint and by the model",
        BLOCK,
        OFFSET,
    ),
    Mistake(
        "norm_offset_unasked",
        "one is added to the norms' weights, which are stored whole",
        _norms(lambda op: replace(op, weight_offset=1.0), ALL),
        "What branches read is too large by x_hat.",
        "llama.cpp#5631",
        BLOCKS,
    ),
    Mistake(
        "norm_over_positions",
        "the norms' statistics are those of a feature over all positions",
        _norms(_OverPositions),
        "Every row.",
        "planted: the wrong axis",
        BLOCKS,
    ),
    Mistake(
        "qk_norm_missing",
        "queries and keys are not normalised",
        _norms(lambda op: First(), HEAD_NORMS),
        "Scores have the scale of queries and keys.",
        "vllm#16311",
        BLOCK,
    ),
    Mistake(
        "qk_norm_of_keys_missing",
        "queries are normalised, keys are not",
        _norms(lambda op: First(), HEAD_NORMS[1:]),
        "Scores have the scale of the keys.",
        "planted: one of two lines",
        BLOCK,
    ),
    Mistake(
        "qk_norm_over_all_heads",
        "queries and keys are normalised over all heads together",
        _norms(_AllHeads, HEAD_NORMS),
        "Heads keep their scale relative to each other; a single head hides it.",
        "vllm#16311",
        BLOCK,
    ),
    Mistake(
        "qk_norm_weights_swapped",
        "queries have the norm's weight of the keys, and keys that of the queries",
        _head_weights_swapped,
        "Without a rotation between them nothing: a score has the product of both.",
        "planted: a checkpoint's names",
        BLOCK,
    ),
)
