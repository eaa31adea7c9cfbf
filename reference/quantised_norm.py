"""RMSNorm whose output is quantised, with or without a residual that is added first, in float64: q = round(y / scale)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from reference.add_norm import add_rms_norm
from reference.arguments import check_float64
from reference.rms_norm import rms_norm

Array = np.ndarray
Rounding = Callable[[Array], Array]

GROUPS = {"per_group_128": 128, "mx": 32}
"""How many neighbours of a row share a scale; with `per_row` all of them do, with `static` all rows as well."""
LEAST_MX, MX_OF_ZEROS = 2.0**-127, 1.0  # what E8M0 holds, and the scale of a block of zeros, which OCP MX leaves open


class QuantisedNorm(NamedTuple):
    """The outputs of `quantised_rms_norm`: numbers of the quantised dtype, and what they are to be multiplied by."""

    q: Float64[Array, "*batch d"]
    scale: Float64[Array, "*batch groups"]


class QuantisedAddNorm(NamedTuple):
    """The outputs of `quantised_add_rms_norm`; the sum is not quantised."""

    q: Float64[Array, "*batch d"]
    scale: Float64[Array, "*batch groups"]
    residual_out: Float64[Array, "*batch d"]


class QuantisedFormat(NamedTuple):
    """A dtype to quantise to: its numbers near z are the multiples of 2^(max(e, min_exponent) − digits), 2^e ≤ |z| < 2^(e+1).

    `qmax` is the largest that is used, `floor` the least dynamic scale.
    """

    qmax: float
    min_exponent: int
    digits: int
    floor: float


QUANTISED_FORMATS = {
    "float8_e4m3fn": QuantisedFormat(448.0, -6, 3, 1 / (448 * 512)),
    "float8_e5m2": QuantisedFormat(57344.0, -14, 2, 1 / (57344 * 512)),
    "int8": QuantisedFormat(127.0, 7, 7, 2.0**-23),  # the integers; −128 is not used
}


def quantised_rms_norm(
    x: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    scale: Float64[Array, " 1"] | None = None,
    *,
    eps: float,
    quantised_dtype: str,
    scaling: str,
    scale_ub: float | None = None,
    weight_offset: float = 0.0,
    round_y: Rounding | None = None,
) -> QuantisedNorm:
    r"""RMSNorm, then quantise every row; q times scale is y again, but for the rounding.

    $$ y = \mathrm{rms\_norm}(x), \qquad q = \mathrm{round}(\min(\max(y / \mathrm{scale}, -q_{max}), q_{max})) $$

    A `static` scale is given; any other is found from the numbers that share it (`dynamic_scale`). Implementations differ in
    what is quantised: y as it would be stored, after `round_y` (vLLM), or as it was computed, with `round_y` None (FlashInfer).

    Raises `ValueError`, which names the argument, for an unknown `quantised_dtype` or `scaling`, for a scale that is missing,
    given though it is dynamic, or not positive and finite, for a `scale_ub` that is not, for a d that groups do not divide,
    and as `rms_norm` does.
    """
    _check("quantised_rms_norm", x, scale, quantised_dtype, scaling, scale_ub)
    y = rms_norm(x, weight, eps=eps, weight_offset=weight_offset).y
    return _quantised(y if round_y is None else round_y(y), scale, quantised_dtype, scaling, scale_ub)


def quantised_add_rms_norm(
    x: Float64[Array, "*batch d"],
    residual: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    scale: Float64[Array, " 1"] | None = None,
    *,
    eps: float,
    quantised_dtype: str,
    scaling: str,
    scale_ub: float | None = None,
    weight_offset: float = 0.0,
    round_sum: Rounding | None = None,
    round_y: Rounding | None = None,
) -> QuantisedAddNorm:
    r"""Add the residual to x, return the sum, and the quantised RMSNorm of it: `add_rms_norm` and `quantised_rms_norm` in one.

    Raises `ValueError` as these two do.
    """
    _check("quantised_add_rms_norm", x, scale, quantised_dtype, scaling, scale_ub)
    y, residual_out = add_rms_norm(x, residual, weight, eps=eps, weight_offset=weight_offset, round_sum=round_sum)
    q = _quantised(y if round_y is None else round_y(y), scale, quantised_dtype, scaling, scale_ub)
    return QuantisedAddNorm(*q, residual_out)


def dynamic_scale(
    y: Float64[Array, "*batch d"], quantised_dtype: str, scaling: str, scale_ub: float | None = None
) -> Float64[Array, "*batch groups"]:
    r"""The scale that brings the largest of the numbers that share it to q_max, or near to it.

    $$ \mathrm{scale} = \max(\min(\max_j |y_j|, \mathrm{scale\_ub}) / q_{max}, \mathrm{floor}), \qquad
       \text{for mx: } 2^{\lfloor \log_2 \max_j |y_j| \rfloor - e_{max}} $$

    The floor keeps a row of zeros from 0/0; it is 1/(512·q_max), for int8 2⁻²³ (vLLM, csrc/quantization/utils.cuh). e_max is
    the exponent of q_max (OCP Microscaling Formats 1.0, section 6.3).
    """
    qmax, _, _, floor = QUANTISED_FORMATS[quantised_dtype]
    d: int = y.shape[-1]
    size = GROUPS.get(scaling, d)
    largest = np.max(np.abs(y).reshape(*y.shape[:-1], d // size, size), axis=-1)  # *batch groups
    if scaling == "mx":
        return np.where(largest == 0, MX_OF_ZEROS, np.maximum(_power_of_two(largest) / _power_of_two(qmax), LEAST_MX))
    bounded = largest if scale_ub is None else np.minimum(largest, scale_ub)
    return np.maximum(bounded / qmax, floor)


def quantise(
    y: Float64[Array, "*batch d"], scale: Float64[Array, "*batch groups"], quantised_dtype: str
) -> Float64[Array, "*batch d"]:
    """y over its scale as a number of the quantised dtype: the nearest, ties to even; what is beyond q_max becomes q_max."""
    qmax, min_exponent, digits, _ = QUANTISED_FORMATS[quantised_dtype]
    z = np.clip(y / np.repeat(scale, y.shape[-1] // scale.shape[-1], axis=-1), -qmax, qmax)  # *batch d
    step = np.maximum(_power_of_two(z), 2.0**min_exponent) / 2.0**digits  # *batch d
    return np.rint(z / step) * step


def _quantised(y: Array, scale: Array | None, quantised_dtype: str, scaling: str, scale_ub: float | None) -> QuantisedNorm:
    scale = dynamic_scale(y, quantised_dtype, scaling, scale_ub) if scale is None else scale
    return QuantisedNorm(quantise(y, scale, quantised_dtype), scale)


def _power_of_two(z: Array | float) -> Array:
    """The power of two at or below |z|."""
    return np.ldexp(1.0, np.frexp(z)[1] - 1)


def _check(op: str, x: Array, scale: Array | None, quantised_dtype: str, scaling: str, scale_ub: float | None) -> None:
    """Raise unless y can be quantised so."""
    if quantised_dtype not in QUANTISED_FORMATS:
        raise ValueError(f"{op}: quantised_dtype is {quantised_dtype!r}; it must be one of {', '.join(QUANTISED_FORMATS)}")
    scalings = ("static", "per_row", *GROUPS)
    if scaling not in scalings:
        raise ValueError(f"{op}: scaling is {scaling!r}; it must be one of {', '.join(scalings)}")
    if scaling == "mx" and quantised_dtype == "int8":
        raise ValueError(f"{op}: scaling is 'mx'; with a quantised_dtype of int8 it must be another")
    if (scale is None) == (scaling == "static"):
        raise ValueError(f"{op}: scale is {scale}; it must be given where scaling is 'static', and only there")
    if scale is not None:
        check_float64(op, scale=scale)
        if scale.shape != (1,) or not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"{op}: scale is {scale}; it must be one positive, finite number, of shape (1,)")
    if scale_ub is not None and not (0 < scale_ub < np.inf and scaling in ("per_row", "per_group_128")):
        raise ValueError(f"{op}: scale_ub is {scale_ub}; it must be positive, and scaling 'per_row' or 'per_group_128'")
    size = GROUPS.get(scaling, 1)
    if x.ndim and x.shape[-1] % size:
        raise ValueError(f"{op}: x has shape {x.shape}; with scaling {scaling!r} its last axis must be a multiple of {size}")
