"""A norm whose output is quantised: what y is divided by, and how the quotient is rounded.

In a change `quantising.…` is a part of how y is quantised.
"""

from typing import Any

import numpy as np

from conformance.mistakes.mistake import QUANTISED, Change, Mistake, Of
from conformance.mistakes.norms.scales import NO_NARROWER, dynamic, of_groups, of_the_row_before
from conformance.numbers.rounding import FORMATS, round_to
from conformance.ops.norms.quantising import Quantising

Array = np.ndarray

NOISE: dict[str, str] = {"float32": "y is no exact tie but in an exact case, which has no room to be measured"}


def _transposed(scale: Array) -> Array:
    return scale.reshape(-1, scale.shape[-1]).T.reshape(scale.shape)


def _not_saturated(z: Array, q: Quantising) -> Array:
    """A conversion that does not saturate: an integer wraps, e4m3fn has NaN beyond its range, e5m2 an infinity."""
    if q.dtype == "int8":
        return (np.rint(z) + 128) % 256 - 128
    beyond = np.abs(round_to(z, "bfloat16")) > q.qmax * (1 + FORMATS[q.dtype].unit_roundoff / 2)
    return np.where(beyond, np.nan if q.dtype == "float8_e4m3fn" else np.inf, z)


def _flushed(z: Array, q: Quantising) -> Array:
    """Without subnormal numbers."""
    normal = q.dtype == "int8" or np.abs(round_to(z, q.dtype)) >= FORMATS[q.dtype].smallest_normal
    return np.clip(np.where(normal, z, 0.0), -q.qmax, q.qmax)


def _mistake(id_: str, sentence: str, change: Change, effect: str, evidence: str, **more: Any) -> Mistake:
    return Mistake(id_, sentence, change, effect, evidence, QUANTISED, **more)


MISTAKES = (
    _mistake(
        "multiplied_by_scale",
        "y is multiplied by the scale, not divided by it",
        {"quantising.used": lambda scale: 1 / scale},
        "q is far too small, or all of it qmax.",
        "planted: an argument that is a scale in one library and its reciprocal in another",
    ),
    _mistake(
        "scale_not_used",
        "y is rounded without its scale",
        {"quantising.used": np.ones_like},
        "q is y itself, rounded; what is returned as its scale is not.",
        "planted: a scale that is applied in the next kernel, too",
    ),
    _mistake(
        "clamped_at_448",
        "q is clamped at e4m3fn's qmax, 448, in a dtype that goes to 57344",
        {"quantising.quotient": lambda z, q: np.clip(z, -448.0, 448.0)},
        "Seen in e5m2 alone, where y is more than 448 times its scale.",
        "flashinfer#4056",
        where=lambda norm: norm.quantising.dtype == "float8_e5m2",
    ),
    _mistake(
        "scale_of_another_row",
        "a row is divided by the scale of the row before",
        {"quantising.used": of_the_row_before},
        "The scales are right; q is not.",
        "planted: an index off by one",
        where=dynamic,
    ),
    _mistake(
        "scale_of_next_group",
        "a group is divided by the scale of the next one",
        {"quantising.used": lambda scale: np.roll(scale, -1, axis=-1)},
        "The scales are right; q is not.",
        "planted: an index off by one",
        where=of_groups,
    ),
    _mistake(
        "scales_transposed",
        "the scales are written by rows, and read by groups",
        {"quantising.used": _transposed},
        "The scales are right but for their order.",
        "planted: scales that a matrix product wants column by column",
        where=of_groups,
    ),
    _mistake(
        "q_truncated",
        "q is cut off, not rounded",
        {"output_modes": {"q": "toward_zero"}},
        "Half of q is one step too near to zero.",
        "planted: a conversion to an integer",
    ),
    _mistake(
        "q_ties_away",
        "ties are rounded away from zero, not to even",
        {"output_modes": {"q": "nearest_away"}},
        "Seen in ties alone: y / scale must be exact.",
        "planted: round() of C, or floor(z + 0.5)",
        hidden=NOISE,
    ),
    _mistake(
        "q_not_saturated",
        "what is beyond qmax is not clamped: it wraps in int8, is NaN in e4m3fn, an infinity in e5m2",
        {"quantising.quotient": _not_saturated},
        "Seen where y is beyond qmax times its scale: with a static scale, or a bound.",
        "planted: a conversion that does not saturate, as torch's and ml_dtypes' do not",
    ),
    _mistake(
        "minus_128",
        "q goes down to -128",
        {"quantising.quotient": lambda z, q: np.clip(z, -128.0, 127.0)},
        "Seen in int8 alone, where a negative value saturates.",
        "vLLM, csrc/quantization/w8a8/int8/scaled_quant.cu: a conversion that saturates, and no clamp",
        dialect=True,
        where=lambda norm: norm.quantising.dtype == "int8",
    ),
    _mistake(
        "q_subnormals_flushed",
        "what is below the smallest normal number is zero",
        {"quantising.quotient": _flushed},
        "Seen in float8, in values that are small for their scale.",
        "planted: a table or a conversion without subnormal numbers",
    ),
    _mistake(
        "y_not_rounded_before_quantised",
        "y is quantised as it was computed",
        {"quantising.y_dtype": None},
        "Some elements of q are the neighbours of what they should be.",
        "FlashInfer, include/flashinfer/norm.cuh, RMSNormQuant",
        hidden=NO_NARROWER,
        dialect=True,
    ),
    _mistake(
        "y_rounded_before_quantised",
        "y is rounded to x's dtype before it is quantised",
        {"quantising.y_dtype": Of(lambda norm: norm.case.dtype)},
        "Some elements of q are the neighbours of what they should be.",
        "vLLM, csrc/layernorm_quant_kernels.cu",
        hidden=NO_NARROWER,
        dialect=True,
    ),
)
