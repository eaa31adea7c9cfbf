"""`round_to` and `store` against the definition of rounding, in exact rational arithmetic."""

import math
from fractions import Fraction
from typing import get_args

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.numpy import save

from conformance.numbers.rounding import DTYPES, FORMATS, HALF, NUMPY_DTYPES, SINGLE, Float8, round_to, store, ulp

# IEEE 754: bits of precision, and the exponents of the smallest and the largest normal number.
IEEE_754 = {"float32": (24, -126, 127), "bfloat16": (8, -126, 127), "float16": (11, -14, 15)}
FLOAT8 = get_args(Float8)

of_every_dtype = pytest.mark.parametrize("dtype", DTYPES)
of_narrow_dtypes = pytest.mark.parametrize("dtype", IEEE_754)
reproducible = settings(derandomize=True, database=None, deadline=None, max_examples=400)


def nearest(x: float, dtype: str) -> float:
    """The number of `dtype` nearest to x, ties to even, which is how Python rounds a fraction to an integer."""
    if x == 0 or math.isinf(x):
        return x
    precision, least, greatest = IEEE_754[dtype]
    exact = Fraction(x)
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()  # 2**exponent <= |x| < 2**(exponent + 1)
    ulp = Fraction(2) ** (max(exponent, least) - precision + 1)
    rounded = round(exact / ulp) * ulp
    return math.copysign(math.inf if abs(rounded) >= Fraction(2) ** (greatest + 1) else abs(float(rounded)), x)


def in_mode(x: float, dtype: str, mode: str) -> float:
    """The number of `dtype` that another mode of rounding gives, in exact rational arithmetic."""
    if x == 0 or math.isinf(x):
        return x
    precision, least, greatest = IEEE_754[dtype]
    exact = abs(Fraction(x))
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    exponent -= exact < Fraction(2) ** exponent  # 2**exponent <= |x| < 2**(exponent + 1)
    ulp = Fraction(2) ** (max(exponent, least) - precision + 1)
    if mode == "toward_zero":
        end = (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** greatest
        return math.copysign(float(min(math.floor(exact / ulp) * ulp, end)), x)
    rounded = math.floor(exact / ulp + Fraction(1, 2)) * ulp
    return math.copysign(math.inf if rounded >= Fraction(2) ** (greatest + 1) else float(rounded), x)


def anything() -> st.SearchStrategy[float]:
    """Any number, but those that round up past the end of float64 itself, where NumPy warns."""
    return st.floats(-1e308, 1e308) | st.sampled_from([math.inf, -math.inf])


@st.composite
def close_calls(draw: st.DrawFn, dtype: str) -> float:
    """Numbers of `dtype` and the ties between them, hit or missed by a hair: normal, subnormal and overflowing ones."""
    precision, least, greatest = IEEE_754[dtype]
    halves = draw(st.integers(-(2 ** (precision + 1)), 2 ** (precision + 1)))
    hair = draw(st.sampled_from([0.0, 2.0**-10, -(2.0**-10), 2.0**-26, -(2.0**-26)]))
    return math.ldexp(halves + hair, draw(st.integers(least - precision, greatest - precision + 1)))


@of_narrow_dtypes
@reproducible
@given(data=st.data())
def test_the_nearest_number_ties_to_even(dtype, data):
    x = data.draw(anything() | close_calls(dtype))
    rounded, stored = round_to(np.array([x]), dtype), store(np.array([x]), dtype)
    assert (rounded.dtype, stored.dtype) == (np.float64, NUMPY_DTYPES[dtype])
    assert rounded.tobytes() == np.array([nearest(x, dtype)]).tobytes()  # bytes tell -0 from 0
    assert stored.astype(np.float64).tobytes() == rounded.tobytes()


def on_the_grid(x: np.ndarray, dtype: str) -> np.ndarray:
    """The rounding written as its definition: to a multiple of the unit in the last place, ties to even."""
    precision, least, greatest = IEEE_754[dtype]
    ulp_exponent = np.maximum(np.frexp(x)[1] - 1, least) - (precision - 1)
    rounded = np.ldexp(np.rint(np.ldexp(x, -ulp_exponent)), ulp_exponent)
    return np.where(np.abs(rounded) >= 2.0 ** (greatest + 1), np.copysign(np.inf, x), rounded)


def bit_patterns(dtype: str) -> np.ndarray:
    """A million float64 numbers: any bits at all, and numbers of the dtype and ties between them with a few bits flipped."""
    precision, least, greatest = IEEE_754[dtype]
    generator = np.random.Generator(np.random.PCG64(0))
    anything = generator.integers(0, 2**64, 400_000, np.uint64, endpoint=False).view(np.float64)
    halves = generator.integers(-(2 ** (precision + 1)), 2 ** (precision + 1), 600_000).astype(np.float64)
    close = np.ldexp(halves, generator.integers(least - precision, greatest - precision + 2, halves.size))
    flipped = generator.choice(np.array([0, 1, 2**20, 2**28], np.uint64), halves.size)
    return np.concatenate([anything, (close.view(np.uint64) ^ flipped).view(np.float64)])


@of_narrow_dtypes
def test_every_bit_is_that_of_the_definition(dtype):
    """Normal, subnormal and overflowing numbers, ties, infinities, signed zeros and NaNs, together and one by one."""
    x = bit_patterns(dtype)
    with np.errstate(all="ignore"):
        expected = on_the_grid(x, dtype)
    rounded, nan = round_to(x, dtype), np.isnan(x)
    assert np.isnan(rounded[nan]).all()
    assert rounded[~nan].tobytes() == expected[~nan].tobytes()
    assert min(nan.sum(), np.isinf(expected).sum(), ((x != 0) & (expected == 0)).sum()) > 100
    assert all(round_to(x[i : i + 1], dtype).tobytes() == expected[i : i + 1].tobytes() for i in range(400_000, 402_000))


@of_narrow_dtypes
@pytest.mark.parametrize("mode", ["toward_zero", "nearest_away"])
@reproducible
@given(data=st.data())
def test_the_other_modes_of_rounding(dtype, mode, data):
    x = data.draw(anything() | close_calls(dtype))
    expected = np.array([in_mode(x, dtype, mode)])
    assert round_to(np.array([x]), dtype, mode).tobytes() == expected.tobytes()
    assert store(np.array([x]), dtype, mode).astype(np.float64).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", FLOAT8)
def test_eight_bits_are_those_of_ml_dtypes_up_to_the_largest(dtype):
    """Float16 holds every number of eight bits and every tie between two, so ml_dtypes rounds it once."""
    x = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)
    end = FORMATS[dtype].largest
    x = x[np.abs(x) <= end]
    assert round_to(x, dtype).tobytes() == x.astype(np.float16).astype(FORMATS[dtype].storage).astype(np.float64).tobytes()
    assert round_to(np.array([1e30, -1e30, np.nan]), dtype)[:2].tolist() == [end, -end]


