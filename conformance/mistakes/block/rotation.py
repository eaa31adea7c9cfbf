"""Rotary embedding: which features are turned, by which angle, and what is turned at all."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.mistakes.mistake import BLOCK, BLOCKS, ROPE, Mistake
from conformance.numbers.rounding import HALF, round_to, significant_bits
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Rotate
from conformance.ops.block.wrappers import After, Before, First, Measured, Swapped

Array = np.ndarray

ROTATED = ("q_rope", "k_rope")
BFLOAT16_BITS = 8


def _turned(angles: Callable[[Composite, Array], Array], *names: str) -> Callable[[Composite], Composite]:
    """The stages of these names, q's and k's where there are none, with other angles."""

    def alter(composite: Composite) -> Composite:
        return _with_rotate(lambda op: replace(op, angles=angles(composite, op.angles)), *names)(composite)

    return alter


def _made_of(
    *, base: float | None = None, exponent: float = 1.0, first: int = 0, restart: bool = False
) -> Callable[[Composite, Array], Array]:
    """The angles made anew, of another base, with another exponent, or of other positions."""

    def angles(composite: Composite, true: Array) -> Array:
        c, d_head = composite.config, 2 * true.shape[-1]
        frequency = (base or c.rope_base) ** (-exponent * np.arange(0, d_head, 2) / d_head)
        start = first + (0 if restart else composite.case.settings["position"])
        return np.arange(start, start + len(true))[:, None] * frequency

    return angles


def _rounded_positions(composite: Composite, true: Array) -> Array:
    start = composite.case.settings["position"]
    positions = np.arange(start, start + len(true), dtype=np.float64)
    return significant_bits(positions, BFLOAT16_BITS)[:, None] * _frequency(composite, true)


def _rounded_frequency(composite: Composite, true: Array) -> Array:
    start = composite.case.settings["position"]
    return np.arange(start, start + len(true))[:, None] * significant_bits(_frequency(composite, true), BFLOAT16_BITS)


def _frequency(composite: Composite, true: Array) -> Array:
    d_head = 2 * true.shape[-1]
    return composite.config.rope_base ** (-np.arange(0, d_head, 2) / d_head)


def _linspaced(composite: Composite, true: Array) -> Array:
    start = composite.case.settings["position"]
    frequency = composite.config.rope_base ** -np.linspace(0.0, 1.0, true.shape[-1])
    return np.arange(start, start + len(true))[:, None] * frequency


def _over_d_model(composite: Composite, true: Array) -> Array:
    return _made_of(exponent=2 * true.shape[-1] / composite.config.d_model)(composite, true)


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
        return _Part(replace(op, angles=_made_of()(composite, half)))

    return _with_rotate(part)(composite)


def _tables_in_float16(composite: Composite) -> Composite:
    if composite.case.dtype in HALF:
        return composite
    return _with_rotate(lambda op: replace(op, inner=lambda a: round_to(a, "float16")))(composite)


def _with_rotate(alter: Callable[[Rotate], Any], *names: str) -> Callable[[Composite], Composite]:
    def altered(composite: Composite) -> Composite:
        for name in names or ROTATED:
            composite = composite.alter(name, Rotate, alter)
        return composite

    return altered


def _tables_in_bfloat16(composite: Composite) -> Composite:
    if composite.case.dtype in HALF:
        return composite
    return _with_rotate(lambda op: replace(op, inner=lambda a: round_to(a, "bfloat16")))(composite)


def _by_head(composite: Composite) -> Composite:
    """x is [batch, s, h, d]; turned as if it were [batch, h, s, d], every head has its angle."""

    def turned(op: Rotate, heads: int) -> Any:
        frequency = _frequency(composite, op.angles)
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


def _cache_too(composite: Composite) -> Composite:
    case, rotate = composite.case, composite.op("k_rope", Rotate)
    if not rotate:
        return composite
    again = replace(rotate, angles=np.arange(case.past)[:, None] * _frequency(composite, rotate.angles))
    return composite.with_op("keys", lambda op: Before(op, again))


NEAR_ZERO = "positions are 0 to 6 there, which bfloat16 has exactly"
SHIFT = "queries and keys are turned by the same angle too much, and a score depends on their distance alone"
COMMON = "queries and keys have the same wrong frequencies: a score is off by the error of the angle between them alone"
MISTAKES = (
    Mistake(
        "rope_pairs_swapped",
        "neighbours are turned as pairs where halves should be, or halves where neighbours should be",
        _with_rotate(lambda op: replace(op, interleaved=not op.interleaved)),
        "Every position but the first is wrong; queries and keys of one position still agree.",
        "tt-metal#26844",
        ROPE,
    ),
    Mistake(
        "rope_base_1e4",
        "the base is 10000, whatever is asked for",
        _turned(_made_of(base=1e4)),
        "Angles are too large but for the first pair's; a base of 10000 hides it.",
        "candle#3746",
        ROPE,
    ),
    Mistake(
        "rope_exponent_halved",
        "the exponent is -i/d instead of -2i/d",
        _turned(_made_of(exponent=0.5)),
        "All angles but the first pair's are too large.",
        "planted: an arange of half the width over the whole one",
        ROPE,
    ),
    Mistake(
        "rope_by_linspace",
        "the exponents run evenly from 0 to 1, the last included",
        _turned(_linspaced),
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
        _turned(_over_d_model),
        "Angles are too large but for the first pair's; a single head hides it.",
        "planted: the wrong one of two widths",
        BLOCKS,
    ),
    Mistake(
        "rope_sign",
        "features are turned the other way",
        _turned(lambda composite, true: -true),
        "The sign of every sine; a score then depends on the distance with the opposite sign.",
        "planted: the minus in the wrong half",
        ROPE,
    ),
    Mistake(
        "rope_twice",
        "features are turned twice",
        _turned(lambda composite, true: 2 * true),
        "All angles are doubled.",
        "planted: by the attention and by its caller",
        ROPE,
    ),
    Mistake(
        "rope_half_of_the_pairs",
        "only the slower half of the pairs is turned",
        _turned(_half_of_the_pairs),
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
        _with_rotate(lambda op: First()),
        "Attention does not know of positions, but for its mask.",
        ops=ROPE,
    ),
    Mistake(
        "rope_of_keys_missing",
        "queries are turned, keys are not",
        _with_rotate(lambda op: First(), "k_rope"),
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
    Mistake(
        "position_restarts",
        "positions begin at zero, whatever was before",
        _turned(_made_of(restart=True)),
        "A sequence without a past hides it in the block's output: the taps of turned queries and keys show it.",
        "planted: a cache that positions do not know of",
        ("rope", *BLOCK),
        hidden={"float64": "all positions in float64 begin at zero"},
    ),
    Mistake(
        "position_from_one",
        "positions are counted from one",
        _turned(_made_of(first=1)),
        "Nothing in a block's output without cached keys: a score depends on the distance alone.",
        "planted: an index off by one",
        ROPE,
        needs_taps={"pre_ln_block/float64": f"{SHIFT}; no case in float64 has cached keys", "pre_ln_stack": SHIFT},
    ),
    Mistake(
        "position_of_query_off_by_one",
        "queries are turned by the next position's angle",
        _turned(_made_of(first=1), "q_rope"),
        "Queries and keys disagree on where they are.",
        "planted: a cache's length read after the new key was appended",
        BLOCKS,
    ),
    Mistake(
        "cached_keys_turned_again",
        "cached keys, which were turned when they were new, are turned again",
        _cache_too,
        "Only cached keys show it.",
        "planted: the rotation after the cache",
        BLOCK,
        hidden={"float64": "no block in float64 has cached keys"},
    ),
    Mistake(
        "rope_positions_in_bfloat16",
        "positions are rounded to bfloat16",
        _turned(_rounded_positions),
        "Beyond 256 whole positions are confused; small ones hide it.",
        "transformers#29285, candle#3520",
        ("rope", *BLOCK),
        hidden={"float64": NEAR_ZERO},
    ),
    Mistake(
        "rope_frequencies_in_bfloat16",
        "frequencies are rounded to bfloat16",
        _turned(_rounded_frequency),
        "Angles are off by up to 2^-9 of themselves, which tells at large positions.",
        "transformers#29285",
        ("rope", *BLOCK),
        needs_taps={"pre_ln_block/bfloat16": COMMON, "pre_ln_block/float16": COMMON},
    ),
    Mistake(
        "rope_angles_in_bfloat16",
        "angles are rounded to bfloat16",
        _turned(lambda composite, true: significant_bits(true, BFLOAT16_BITS)),
        "Angles are off by up to 2^-9 of themselves, which tells at large positions.",
        "transformers#29285, candle#3520",
        ("rope", *BLOCK),
    ),
    Mistake(
        "rope_angles_in_float16",
        "angles are rounded to float16",
        _turned(lambda composite, true: round_to(true, "float16")),
        "Angles are off by up to 2^-12 of themselves, which tells at large positions.",
        "transformers#29285, candle#3520",
        ("rope", *BLOCK),
    ),
    Mistake(
        "rope_tables_in_float16",
        "cosines and sines are rounded to float16",
        _tables_in_float16,
        "Turned features are off by 2^-12.",
        "planted: a table kept in the model's dtype",
        ("rope", *BLOCK),
        hidden={
            "bfloat16": "the tables may be rounded to the storage dtype, which has fewer bits",
            "float16": "the tables may be rounded to the storage dtype",
        },
    ),
    Mistake(
        "rope_tables_in_bfloat16",
        "cosines and sines are rounded to bfloat16",
        _tables_in_bfloat16,
        "Turned features are off by 2^-9.",
        "planted: a table kept in the model's dtype",
        ("rope", *BLOCK),
        hidden={
            "bfloat16": "the tables may be rounded to the storage dtype",
            "float16": "a model of float16 does not keep its tables in bfloat16",
        },
    ),
)
