"""Norms of queries and keys: over which features, with which weight, and with which offset."""

from dataclasses import dataclass, replace

import numpy as np

from conformance.mistakes.block.norms import HEAD_NORMS, Array, norms
from conformance.mistakes.block.stages import alters, parameters_of
from conformance.mistakes.mistake import BLOCK, Mistake, Of, all_but
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Normalise, merged
from conformance.ops.block.wrappers import Before, First, Map, Measured


@dataclass(frozen=True)
class _AllHeads(Measured):
    """A norm of all heads of a position together; its weight is that of one head, as often as there are heads."""

    norm: Normalise

    def forward(self, m: Machine, x: Array, weight: Array) -> Array:
        return self.norm.forward(m, merged(x), np.tile(weight, x.shape[-2])).reshape(x.shape)

    def vjp(self, m: Machine, dy: Array, x: Array, weight: Array) -> tuple[Array, ...]:
        flat = merged(x)
        dx, dweight = self.norm.vjp(m, dy.reshape(flat.shape), flat, np.tile(weight, x.shape[-2]))
        return dx.reshape(x.shape), dweight.reshape(x.shape[-2:]).sum(axis=0)


@dataclass(frozen=True)
class _EachHead(Measured):
    """A norm of every head by itself, where the heads stand side by side; each has its own part of the weight."""

    norm: Normalise
    d_head: int

    def forward(self, m: Machine, x: Array, weight: Array) -> Array:
        return m.store(self._plain.forward(m, self._split(x), self._ones)).reshape(x.shape) * (weight + self.norm.weight_offset)

    def vjp(self, m: Machine, dy: Array, x: Array, weight: Array) -> tuple[Array, ...]:
        heads, dheads = self._split(x), self._split(dy)
        w = self._split(weight + self.norm.weight_offset)
        dx, _ = self._plain.vjp(m, dheads * w, heads, self._ones)
        dweight = merged(dheads * self._plain.forward(m, heads, self._ones)).reshape(-1, len(weight)).sum(axis=0)
        return dx.reshape(x.shape), dweight

    @property
    def _plain(self) -> Normalise:
        return replace(self.norm, weight_offset=0.0)

    @property
    def _ones(self) -> Array:
        return np.ones(self.d_head)

    def _split(self, a: Array) -> Array:
        return a.reshape(*a.shape[:-1], -1, self.d_head)


def _first_heads(weight: Array, d_head: int) -> Array:
    return np.tile(weight[:d_head], len(weight) // d_head)


def _to_first_head(dweight: Array, d_head: int) -> Array:
    """The transpose: what every head passes back is the first one's."""
    heads = dweight.reshape(-1, d_head)
    return np.concatenate([heads.sum(axis=0), np.zeros(dweight.size - d_head)])


def _one_weight(composite: Composite) -> Map:
    d_head = composite.config.d_head
    return Map(lambda weight: _first_heads(weight, d_head), lambda dweight, weight: _to_first_head(dweight, d_head))


def _over_each(composite: Composite) -> bool:
    return composite.config.qk_norm_over == "head"


def _weights_of_one_shape(composite: Composite) -> bool:
    return _over_each(composite) or composite.config.n_heads == composite.config.n_kv_heads


def _over_all(composite: Composite) -> bool:
    return not _over_each(composite)


ONCE = dict.fromkeys(all_but("float32"), "queries and keys are normalised over all heads, or with an offset, in float32")
OVER_ALL = dict.fromkeys(
    all_but("float32", "bfloat16"), "queries and keys are normalised over all heads in float32 and bfloat16"
)
MISTAKES = (
    Mistake(
        "qk_norm_missing",
        "queries and keys are not normalised",
        norms(lambda op: First(), HEAD_NORMS),
        "Scores have the scale of queries and keys.",
        "vllm#16311",
        BLOCK,
    ),
    Mistake(
        "qk_norm_of_keys_missing",
        "queries are normalised, keys are not",
        norms(lambda op: First(), HEAD_NORMS[1:]),
        "Scores have the scale of the keys.",
        "planted: one of two lines",
        BLOCK,
    ),
    Mistake(
        "qk_norm_over_all_heads",
        "queries and keys are normalised over all heads together",
        norms(_AllHeads, HEAD_NORMS),
        "Heads keep their scale relative to each other; a single head hides it.",
        "vllm#16311",
        BLOCK,
        where=_over_each,
    ),
    Mistake(
        "qk_norm_weights_swapped",
        "queries have the norm's weight of the keys, and keys that of the queries",
        {
            one: parameters_of(f"attention.{other}", instead_of=f"attention.{one}")
            for one, other in (HEAD_NORMS, HEAD_NORMS[::-1])
        },
        "Without a rotation between them nothing: a score has the product of both.",
        "planted: a checkpoint's names",
        BLOCK,
        where=_weights_of_one_shape,
    ),
    Mistake(
        "qk_norm_over_each_head",
        "queries and keys are normalised head by head, where all heads are to be normalised together",
        dict.fromkeys(HEAD_NORMS, Of(lambda c: alters(Normalise, lambda op: _EachHead(op, c.config.d_head)))),
        "Heads lose their scale relative to each other.",
        "exllamav3#141: the part of one rank",
        BLOCK,
        OVER_ALL,
        where=_over_all,
    ),
    Mistake(
        "qk_norm_weight_of_first_head",
        "all heads have the norm's weight of the first one",
        dict.fromkeys(HEAD_NORMS, Of(lambda c: alters(Normalise, lambda op: Before(op, _one_weight(c), 1)))),
        "The other heads' parts of the weight have no gradient; a weight that all heads share hides it.",
        "planted: a weight taken for that of every head",
        BLOCK,
        OVER_ALL,
        where=_over_all,
    ),
    Mistake(
        "qk_norm_offset_missing",
        "one is not added to the weights of q_norm and k_norm, though it is to the other norms'",
        norms(lambda op: replace(op, weight_offset=0.0), HEAD_NORMS),
        "A weight stored whole hides it.",
        "planted: another class of norm for queries and keys",
        BLOCK,
        ONCE,
    ),
    Mistake(
        "qk_norm_offset_unasked",
        "one is added to the weights of q_norm and k_norm, which are stored whole",
        norms(lambda op: replace(op, weight_offset=1.0), HEAD_NORMS),
        "Queries and keys are too large by x_hat.",
        "planted: one class of norm for all",
        BLOCK,
    ),
)
