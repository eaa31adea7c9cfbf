"""float64 to a storage dtype, correctly rounded, once."""

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


def round_to(x: Array, dtype: str) -> Array:
    """Round float64 to the nearest number of `dtype`, ties to even, and return it in float64.

    Subnormals and overflow to infinity are those of IEEE 754. The rounding is done here, on the grid of the dtype,
    because ml_dtypes and torch reach bfloat16 through float32: two roundings, and a wrong tie now and then.
    """
    if dtype == "float64":
        return x
    info = ml_dtypes.finfo(NUMPY_DTYPES[dtype])
    _, exponent = np.frexp(x)  # x = m · 2**exponent with 1/2 <= |m| < 1
    ulp_exponent = np.maximum(exponent - 1, info.minexp) - info.nmant
    rounded = np.ldexp(np.rint(np.ldexp(x, -ulp_exponent)), ulp_exponent)
    return np.where(np.abs(rounded) > float(info.max), np.copysign(np.inf, x), rounded)


def significant_bits(x: Array, bits: int) -> Array:
    """Round float64 to so many significant bits, ties to even, whatever the exponent."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)


def store(x: Array, dtype: str) -> Array:
    """`round_to`, as an array of the dtype itself; every NaN gets the same bits."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(x), np.nan, round_to(x, dtype)).astype(NUMPY_DTYPES[dtype])


def ulp(x: Array, dtype: str) -> Array:
    """The distance between neighbouring numbers of `dtype` at x, in float64: above x where x is a power of two."""
    info = ml_dtypes.finfo(NUMPY_DTYPES[dtype])
    _, exponent = np.frexp(x)
    return np.ldexp(1.0, np.maximum(exponent - 1, info.minexp) - info.nmant)