@of_narrow_dtypes
def test_a_view_of_any_strides_is_rounded(dtype):
    x = np.linspace(-3, 3, 60).reshape(3, 4, 5)
    for view in (x.T, x[:, ::2], np.broadcast_to(x[0, 0], (2, 5)), x[0, 0, 0]):
        np.testing.assert_array_equal(round_to(view, dtype), on_the_grid(view, dtype))


@reproducible
@given(x=st.floats(allow_nan=False))
def test_float64_is_left_alone(x):
    assert round_to(np.array([x]), "float64").tobytes() == store(np.array([x]), "float64").tobytes() == np.array([x]).tobytes()


@of_narrow_dtypes
def test_the_ends_of_the_range(dtype):
    precision, least, greatest = IEEE_754[dtype]
    largest, tiniest = math.ldexp(2 - 2.0 ** (1 - precision), greatest), math.ldexp(1, least - precision + 1)
    to_infinity = largest + math.ldexp(1, greatest - precision)  # halfway to the number that would come next
    x = [largest, np.nextafter(to_infinity, 0), to_infinity, -to_infinity]
    x += [tiniest, np.nextafter(tiniest / 2, 1), tiniest / 2, -tiniest / 2]
    expected = [largest, largest, np.inf, -np.inf, tiniest, tiniest, 0.0, -0.0]
    assert round_to(np.array(x), dtype).tobytes() == np.array(expected).tobytes()


@of_every_dtype
def test_infinities_zeros_and_nan_stay_what_they_are(dtype):
    x = np.array([np.inf, -np.inf, 0.0, -0.0])
    assert round_to(x, dtype).tobytes() == store(x, dtype).astype(np.float64).tobytes() == x.tobytes()
    assert np.isnan(round_to(np.array([np.nan]), dtype)).all()


