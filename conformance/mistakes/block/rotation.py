"""Rotary embedding: which features are turned, by which angle, and what is turned at all."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.mistakes.mistake import BLOCK, BLOCKS, ROPE, Mistake
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Rotate
from conformance.ops.block.wrappers import After, First, Measured, Swapped

Array = np.ndarray
ROTATED = ("q_rope", "k_rope")


def turned(angles: Callable[[Composite, Array], Array], *names: str) -> Callable[[Composite], Composite]:
    """The stages of these names, q's and k's where there are none, with other angles."""

    def alter(composite: Composite) -> Composite:
        return with_rotate(lambda op: replace(op, angles=angles(composite, op.angles)), *names)(composite)

    return alter


def made_of(
    *, base: float | None = None, exponent: float = 1.0, first: int = 0, restart: bool = False
) -> Callable[[Composite, Array], Array]:
    """The angles made anew, of another base, with another exponent, or of other positions."""

    def angles(composite: Composite, true: Array) -> Array:
        c, d_head = composite.config, 2 * true.shape[-1]
        frequency = (base or c.rope_base) ** (-exponent * np.arange(0, d_head, 2) / d_head)
        start = first + (0 if restart else composite.case.settings["position"])
        return np.arange(start, start + len(true))[:, None] * frequency

    return angles


def frequencies(composite: Composite, true: Array) -> Array:
    """Of every pair of features, the angle that one position turns it by."""
    d_head = 2 * true.shape[-1]
    return composite.config.rope_base ** (-np.arange(0, d_head, 2) / d_head)


def _linspaced(composite: Composite, true: Array) -> Array:
    start = composite.case.settings["position"]
    frequency = composite.config.rope_base ** -np.linspace(0.0, 1.0, true.shape[-1])
    return np.arange(start, start + len(true))[:, None] * frequency


def _over_d_model(composite: Composite, true: Array) -> Array:
    return made_of(exponent=2 * true.shape[-1] / composite.config.d_model)(composite, true)


def _half_of_the_pairs(composite: Composite, true: Array) -> Array:
    return np.where(np.arange(true.shape[-1]) < true.shape[-1] // 2, 0.0, true)


@dataclass(frozen=True)
class _Part(Measured):
    """The first features of a head alone are turned, so many as the rotation has angles for; the others pass."""

    rotate: Rotate

    def forward(self, m: Machine, x: Array) -> Array:
        turned, others = self._split(x)
        return np.concatenate([self.rotate.forward(m, turned), others], axis=-1)

    def vjp(self, m: Machine, dy: Array, x: Array) -> tuple[Array, ...]:
        turned, others = self._split(dy)
        return (np.concatenate([*self.rotate.vjp(m, turned, x), others], axis=-1),)

    def _split(self, a: Array) -> list[Array]:
        return np.split(a, [2 * self.rotate.angles.shape[-1]], axis=-1)


def _over_half_of_the_head(composite: Composite) -> Composite:
    """The frequencies are those of a head of half the width."""

    def part(op: Rotate) -> _Part:
        half = op.angles[:, : op.angles.shape[-1] // 2]
        return _Part(replace(op, angles=made_of()(composite, half)))

    return with_rotate(part)(composite)


def with_rotate(alter: Callable[[Rotate], Any], *names: str) -> Callable[[Composite], Composite]:
    """Another rotation in the stages of these names, or in all that rotate."""

    def altered(composite: Composite) -> Composite:
        for name in names or ROTATED:
            composite = composite.alter(name, Rotate, alter)
        return composite

    return altered


def _by_head(composite: Composite) -> Composite:
    """x is [batch, s, h, d]; turned as if it were [batch, h, s, d], every head has its angle."""

    def turned(op: Rotate, heads: int) -> Any:
        frequency = frequencies(composite, op.angles)
        return Swapped(replace(op, angles=np.arange(heads)[:, None] * frequency), -2, -3)

    c = composite.config
    q = composite.alter("q_rope", Rotate, lambda op: turned(op, c.n_heads))
    return q.alter("k_rope", Rotate, lambda op: turned(op, c.n_kv_heads))


def _values_too(composite: Composite) -> Composite:
    rotate = composite.program.op("k_rope")
    return composite.with_op("v", lambda op: After(op, rotate)) if rotate else composite


def _before_qk_norm(composite: Composite) -> Composite:
    """q is turned, then normalised; the stages stand in that order, and what read the turned one reads the other."""
    if not (composite.has("q_norm") and composite.has("q_rope")):
        return composite
    for name in ("q", "k"):
        composite = composite.reread(f"{name}_norm", {name: f"{name}_rope"}).reread(f"{name}_rope", {f"{name}_norm": name})
        composite = composite.reread("scores", {f"{name}_rope": f"{name}_norm"})
        composite = composite.reread("keys", {f"{name}_rope": f"{name}_norm"})
    stages = list(composite.program.stages)
    at = next(i for i, stage in enumerate(stages) if stage.local_name == "q_norm")
    stages[at : at + 4] = stages[at + 2 : at + 4] + stages[at : at + 2]
    return replace(composite, program=replace(composite.program, stages=tuple(stages)))


MISTAKES = (
    Mistake(
        "rope_pairs_swapped",
        "neighbours are turned as pairs where halves should be, or halves where neighbours should be",
        with_rotate(lambda op: replace(op, interleaved=not op.interleaved)),
        "Every position but the first is wrong; queries and keys of one position still agree.",
        "tt-metal#26844",
        ROPE,
    ),
    Mistake(
        "rope_base_1e4",
        "the base is 10000, whatever is asked for",
        turned(made_of(base=1e4)),
        "Angles are too large but for the first pair's; a base of 10000 hides it.",
        "candle#3746",
        ROPE,
    ),
    Mistake(
        "rope_exponent_halved",
        "the exponent is -i/d instead of -2i/d",
        turned(made_of(exponent=0.5)),
        "All angles but the first pair's are too large.",
        "planted: an arange of half the width over the whole one",
        ROPE,
    ),
    Mistake(
        "rope_by_linspace",
        "the exponents run evenly from 0 to 1, the last included",
        turned(_linspaced),
        "Angles are too small but for the first pair's.",
        "planted: linspace(0, 1, d/2) for arange(0, d, 2)/d",
        ROPE,
    ),
    Mistake(
        "rope_over_half_of_the_head",
        "only the first half of a head's features is turned, as a head of its own",
        _over_half_of_the_head,
        "Pairs and frequencies are others; the second half does not know of positions.",
        "pie#602, transformers#48652, maxtext#4742: the partial rotation of other models",
        ROPE,
    ),
    Mistake(
        "rope_over_d_model",
        "the exponent is -2i/d_model instead of -2i/d_head",
        turned(_over_d_model),
        "Angles are too large but for the first pair's; a single head hides it.",
        "planted: the wrong one of two widths",
        BLOCKS,
    ),
    Mistake(
        "rope_sign",
        "features are turned the other way",
        turned(lambda composite, true: -true),
        "The sign of every sine; a score then depends on the distance with the opposite sign.",
        "planted: the minus in the wrong half",
        ROPE,
    ),
    Mistake(
        "rope_twice",
        "features are turned twice",
        turned(lambda composite, true: 2 * true),
        "All angles are doubled.",
        "planted: by the attention and by its caller",
        ROPE,
    ),
    Mistake(
        "rope_half_of_the_pairs",
        "only the slower half of the pairs is turned",
        turned(_half_of_the_pairs),
        "The faster angles are missing.",
        "planted: the partial rotation of another model",
        ROPE,
    ),
    Mistake(
        "rope_by_head",
        "a head's number is taken for the position",
        _by_head,
        "Every position is turned alike, every head otherwise.",
        "planted: [batch, s, h, d] read as [batch, h, s, d]",
        ROPE,
    ),
    Mistake(
        "rope_missing",
        "queries and keys are not turned",
        with_rotate(lambda op: First()),
        "Attention does not know of positions, but for its mask.",
        ops=ROPE,
    ),
    Mistake(
        "rope_of_keys_missing",
        "queries are turned, keys are not",
        with_rotate(lambda op: First(), "k_rope"),
        "A score depends on the query's position alone.",
        "planted: one of two lines",
        BLOCKS,
    ),
    Mistake(
        "rope_on_values",
        "values are turned too",
        _values_too,
        "attn is mixed of turned values.",
        "planted: q, k and v in one tensor",
        BLOCKS,
    ),
    Mistake(
        "rope_before_qk_norm",
        "queries and keys are turned before they are normalised",
        _before_qk_norm,
        "The norm's weight meets other features; equal weights hide it.",
        "vllm#16311",
        BLOCK,
    ),
)
