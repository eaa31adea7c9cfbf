"""The dtypes, and float64 rounded to one of them, correctly and once; and the other ways to round, which mistakes take."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import ml_dtypes
import numpy as np

Array = np.ndarray
DType = Literal["float64", "float32", "bfloat16", "float16"]
"""The name of a dtype that cases are asked in."""
Float8 = Literal["float8_e4m3fn", "float8_e5m2"]
"""The name of one that is only rounded to."""
QuantisedDType = Literal[Float8, "int8"]
"""The name of one that a norm's output is quantised to."""


@dataclass(frozen=True, slots=True)
class Format:
    """What is known of a dtype: its numbers, as IEEE 754 describes a format, and how they are stored.

    significant_bits
        Those of a number's significand, the leading one included.
    min_exponent
        e, where 2^e is the smallest normal number.
    largest
        The largest finite number.
    compute_dtype
        In what an honest implementation takes statistics and sums.
    storage
        The dtype of NumPy, or of ml_dtypes.
    safetensors, dlpack
        What it is called in a safetensors file, and its type code in DLPack.
    saturates
        Whether what is too large becomes the largest number when it is rounded, not infinity.
    """

    significant_bits: int
    min_exponent: int
    largest: float
    compute_dtype: DType
    storage: np.dtype
    safetensors: str
    dlpack: int
    saturates: bool = False

    @property
    def unit_roundoff(self) -> float:
        """Half the distance from 1 to the next number: the largest relative error of one rounding."""
        return 2.0**-self.significant_bits

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number that has all of its bits."""
        return 2.0**self.min_exponent

    @property
    def smallest(self) -> float:
        """The smallest positive number, a subnormal one."""
        return 2.0 ** (self.min_exponent - self.significant_bits + 1)

    @property
    def bits(self) -> int:
        """How many bits a number is stored in."""
        return 8 * self.storage.itemsize

    @property
    def compute(self) -> "Format":
        """The format of its compute dtype."""
        return FORMATS[self.compute_dtype]


# Significant bits, exponent of the smallest normal number, largest number; compute dtype; how it is stored.
FORMATS: dict[str, Format] = {
    "float64": Format(53, -1022, (2 - 2.0**-52) * 2.0**1023, "float64", np.dtype(np.float64), "F64", 2),
    "float32": Format(24, -126, (2 - 2.0**-23) * 2.0**127, "float32", np.dtype(np.float32), "F32", 2),
    "bfloat16": Format(8, -126, (2 - 2.0**-7) * 2.0**127, "float32", np.dtype(ml_dtypes.bfloat16), "BF16", 4),
    "float16": Format(11, -14, (2 - 2.0**-10) * 2.0**15, "float32", np.dtype(np.float16), "F16", 2),
    "float8_e4m3fn": Format(4, -6, 448.0, "float32", np.dtype(ml_dtypes.float8_e4m3fn), "F8_E4M3", 10, saturates=True),
    "float8_e5m2": Format(3, -14, 57344.0, "float32", np.dtype(ml_dtypes.float8_e5m2), "F8_E5M2", 12, saturates=True),
    "int8": Format(8, 7, 127.0, "float32", np.dtype(np.int8), "I8", 0, saturates=True),  # its numbers are all one apart
}
DTYPES: tuple[DType, ...] = get_args(DType)
HALF: tuple[DType, ...] = tuple(dtype for dtype in DTYPES if FORMATS[dtype].bits == 16)
SINGLE: tuple[DType, ...] = tuple(dtype for dtype in DTYPES if FORMATS[dtype].compute_dtype == dtype)
"""Those that are stored as they are computed in."""
QUANTISED_DTYPES: tuple[QuantisedDType, ...] = ("float8_e4m3fn", "float8_e5m2", "int8")
NUMPY_DTYPES = {dtype: FORMATS[dtype].storage for dtype in DTYPES}

RoundingMode = Literal["nearest_even", "nearest_away", "toward_zero"]
"""How to round: to nearest with ties to even, to nearest with ties away from zero, or by cutting off."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """A rounding to a dtype, or to x's own, in one of the modes."""

    dtype: DType | Float8 | Literal["storage"]
    mode: RoundingMode = "nearest_even"


def storage_dtype(u: float) -> DType:
    """The dtype that has this unit roundoff."""
    return next(dtype for dtype in DTYPES if FORMATS[dtype].unit_roundoff == u)


def round_to(x: Array, dtype: str, mode: RoundingMode = "nearest_even") -> Array:
    """Round float64 to a number of `dtype`, to the nearest with ties to even or in another mode, and return it in float64.

    Subnormals and overflow are those of IEEE 754, where rounding toward zero never overflows; a NaN stays a NaN. NumPy rounds
    float64 to float32 and to float16 in one step, but ml_dtypes and torch reach bfloat16 through float32: two roundings, and
    a wrong tie now and then.
    """
    if dtype == "float64":
        return x
    x = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        if mode != "nearest_even" or FORMATS[dtype].saturates:
            return _on_grid(x, dtype, mode)
        return _to_bfloat16(x) if dtype == "bfloat16" else x.astype(FORMATS[dtype].storage).astype(np.float64)


def _on_grid(x: Array, dtype: str, mode: RoundingMode) -> Array:
    """Round to a multiple of the unit in the last place."""
    its = FORMATS[dtype]
    if dtype == "int8":
        return np.clip(TO_INTEGER[mode](x), -its.largest - 1, its.largest)
    exponent = np.frexp(x)[1] - 1  # of the power of two at or below |x|
    ulp_exponent = np.maximum(exponent, its.min_exponent) - (its.significant_bits - 1)
    rounded = np.ldexp(TO_INTEGER[mode](np.ldexp(x, -ulp_exponent)), ulp_exponent)
    saturates = its.saturates or (mode == "toward_zero" and np.isfinite(x))
    beyond = np.where(saturates, its.largest, np.inf)
    return np.where(np.abs(rounded) > its.largest, np.copysign(beyond, x), rounded)


def _half_away(x: Array) -> Array:
    """The nearest integer, ties away from zero."""
    whole = np.trunc(x)
    return whole + np.copysign(np.abs(x - whole) >= 0.5, x)


TO_INTEGER: dict[RoundingMode, Callable[[Array], Array]] = {
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


def store(x: Array, dtype: str, mode: RoundingMode = "nearest_even") -> Array:
    """`round_to`, as an array of the dtype itself; every NaN gets the same bits."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(x), np.nan, round_to(x, dtype, mode)).astype(FORMATS[dtype].storage)


def ulp(x: Array, dtype: str) -> Array:
    """The distance between neighbouring numbers of `dtype` at x, in float64: above x where x is a power of two."""
    its = FORMATS[dtype]
    _, exponent = np.frexp(x)
    exponent = np.where(x == 0, its.min_exponent, exponent - 1)  # frexp takes zero for a number between a half and one
    return np.ldexp(1.0, np.maximum(exponent, its.min_exponent) - (its.significant_bits - 1))
