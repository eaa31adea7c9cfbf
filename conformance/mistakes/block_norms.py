"""A block's norms: which stands where, with which parameters, and over which heads."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.block.anatomy import Composite
from conformance.block.machine import Machine
from conformance.block.ops import Norm
from conformance.block.wrappers import After, First, Map, Measured
from conformance.mistakes.mistake import BLOCK, BLOCKS, Mistake
from conformance.mistakes.residual import NORMS, rereads
from conformance.rounding import HALF
from reference.rows import sum_rows

Array = np.ndarray
HEAD_NORMS = ("q_norm", "k_norm")


@dataclass(frozen=True)
class _AllHeads(Measured):
    """A norm of all heads of a position together; its weight is that of one head, as often as there are heads."""

    norm: Norm

    def forward(self, m: Machine, x: Array, weight: Array) -> Array:
        return self.norm.forward(m, x.reshape(*x.shape[:-2], -1), np.tile(weight, x.shape[-2])).reshape(x.shape)

    def vjp(self, m: Machine, dy: Array, x: Array, weight: Array) -> tuple[Array, ...]:
        flat = x.reshape(*x.shape[:-2], -1)
        dx, dweight = self.norm.vjp(m, dy.reshape(flat.shape), flat, np.tile(weight, x.shape[-2]))
        return dx.reshape(x.shape), dweight.reshape(x.shape[-2:]).sum(axis=0)


@dataclass(frozen=True)
class _OverPositions(Measured):
    """A norm of columns: of every feature over the positions; weight and bias are the features' own."""

    norm: Norm

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


def _norms(alter: Callable[[Norm], Any], names: tuple[str, ...] = NORMS) -> Callable[[Composite], Composite]:
    def altered(composite: Composite) -> Composite:
        for name in names:
            composite = composite.alter(name, Norm, alter)
        return composite

    return altered


def _as_it_is(op: Norm) -> After:
    """A norm that no case of the norms is about, and whose intervals are not theirs."""
    return After(op, Map(lambda y: y))


def _eps(value: float) -> Callable[[Composite], Composite]:
    return _norms(lambda op: replace(op, eps=value))


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
    return _norms(lambda op: replace(op, order=order))(composite)


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
        "norm_of_the_other_kind",
        "LayerNorm stands for RMSNorm, or RMSNorm for LayerNorm",
        _norms(lambda op: _as_it_is(replace(op, centred=not op.centred))),
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
        _norms(lambda op: replace(op, weight_offset=0.0)),
        "A weight stored whole hides it.",
        "llama.cpp#5631",
        BLOCK,
        OFFSET,
    ),
    Mistake(
        "norm_offset_twice",
        "one is added to the norms' weights twice",
        _norms(lambda op: _as_it_is(replace(op, weight_offset=2 * op.weight_offset))),
        "A weight stored whole hides it.",
        "llama.cpp#5631: by the converter of the checkpoint and by the model",
        BLOCK,
        OFFSET,
    ),
    Mistake(
        "norm_offset_unasked",
        "one is added to the norms' weights, which are stored whole",
        _norms(lambda op: replace(op, weight_offset=1.0)),
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
