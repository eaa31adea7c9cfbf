"""float64 to a storage dtype, correctly rounded, once; and the other ways to round, which mistakes take."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import ml_dtypes
import numpy as np

Array = np.ndarray
DType = Literal["float64", "float32", "bfloat16", "float16"]

DTYPES: tuple[DType, ...] = get_args(DType)
NUMPY_DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
HALF: tuple[DType, ...] = ("bfloat16", "float16")

Float8 = Literal["float8_e4m3fn", "float8_e5m2"]
FLOAT8: dict[str, np.dtype] = {
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
Mode = Literal["nearest_even", "nearest_away", "toward_zero"]
"""How to round: to nearest with ties to even, to nearest with ties away from zero, or by cutting off."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """A rounding to a dtype, or to x's own, in one of the modes."""

    dtype: DType | Float8 | Literal["storage"]
    mode: Mode = "nearest_even"


def compute_dtype(storage_dtype: str) -> DType:
    """The dtype of an honest implementation's statistics and sums: float32, or float64 for float64."""
    return "float64" if storage_dtype == "float64" else "float32"


def unit_roundoff(dtype: str) -> float:
    """Half the distance from 1 to the next number: the largest relative error of one rounding."""
    return 2.0 ** -(ml_dtypes.finfo(NUMPY_DTYPES[dtype]).nmant + 1)


def storage_dtype(u: float) -> DType:
    """The dtype that has this unit roundoff."""
    return next(dtype for dtype in DTYPES if unit_roundoff(dtype) == u)


def largest(dtype: str) -> float:
    """The largest finite number of a dtype."""
    return float(ml_dtypes.finfo(NUMPY_DTYPES[dtype]).max)


def smallest(dtype: str) -> float:
    """The smallest positive number of a dtype, a subnormal one."""
    return float(ml_dtypes.finfo(NUMPY_DTYPES[dtype]).smallest_subnormal)


def round_to(x: Array, dtype: str, mode: Mode = "nearest_even") -> Array:
    """Round float64 to a number of `dtype`, to the nearest with ties to even or in another mode, and return it in float64.

    Subnormals and overflow are those of IEEE 754, where rounding toward zero never overflows; a NaN stays a NaN. NumPy rounds
    float64 to float32 and to float16 in one step, but ml_dtypes and torch reach bfloat16 through float32: two roundings, and
    a wrong tie now and then.
    """
    if dtype == "float64":
        return x
    x = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        if mode != "nearest_even" or dtype in FLOAT8:
            return _on_grid(x, dtype, mode)
        return _to_bfloat16(x) if dtype == "bfloat16" else x.astype(NUMPY_DTYPES[dtype]).astype(np.float64)


def _on_grid(x: Array, dtype: str, mode: Mode) -> Array:
    """Round to a multiple of the unit in the last place; numbers too large for an 8-bit dtype become its largest."""
    info = ml_dtypes.finfo(FLOAT8.get(dtype) or NUMPY_DTYPES[dtype])
    exponent = np.frexp(x)[1] - 1  # of the power of two at or below |x|
    ulp_exponent = np.maximum(exponent, info.minexp) - info.nmant
    rounded = np.ldexp(TO_INTEGER[mode](np.ldexp(x, -ulp_exponent)), ulp_exponent)
    saturates = dtype in FLOAT8 or (mode == "toward_zero" and np.isfinite(x))
    beyond = np.where(saturates, float(info.max), np.inf)
    return np.where(np.abs(rounded) > float(info.max), np.copysign(beyond, x), rounded)


def _half_away(x: Array) -> Array:
    """The nearest integer, ties away from zero."""
    whole = np.trunc(x)
    return whole + np.copysign(np.abs(x - whole) >= 0.5, x)


TO_INTEGER: dict[Mode, Callable[[Array], Array]] = {
    "nearest_even": np.rint,
    "nearest_away": _half_away,
    "toward_zero": np.trunc,
}


def _to_bfloat16(x: Array) -> Array:
    """Round by way of float32, whose numbers that are ties of bfloat16 are first moved a hair towards x, where x is no tie."""
    single = np.asarray(x.astype(np.float32))
    tie = (single.view(np.uint32) & 0xFFFF) == 0x8000
    if tie.any():
        at_tie, exact = single[tie], x[tie]
        towards = np.where(exact == at_tie, at_tie, np.copysign(np.inf, exact - at_tie)).astype(np.float32)
        single[tie] = np.nextafter(at_tie, towards)
    return single.astype(ml_dtypes.bfloat16).astype(np.float64)


def significant_bits(x: Array, bits: int) -> Array:
    """Round float64 to so many significant bits, ties to even, whatever the exponent."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)


def store(x: Array, dtype: str, mode: Mode = "nearest_even") -> Array:
    """`round_to`, as an array of the dtype itself; every NaN gets the same bits."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(x), np.nan, round_to(x, dtype, mode)).astype(NUMPY_DTYPES[dtype])


def ulp(x: Array, dtype: str) -> Array:
    """The distance between neighbouring numbers of `dtype` at x, in float64: above x where x is a power of two."""
    info = ml_dtypes.finfo(NUMPY_DTYPES[dtype])
    _, exponent = np.frexp(x)
    exponent = np.where(x == 0, info.minexp, exponent - 1)  # frexp takes zero for a number between a half and one
    return np.ldexp(1.0, np.maximum(exponent, info.minexp) - info.nmant)
