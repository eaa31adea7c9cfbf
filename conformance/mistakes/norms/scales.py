"""A norm whose output is quantised: the maximum that a scale is made from, and the scale.

In a change `quantising.…` is a part of how y is quantised. q is judged given the scale that a port returned: where only the
scale is wrong, q is right for it.
"""

from typing import Any

import numpy as np

from conformance.mistakes.mistake import QUANTISED, Change, Mistake, Of
from conformance.numbers.rounding import SINGLE, round_to
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.quantising import Quantising, group_size
from conformance.ops.norms.values import NormValues

Array = np.ndarray

NO_NARROWER: dict[str, str] = dict.fromkeys(SINGLE, "there is no narrower dtype")
ANOTHER_QMAX = {"float8_e4m3fn": 240.0, "float8_e5m2": 448.0, "int8": 128.0}  # of e4m3fnuz, of e4m3fn, and one too many


def of_kind(*scalings: str) -> Any:
    """Whether scales are found so."""
    return lambda norm: norm.quantising.scaling in scalings


dynamic = of_kind("per_row", "per_group_128", "mx")
of_groups = of_kind("per_group_128", "mx")


def of_the_row_before(a: Array) -> Array:
    """What a row has, given to the next one: [*batch, groups]."""
    return np.roll(a.reshape(-1, a.shape[-1]), 1, axis=0).reshape(a.shape)


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
        "scale_inverted",
        "the reciprocal of the scale is returned",
        {"quantising.returned": lambda scale: 1 / scale, "quantising.used": lambda scale: 1 / scale},
        "q is right for the scale that is not returned.",
        "planted: qmax over the maximum, which y is multiplied by, is taken for the scale",
        where=dynamic,
    ),
    _mistake(
        "scale_over_another_qmax",
        "the scale is the maximum over the qmax of another format: 240 (e4m3fnuz), 448 in e5m2, 128 in int8",
        {"quantising.divisor": Of(lambda norm: ANOTHER_QMAX[norm.quantising.dtype])},
        "q is right for its scale, and does not fill its range, or saturates.",
        "planted: one constant for all formats",
        where=of_kind("per_row", "per_group_128"),
    ),
    _mistake(
        "maximum_before_weight",
        "the maximum is that of x_hat, before the weight",
        {"quantising.measured": Of(_x_hat)},
        "q is right for its scale; where weights are larger than one it saturates.",
        "planted: the maximum taken in the loop that sums squares",
        where=dynamic,
    ),
    Mistake(
        "maximum_before_residual",
        "the maximum is that of the norm of x, without the residual",
        {"quantising.measured": Of(_without_residual)},
        "q is right for its scale, and saturates where the residual is large.",
        "planted: the kernel without a residual, copied in part",
        ("quantised_add_rms_norm",),
        where=dynamic,
    ),
    _mistake(
        "maximum_of_signed_values",
        "the maximum is that of y, not of its magnitude",
        {"quantising.signed": True},
        "q is right for its scale; negative values saturate.",
        "planted: max without abs",
        where=dynamic,
    ),
    _mistake(
        "maximum_of_another_row",
        "the scale of a row is made from the maximum of the row before",
        {"quantising.maxima": of_the_row_before},
        "q is right for its scale, and saturates.",
        "planted: an index off by one",
        where=dynamic,
    ),
    _mistake(
        "maximum_of_all_rows",
        "all rows have the maximum of the whole tensor",
        {"quantising.maxima": lambda maxima: np.full_like(maxima, np.max(maxima, initial=0.0))},
        "q is right for its scale, and has fewer digits than it could have.",
        "planted: a scale per tensor where one per row is meant",
        where=dynamic,
    ),
    _mistake(
        "maximum_of_the_row",
        "all groups of a row have the maximum of the whole row",
        {"quantising.size": Of(lambda norm: norm.x.shape[-1])},
        "q is right for its scale, and has fewer digits than it could have.",
        "planted: a scale per row where one per group is meant",
        where=of_groups,
    ),
    _mistake(
        "maximum_of_half_a_group",
        "the maximum is that of the first half of the values that share a scale",
        {"quantising.size": Of(_half_a_group)},
        "q is right for its scale, and saturates.",
        "planted: a reduction over one warp of two",
        where=dynamic,
    ),
    _mistake(
        "no_scale_floor",
        "a scale has no floor: that of a row of zeros is zero, and q is 0/0",
        {"quantising.floor": 0.0},
        "Seen in rows of zeros alone.",
        "planted: what vLLM's min_scaling_factor is there for",
        where=dynamic,
    ),
    _mistake(
        "scale_floor_added",
        "the floor of a scale is added to it",
        {"quantising.floor": 0.0, "quantising.maxima": lambda maxima: maxima + 1 / 512},
        "Every scale is a little too large.",
        "planted: + eps where max(…, eps) is meant",
        where=of_kind("per_row", "per_group_128"),
    ),
    _mistake(
        "scale_ub_left_out",
        "the upper bound of the maximum is left out",
        {"quantising.bound": "none"},
        "Seen where there is a bound, and it is less than the maximum.",
        "planted: an optional argument",
        where=of_kind("per_row", "per_group_128"),
    ),
    _mistake(
        "scale_ub_of_scale",
        "the upper bound is one of the scale, not of the maximum",
        {"quantising.bound": "scale"},
        "Seen where there is a bound, and it is less than the maximum.",
        "planted: what its name says",
        where=of_kind("per_row", "per_group_128"),
    ),
    _mistake(
        "scale_in_storage_dtype",
        "the scale is rounded to x's dtype",
        {"quantising.returned": Of(lambda norm: lambda scale: round_to(scale, norm.case.dtype))},
        "q is right for its scale; the largest value may saturate.",
        "planted: a scale that is made by new_empty of x",
        hidden=NO_NARROWER,
        where=of_kind("per_row", "per_group_128"),
    ),
    _mistake(
        "mx_scale_rounded",
        "the exponent of an MX scale is rounded to the nearest, not down",
        {"quantising.exponent": lambda maximum, q: np.rint(_log2(maximum)) - q.emax},
        "Half of the scales are twice too large.",
        "planted: round(log2(…))",
        where=of_kind("mx"),
    ),
    _mistake(
        "mx_scale_rounded_up",
        "the exponent of an MX scale is that of the maximum, rounded up",
        {"quantising.exponent": lambda maximum, q: np.ceil(_log2(maximum)) - q.emax},
        "Scales are twice too large; nothing saturates.",
        "planted: ceil(log2(…)) against saturation",
        where=of_kind("mx"),
    ),
    _mistake(
        "mx_scale_of_quotient_rounded_up",
        "an MX scale is the power of two at or above the maximum over qmax",
        {"quantising.exponent": _over_qmax_rounded_up},
        "Where the maximum is beyond qmax times the scale of OCP MX 1.0, the scale is twice as large, and nothing saturates.",
        "Mishra et al. 2025, arXiv:2506.08027: recipes for pre-training with MXFP8",
        dialect=True,
        where=of_kind("mx"),
    ),
    _mistake(
        "mx_scale_without_emax",
        "the exponent of an MX scale is that of the maximum, less nothing",
        {"quantising.exponent": lambda maximum, q: np.frexp(maximum)[1] - 1.0},
        "Scales are 2⁸ times too large, in e5m2 2¹⁵ times.",
        "planted: a step of the specification left out",
        where=of_kind("mx"),
    ),
)
