"""The soft cap of scores, and a scale other than d_head^-1/2."""

import math
from dataclasses import replace

import numpy as np

from conformance.mistakes.block.attending import scaled
from conformance.mistakes.block.stages import Become, alters
from conformance.mistakes.mistake import MASKED, Mistake, Of
from conformance.numbers.rounding import HALF
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention_primitives import DotProducts, SoftCap, Softmax
from conformance.ops.block.wrappers import After, Before, First, Map

Array = np.ndarray


def _before_scale(composite: Composite) -> Become:
    """scale · cap · tanh(products / cap), of scaled scores: a cap that is scaled."""
    op = composite.op("scores", DotProducts)
    scale = 1.0 if op is None else op.scale
    return alters(SoftCap, lambda op: replace(op, cap=op.cap * scale))


def _after_mask(composite: Composite) -> Become:
    """Of minus infinity is left minus the cap: hidden keys have a score like others."""
    cap = -(composite.config.softcap or 0.0)

    def capped(op: Softmax) -> Before:
        hidden = Map(lambda scores: np.where(op.visible, scores, cap), lambda dy, scores: np.where(op.visible, dy, 0.0))
        return Before(replace(op, visible=np.ones_like(op.visible)), hidden)

    return alters(Softmax, capped)


def _divided(cap: float) -> Map:
    return Map(lambda scores: scores / cap, lambda dy, scores: dy / cap)


def is_capped(composite: Composite) -> bool:
    """Whether there is a soft cap."""
    return composite.config.softcap is not None


def _is_scaled(composite: Composite) -> bool:
    return composite.config.attention_scale is not None


CAPPED = {"float64": "nothing in float64 is asked for with a soft cap"} | {
    "pre_ln_block/float16": "a block is asked for with a soft cap in float32 and bfloat16"
}
SCALED = {"float64": "nothing in float64 is asked for with a scale of its own"} | {
    f"pre_ln_block/{dtype}": "a block is asked for with a scale of its own in float32" for dtype in HALF
}
MISTAKES = (
    Mistake(
        "softcap_missing",
        "scores are not capped",
        {"capped": alters(SoftCap, lambda op: First())},
        "Scores beyond the cap are too large; small ones nearly hide it.",
        "aprender#2100",
        MASKED,
        CAPPED,
        where=is_capped,
    ),
    Mistake(
        "softcap_before_scale",
        "scores are capped before they are scaled",
        {"capped": Of(_before_scale)},
        "The cap is lower by the scale.",
        "aprender#2100",
        MASKED,
        CAPPED,
        where=is_capped,
    ),
    Mistake(
        "softcap_after_mask",
        "scores are capped after they are masked, and hidden ones are minus the cap",
        {"probs": Of(_after_mask)},
        "Hidden keys take their share.",
        "planted: the order of two lines",
        MASKED,
        CAPPED,
        where=is_capped,
    ),
    Mistake(
        "softcap_not_multiplied_back",
        "scores are the tanh of their part of the cap, and not multiplied by it",
        {"capped": alters(SoftCap, lambda op: After(op, _divided(op.cap)))},
        "Scores are between minus one and one.",
        "planted: one of two factors",
        MASKED,
        CAPPED,
        where=is_capped,
    ),
    Mistake(
        "scale_of_d_head",
        "scores are scaled by d_head^-1/2, whatever scale is asked for",
        {"scores": scaled(lambda config, scale: 1 / math.sqrt(config.d_head))},
        "A scale of d_head^-1/2 hides it.",
        "planted: a default for an argument",
        MASKED,
        SCALED,
        where=_is_scaled,
    ),
)