@of_every_dtype
def test_store_gives_every_nan_the_same_bits(dtype):
    words = [0x7FF8_0000_0000_0000, 0xFFF8_0000_0000_0000, 0x7FF8_0000_0000_0001, 0xFFFF_FFFF_FFFF_FFFF]
    nans = np.array(words, np.uint64).view(np.float64)
    stored = store(nans, dtype)
    assert np.isnan(stored.astype(np.float64)).all()
    assert len({nan.tobytes() for nan in stored}) == 1


@reproducible
@given(values=st.lists(anything() | close_calls("float32"), min_size=1))
def test_numpy_rounds_float64_to_float32_alike(values):
    with np.errstate(over="ignore", under="ignore"):
        cast = np.array(values).astype(np.float32)
    assert store(np.array(values), "float32").tobytes() == cast.tobytes()


@pytest.mark.parametrize("dtype", HALF)
def test_one_rounding_where_a_stop_at_float32_makes_two(dtype):
    """A hair above a tie is rounded up. Float32 cannot hold the hair; the tie goes to even, down."""
    half_ulp = FORMATS[dtype].unit_roundoff
    x = np.array([1 + half_ulp + 2.0**-40])
    assert store(x, dtype).astype(np.float64) == [1 + 2 * half_ulp]
    assert x.astype(np.float32).astype(NUMPY_DTYPES[dtype]).astype(np.float64) == [1]


def test_ml_dtypes_stops_at_float32():
    """Why `round_to` exists: when this fails, ml_dtypes has learnt to round float64 to bfloat16 once."""
    assert np.array([1 + 2.0**-8 + 2.0**-40]).astype(ml_dtypes.bfloat16).astype(np.float64) == [1]


@of_narrow_dtypes
def test_the_unit_roundoff_is_the_largest_relative_error(dtype):
    u = FORMATS[dtype].unit_roundoff
    assert u == 2.0 ** -IEEE_754[dtype][0]
    assert round_to(np.array([1 + u, 1 + 3 * u]), dtype).tolist() == [1, 1 + 4 * u]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_numbers_next_to_zero_are_the_smallest(dtype):
    assert ulp(np.zeros(2), dtype).tolist() == [FORMATS[dtype].smallest] * 2


@pytest.mark.parametrize("mode", ["nearest_even", "nearest_away", "toward_zero"])
def test_an_integer_of_eight_bits_saturates_as_a_conversion_does(mode):
    x = np.array([-1e30, -128.5, -127.5, -2.5, -0.5, 0.5, 1.5, 126.5, 127.4, 300.0])
    expected = {
        "nearest_even": [-128, -128, -128, -2, 0, 0, 2, 126, 127, 127],
        "nearest_away": [-128, -128, -128, -3, -1, 1, 2, 127, 127, 127],
        "toward_zero": [-128, -128, -127, -2, 0, 0, 1, 126, 127, 127],
    }
    assert round_to(x, "int8", mode).tolist() == expected[mode]
    assert store(x, "int8", mode).tolist() == expected[mode]


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8])
def test_a_format_is_as_ml_dtypes_has_it(dtype):
    its, info = FORMATS[dtype], ml_dtypes.finfo(FORMATS[dtype].storage)
    assert its.storage.name == dtype
    assert its.bits == info.bits
    assert its.largest == float(info.max)
    assert its.smallest == float(info.smallest_subnormal)
    assert its.smallest_normal == float(info.smallest_normal)
    assert its.unit_roundoff == float(info.eps) / 2


def test_halves_are_computed_in_a_wider_dtype():
    assert (SINGLE, HALF) == (("float64", "float32"), ("bfloat16", "float16"))
    assert {dtype: FORMATS[dtype].compute_dtype for dtype in SINGLE} == {dtype: dtype for dtype in SINGLE}
    assert {FORMATS[dtype].compute for dtype in (*HALF, *FLOAT8)} == {FORMATS["float32"]}


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_format_says_what_safetensors_calls_it(dtype):
    tensor = np.zeros(2, FORMATS[dtype].storage)
    ((_, entry),) = deserialize(save({"x": tensor}))
    assert entry["dtype"] == FORMATS[dtype].safetensors
