"""A norm whose output is quantised: the maximum that a scale is made from, the scale, and the rounding of y over it.

In a change `quantising.…` is a part of how y is quantised. q is judged given the scale that a port returned: where only the
scale is wrong, q is right for it.
"""

from typing import Any

import numpy as np

from conformance.mistakes.mistake import QUANTISED, Change, Mistake, Of
from conformance.numbers.rounding import FORMATS, SINGLE, round_to
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.quantising import Quantising, group_size
from conformance.ops.norms.values import NormValues

Array = np.ndarray

NO_NARROWER: dict[str, str] = dict.fromkeys(SINGLE, "there is no narrower dtype")
NOISE: dict[str, str] = {"float32": "y is no exact tie but in an exact case, which has no room to be measured"}
ANOTHER_QMAX = {"float8_e4m3fn": 240.0, "float8_e5m2": 448.0, "int8": 128.0}  # of e4m3fnuz, of e4m3fn, and one too many


def _of_kind(*scalings: str) -> Any:
    """Whether scales are found so."""
    return lambda norm: norm.quantising.scaling in scalings


_dynamic = _of_kind("per_row", "per_group_128", "mx")
_of_groups = _of_kind("per_group_128", "mx")


def _as_rows(a: Array) -> Array:
    return a.reshape(-1, a.shape[-1])


def _of_the_row_before(a: Array) -> Array:
    return np.roll(_as_rows(a), 1, axis=0).reshape(a.shape)


def _transposed(scale: Array) -> Array:
    return _as_rows(scale).T.reshape(scale.shape)


def _x_hat(norm: Norm) -> object:
    """x_hat, in the dtype that it is cast to."""
    casts = norm.dialect.order == "cast_then_scale"
    return lambda values: round_to(values.x_hat.astype(np.float64), norm.case.dtype) if casts else values.x_hat


def _without_residual(norm: Norm) -> object:
    """The norm of x alone."""

    def measured(values: NormValues) -> Array:
        return values.w * norm.x / np.sqrt(np.mean(np.square(norm.x), axis=-1, keepdims=True) + norm.eps)

    return measured


