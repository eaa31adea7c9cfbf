"""Rotary embedding: which features are turned, by which angle, and what is turned at all."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from conformance.mistakes.block.stages import alters, reads, wraps
from conformance.mistakes.mistake import BLOCK, BLOCKS, ROPE, Mistake, Of
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Rotate
from conformance.ops.block.program import Program
from conformance.ops.block.wrappers import After, First, Measured, Swapped
from reference import BlockConfig
from reference.rope import quarter_turn

Array = np.ndarray
ROTATED = ("q_rope", "k_rope")


def turns(angles: Callable[[Composite, Array], Array]) -> Of:
    """It turns by other angles, made of the true ones."""
    return Of(lambda composite: alters(Rotate, lambda op: replace(op, angles=angles(composite, op.angles))))


def made_of(
    *, base: float | None = None, exponent: float = 1.0, first: int = 0, restart: bool = False
) -> Callable[[Composite, Array], Array]:
    """The angles made anew, of another base, with another exponent, or of other positions, for as many pairs."""

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
class _Unsigned(Measured):
    """Each feature of a pair gets the other one times the sine, and neither a minus.

    So one feature of a pair is turned forward, and the other back.
    """

    rotate: Rotate

    def forward(self, m: Machine, x: Array) -> Array:
        return np.where(self._has_plus(x), self.rotate.forward(m, x), self._back.forward(m, x))

    def vjp(self, m: Machine, dy: Array, x: Array) -> tuple[Array, ...]:
        (forward,), (back,) = self.rotate.vjp(m, dy, x), self._back.vjp(m, dy, x)
        return (np.where(self._has_plus(x), back, forward),)

    @property
    def _back(self) -> Rotate:
        return replace(self.rotate, angles=-self.rotate.angles)

    def _has_plus(self, x: Array) -> Array:
        turned, others = np.split(np.ones_like(x), [2 * self.rotate.angles.shape[-1]], axis=-1)
        return np.concatenate([quarter_turn(turned, interleaved=self.rotate.interleaved), others], axis=-1) > 0


def _half_of_the_head(composite: Composite, true: Array) -> Array:
    """The frequencies are those of a head of half the width."""
    return made_of()(composite, np.empty((len(true), composite.config.d_head // 4)))


def _by_head(heads: Callable[[BlockConfig], int]) -> Of:
    """x is [batch, s, h, d]; turned as if it were [batch, h, s, d], every head has its angle."""

    def turned(op: Rotate, composite: Composite) -> Swapped:
        angles = np.arange(heads(composite.config))[:, None] * frequencies(composite, op.angles)
        return Swapped(replace(op, angles=angles), -2, -3)

    return Of(lambda composite: alters(Rotate, lambda op: turned(op, composite)))


def _rope_first(composite: Composite) -> Program:
    """The stages in another order: q_rope and k_rope, then q_norm and k_norm."""
    stages = list(composite.program.stages)
    at = next(i for i, stage in enumerate(stages) if stage.local_name == "q_norm")
    stages[at : at + 4] = stages[at + 2 : at + 4] + stages[at : at + 2]
    return Program(tuple(stages))


NORMED_LAST = reads({"q_rope": "q_norm", "k_rope": "k_norm"})


MISTAKES = (
    Mistake(
        "rope_pairs_swapped",
        "neighbours are turned as pairs where halves should be, or halves where neighbours should be",
        dict.fromkeys(ROTATED, alters(Rotate, lambda op: replace(op, interleaved=not op.interleaved))),
        "Every position but the first is wrong; queries and keys of one position still agree.",
        "tt-metal#26844",
        ROPE,
    ),
    Mistake(
        "rope_base_1e4",
        "the base is 10000, whatever is asked for",
        dict.fromkeys(ROTATED, turns(made_of(base=1e4))),
        "Angles are too large but for the first pair's; a base of 10000 hides it.",
        "candle#3746",
        ROPE,
    ),
    Mistake(
        "rope_exponent_halved",
        "the exponent is -i/d instead of -2i/d",
        dict.fromkeys(ROTATED, turns(made_of(exponent=0.5))),
        "All angles but the first pair's are too large.",
        "planted: an arange of half the width over the whole one",
        ROPE,
    ),
    Mistake(
        "rope_by_linspace",
        "the exponents run evenly from 0 to 1, the last included",
        dict.fromkeys(ROTATED, turns(_linspaced)),
        "Angles are too small but for the first pair's.",
        "planted: linspace(0, 1, d/2) for arange(0, d, 2)/d",
        ROPE,
    ),
    Mistake(
        "rope_over_half_of_the_head",
        "only the first half of a head's features is turned, as a head of its own",
        dict.fromkeys(ROTATED, turns(_half_of_the_head)),
        "Pairs and frequencies are others; the second half does not know of positions.",
        "pie#602, transformers#48652, maxtext#4742: the partial rotation of other models",
        ROPE,
    ),
    Mistake(
        "rope_over_d_model",
        "the exponent is -2i/d_model instead of -2i/d_head",
        dict.fromkeys(ROTATED, turns(_over_d_model)),
        "Angles are too large but for the first pair's; a single head hides it.",
        "planted: the wrong one of two widths",
        BLOCKS,
    ),
    Mistake(
        "rope_sign",
        "features are turned the other way",
        dict.fromkeys(ROTATED, turns(lambda composite, true: -true)),
        "The sign of every sine; a score then depends on the distance with the opposite sign.",
        "planted: the minus in the wrong half",
        ROPE,
    ),
    Mistake(
        "rope_minus_missing",
        "both halves of a pair get the other's sine with a plus",
        dict.fromkeys(ROTATED, alters(Rotate, _Unsigned)),
        "Pairs are not turned but sheared, and change their length.",
        "planted: rotate_half without its minus",
        ROPE,
    ),
    Mistake(
        "rope_cos_and_sin_swapped",
        "cosines and sines are exchanged",
        dict.fromkeys(ROTATED, turns(lambda composite, true: np.pi / 2 - true)),
        "Position zero is turned by a right angle; a score depends on the distance with the opposite sign.",
        "planted: the order of two results",
        ROPE,
    ),
    Mistake(
        "rope_twice",
        "features are turned twice",
        dict.fromkeys(ROTATED, turns(lambda composite, true: 2 * true)),
        "All angles are doubled.",
        "planted: by the attention and by its caller",
        ROPE,
    ),
    Mistake(
        "rope_half_of_the_pairs",
        "only the slower half of the pairs is turned",
        dict.fromkeys(ROTATED, turns(_half_of_the_pairs)),
        "The faster angles are missing.",
        "planted: the partial rotation of another model",
        ROPE,
    ),
    Mistake(
        "rope_by_head",
        "a head's number is taken for the position",
        {"q_rope": _by_head(lambda config: config.n_heads), "k_rope": _by_head(lambda config: config.n_kv_heads)},
        "Every position is turned alike, every head otherwise.",
        "planted: [batch, s, h, d] read as [batch, h, s, d]",
        ROPE,
    ),
    Mistake(
        "rope_missing",
        "queries and keys are not turned",
        dict.fromkeys(ROTATED, alters(Rotate, lambda op: First())),
        "Attention does not know of positions, but for its mask.",
        ops=ROPE,
    ),
    Mistake(
        "rope_of_keys_missing",
        "queries are turned, keys are not",
        {"k_rope": alters(Rotate, lambda op: First())},
        "A score depends on the query's position alone.",
        "planted: one of two lines",
        BLOCKS,
    ),
    Mistake(
        "rope_on_values",
        "values are turned too",
        {"v": Of(lambda composite: wraps(lambda op: After(op, composite.program.op("k_rope"))))},
        "attn is mixed of turned values.",
        "planted: q, k and v in one tensor",
        BLOCKS,
        where=lambda composite: composite.has("k_rope"),
    ),
    Mistake(
        "rope_before_qk_norm",
        "queries and keys are turned before they are normalised",
        {
            "program": Of(_rope_first),
            "q_rope": reads({"q_norm": "q"}),
            "k_rope": reads({"k_norm": "k"}),
            "q_norm": reads({"q": "q_rope"}),
            "k_norm": reads({"k": "k_rope"}),
            "scores": NORMED_LAST,
            "keys": NORMED_LAST,
        },
        "The norm's weight meets other features; equal weights hide it.",
        "vllm#16311",
        BLOCK,
        where=lambda composite: composite.has("q_norm") and composite.has("q_rope"),
    ),
)
