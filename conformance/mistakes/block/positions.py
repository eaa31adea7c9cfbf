"""Mistakes in where a query or a key is taken to stand, and in how exactly it is turned."""

from dataclasses import replace

import numpy as np

from conformance.mistakes.block.rotation import ROTATED, Array, frequencies, made_of, turns
from conformance.mistakes.block.stages import alters, wraps
from conformance.mistakes.mistake import BLOCK, BLOCKS, ROPE, Change, Mistake, Of, in_dtypes
from conformance.numbers.rounding import SINGLE, round_to, significant_bits
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.primitives import Rotate
from conformance.ops.block.wrappers import Before

BFLOAT16_BITS = 8


def _rounded_positions(composite: Composite, true: Array) -> Array:
    start = composite.case.settings["position"]
    positions = np.arange(start, start + len(true), dtype=np.float64)
    return significant_bits(positions, BFLOAT16_BITS)[:, None] * frequencies(composite, true)


def _rounded_frequency(composite: Composite, true: Array) -> Array:
    start = composite.case.settings["position"]
    return np.arange(start, start + len(true))[:, None] * significant_bits(frequencies(composite, true), BFLOAT16_BITS)


def _tables_in(dtype: str) -> Change:
    """Cosines and sines are rounded."""
    return dict.fromkeys(ROTATED, alters(Rotate, lambda op: replace(op, inner=lambda a: round_to(a, dtype))))


def _turned_again(composite: Composite) -> Rotate:
    """The rotation of the cached keys."""
    rotate = composite.op("k_rope", Rotate)
    assert rotate
    return replace(rotate, angles=np.arange(composite.case.past)[:, None] * frequencies(composite, rotate.angles))


NEAR_ZERO = "positions are 0 to 6 there, which bfloat16 has exactly"
SHIFT = "queries and keys are turned by the same angle too much, and a score depends on their distance alone"
COMMON = "queries and keys have the same wrong frequencies: a score is off by the error of the angle between them alone"
MISTAKES = (
    Mistake(
        "position_restarts",
        "positions begin at zero, whatever was before",
        dict.fromkeys(ROTATED, turns(made_of(restart=True))),
        "A sequence without a past hides it in the block's output: the taps of turned queries and keys show it.",
        "planted: a cache that positions do not know of",
        ("rope", *BLOCK),
        hidden={"float64": "all positions in float64 begin at zero"},
    ),
    Mistake(
        "position_from_one",
        "positions are counted from one",
        dict.fromkeys(ROTATED, turns(made_of(first=1))),
        "Nothing in a block's output without cached keys: a score depends on the distance alone.",
        "planted: an index off by one",
        ROPE,
        needs_taps={"pre_ln_block/float64": f"{SHIFT}; no case in float64 has cached keys", "pre_ln_stack": SHIFT},
    ),
    Mistake(
        "position_of_query_off_by_one",
        "queries are turned by the next position's angle",
        {"q_rope": turns(made_of(first=1))},
        "Queries and keys disagree on where they are.",
        "planted: a cache's length read after the new key was appended",
        BLOCKS,
    ),
    Mistake(
        "cached_keys_turned_again",
        "cached keys, which were turned when they were new, are turned again",
        {"keys": Of(lambda composite: wraps(lambda op: Before(op, _turned_again(composite))))},
        "Only cached keys show it.",
        "planted: the rotation after the cache",
        BLOCK,
        hidden={"float64": "no block in float64 has cached keys"},
        where=lambda composite: composite.op("k_rope", Rotate) is not None,
    ),
    Mistake(
        "rope_positions_in_bfloat16",
        "positions are rounded to bfloat16",
        dict.fromkeys(ROTATED, turns(_rounded_positions)),
        "Beyond 256 whole positions are confused; small ones hide it.",
        "transformers#29285, candle#3520",
        ("rope", *BLOCK),
        hidden={"float64": NEAR_ZERO},
    ),
    Mistake(
        "rope_frequencies_in_bfloat16",
        "frequencies are rounded to bfloat16",
        dict.fromkeys(ROTATED, turns(_rounded_frequency)),
        "Angles are off by up to 2^-9 of themselves, which tells at large positions.",
        "transformers#29285",
        ("rope", *BLOCK),
        needs_taps={"pre_ln_block/bfloat16": COMMON, "pre_ln_block/float16": COMMON},
    ),
    Mistake(
        "rope_angles_in_bfloat16",
        "angles are rounded to bfloat16",
        dict.fromkeys(ROTATED, turns(lambda composite, true: significant_bits(true, BFLOAT16_BITS))),
        "Angles are off by up to 2^-9 of themselves, which tells at large positions.",
        "transformers#29285, candle#3520",
        ("rope", *BLOCK),
    ),
    Mistake(
        "rope_angles_in_float16",
        "angles are rounded to float16",
        dict.fromkeys(ROTATED, turns(lambda composite, true: round_to(true, "float16"))),
        "Angles are off by up to 2^-12 of themselves, which tells at large positions.",
        "transformers#29285, candle#3520",
        ("rope", *BLOCK),
    ),
    Mistake(
        "rope_tables_in_float16",
        "cosines and sines are rounded to float16",
        _tables_in("float16"),
        "Turned features are off by 2^-12.",
        "planted: a table kept in the model's dtype",
        ("rope", *BLOCK),
        hidden={
            "bfloat16": "the tables may be rounded to the storage dtype, which has fewer bits",
            "float16": "the tables may be rounded to the storage dtype",
        },
        where=in_dtypes(*SINGLE),
    ),
    Mistake(
        "rope_tables_in_bfloat16",
        "cosines and sines are rounded to bfloat16",
        _tables_in("bfloat16"),
        "Turned features are off by 2^-9.",
        "planted: a table kept in the model's dtype",
        ("rope", *BLOCK),
        hidden={
            "bfloat16": "the tables may be rounded to the storage dtype",
            "float16": "a model of float16 does not keep its tables in bfloat16",
        },
        where=in_dtypes(*SINGLE),
    ),
)