def _half_a_group(norm: Norm) -> object:
    return max(1, group_size(norm.quantising.scaling, norm.x.shape[-1]) // 2) if norm.quantising else None


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


def _over_qmax_rounded_up(maximum: Array, q: Quantising) -> Array:
    with np.errstate(divide="ignore"):
        return np.ceil(np.log2(maximum / q.qmax))


def _log2(maximum: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.log2(maximum)


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
        "scale_inverted",
        "the reciprocal of the scale is returned",
        {"quantising.returned": lambda scale: 1 / scale, "quantising.used": lambda scale: 1 / scale},
        "q is right for the scale that is not returned.",
        "planted: qmax over the maximum, which y is multiplied by, is taken for the scale",
        where=_dynamic,
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
        "scale_over_another_qmax",
        "the scale is the maximum over the qmax of another format: 240 (e4m3fnuz), 448 in e5m2, 128 in int8",
        {"quantising.divisor": Of(lambda norm: ANOTHER_QMAX[norm.quantising.dtype])},
        "q is right for its scale, and does not fill its range, or saturates.",
        "planted: one constant for all formats",
        where=_of_kind("per_row", "per_group_128"),
    ),
    _mistake(
        "maximum_before_weight",
        "the maximum is that of x_hat, before the weight",
        {"quantising.measured": Of(_x_hat)},
        "q is right for its scale; where weights are larger than one it saturates.",
        "planted: the maximum taken in the loop that sums squares",
        where=_dynamic,
    ),
    Mistake(
        "maximum_before_residual",
        "the maximum is that of the norm of x, without the residual",
        {"quantising.measured": Of(_without_residual)},
        "q is right for its scale, and saturates where the residual is large.",
        "planted: the kernel without a residual, copied in part",
        ("quantised_add_rms_norm",),
        where=_dynamic,
    ),
    _mistake(
        "maximum_of_signed_values",
        "the maximum is that of y, not of its magnitude",
        {"quantising.signed": True},
        "q is right for its scale; negative values saturate.",
        "planted: max without abs",
        where=_dynamic,
    ),
    _mistake(
        "maximum_of_another_row",
        "the scale of a row is made from the maximum of the row before",
        {"quantising.maxima": _of_the_row_before},
        "q is right for its scale, and saturates.",
        "planted: an index off by one",
        where=_dynamic,
    ),
    _mistake(
        "maximum_of_all_rows",
        "all rows have the maximum of the whole tensor",
        {"quantising.maxima": lambda maxima: np.full_like(maxima, np.max(maxima, initial=0.0))},
        "q is right for its scale, and has fewer digits than it could have.",
        "planted: a scale per tensor where one per row is meant",
        where=_dynamic,
    ),
    _mistake(
        "maximum_of_the_row",
        "all groups of a row have the maximum of the whole row",
        {"quantising.size": Of(lambda norm: norm.x.shape[-1])},
        "q is right for its scale, and has fewer digits than it could have.",
        "planted: a scale per row where one per group is meant",
        where=_of_groups,
    ),
    _mistake(
        "maximum_of_half_a_group",
        "the maximum is that of the first half of the values that share a scale",
        {"quantising.size": Of(_half_a_group)},
        "q is right for its scale, and saturates.",
        "planted: a reduction over one warp of two",
        where=_dynamic,
    ),
    _mistake(
        "scale_of_another_row",
        "a row is divided by the scale of the row before",
        {"quantising.used": _of_the_row_before},
        "The scales are right; q is not.",
        "planted: an index off by one",
        where=_dynamic,
    ),
    _mistake(
        "scale_of_next_group",
        "a group is divided by the scale of the next one",
        {"quantising.used": lambda scale: np.roll(scale, -1, axis=-1)},
        "The scales are right; q is not.",
        "planted: an index off by one",
        where=_of_groups,
    ),
    _mistake(
        "scales_transposed",
        "the scales are written by rows, and read by groups",
        {"quantising.used": _transposed},
        "The scales are right but for their order.",
        "planted: scales that a matrix product wants column by column",
        where=_of_groups,
    ),
    _mistake(
        "no_scale_floor",
        "a scale has no floor: that of a row of zeros is zero, and q is 0/0",
        {"quantising.floor": 0.0},
        "Seen in rows of zeros alone.",
        "planted: what vLLM's min_scaling_factor is there for",
        where=_dynamic,
    ),
    _mistake(
        "scale_floor_added",
        "the floor of a scale is added to it",
        {"quantising.floor": 0.0, "quantising.maxima": lambda maxima: maxima + 1 / 512},
        "Every scale is a little too large.",
        "planted: + eps where max(…, eps) is meant",
        where=_of_kind("per_row", "per_group_128"),
    ),
    _mistake(
        "scale_ub_left_out",
        "the upper bound of the maximum is left out",
        {"quantising.bound": "none"},
        "Seen where there is a bound, and it is less than the maximum.",
        "planted: an optional argument",
        where=_of_kind("per_row", "per_group_128"),
    ),
    _mistake(
        "scale_ub_of_scale",
        "the upper bound is one of the scale, not of the maximum",
        {"quantising.bound": "scale"},
        "Seen where there is a bound, and it is less than the maximum.",
        "planted: what its name says",
        where=_of_kind("per_row", "per_group_128"),
    ),
    _mistake(
        "scale_in_storage_dtype",
        "the scale is rounded to x's dtype",
        {"quantising.returned": Of(lambda norm: lambda scale: round_to(scale, norm.case.dtype))},
        "q is right for its scale; the largest value may saturate.",
        "planted: a scale that is made by new_empty of x",
        hidden=NO_NARROWER,
        where=_of_kind("per_row", "per_group_128"),
    ),
    _mistake(
        "mx_scale_rounded",
        "the exponent of an MX scale is rounded to the nearest, not down",
        {"quantising.exponent": lambda maximum, q: np.rint(_log2(maximum)) - q.emax},
        "Half of the scales are twice too large.",
        "planted: round(log2(…))",
        where=_of_kind("mx"),
    ),
    _mistake(
        "mx_scale_rounded_up",
        "the exponent of an MX scale is that of the maximum, rounded up",
        {"quantising.exponent": lambda maximum, q: np.ceil(_log2(maximum)) - q.emax},
        "Scales are twice too large; nothing saturates.",
        "planted: ceil(log2(…)) against saturation",
        where=_of_kind("mx"),
    ),
    _mistake(
        "mx_scale_of_quotient_rounded_up",
        "an MX scale is the power of two at or above the maximum over qmax",
        {"quantising.exponent": _over_qmax_rounded_up},
        "Where the maximum is beyond qmax times the scale of OCP MX 1.0, the scale is twice as large, and nothing saturates.",
        "Mishra et al. 2025, arXiv:2506.08027: recipes for pre-training with MXFP8",
        dialect=True,
        where=_of_kind("mx"),
    ),
    _mistake(
        "mx_scale_without_emax",
        "the exponent of an MX scale is that of the maximum, less nothing",
        {"quantising.exponent": lambda maximum, q: np.frexp(maximum)[1] - 1.0},
        "Scales are 2⁸ times too large, in e5m2 2¹⁵ times.",
        "planted: a step of the specification left out",
        where=_of_kind("mx"),
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
