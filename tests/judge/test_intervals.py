"""The intervals of every case: well formed, around the golden, growing with the noise, and no wider than they must be."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from conformance.numbers.expected import Expected
from conformance.numbers.rounding import DTYPES, HALF, NUMPY_DTYPES, round_to
from conformance.ops.cases import select
from conformance.ops.draw import Draw
from conformance.ops.golden import golden
from conformance.ops.norms.cases import ROW_NORM_CASES, ROW_NORMS, NormCase

Array = np.ndarray

SCALES = (0.0, 2.0**-6, 0.5, 1.0, 1.5, 64.0, 2.0**20)

of_every_case = pytest.mark.parametrize("case", ROW_NORM_CASES, ids=lambda case: case.id)


def within(inner: tuple[Array, Array], outer: tuple[Array, Array]) -> Array:
    """Where one interval lies in another; a NaN lies in a NaN."""
    low = (outer[0] <= inner[0]) | (np.isnan(outer[0]) & np.isnan(inner[0]))
    return low & ((inner[1] <= outer[1]) | (np.isnan(outer[1]) & np.isnan(inner[1])))


def half_width(expected: Expected) -> Array:
    lower, upper = expected.interval()
    return (upper - lower) / 2


@of_every_case
def test_lower_is_below_upper_and_only_a_nan_has_no_interval(case):
    for name, expected in golden(case).outputs.items():
        lower, upper = expected.lower, expected.upper
        assert lower.shape == upper.shape == expected.value.shape == case.output_shape(name)
        assert lower.dtype == upper.dtype == NUMPY_DTYPES[case.outputs[name]]
        lower, upper, nan = lower.astype(np.float64), upper.astype(np.float64), np.isnan(expected.value)
        assert np.array_equal(np.isnan(lower), nan)
        assert np.array_equal(np.isnan(upper), nan)
        assert np.all((lower <= upper) | nan)
        assert np.all((np.isfinite(lower) & np.isfinite(upper)) | nan)  # an infinite end would admit anything


@of_every_case
def test_only_a_row_with_a_nan_or_an_infinity_has_a_golden_without_numbers(case):
    """And dweight, which adds the rows up."""
    planted = case.x.rows in ("nan_row", "inf_row")
    values = {name: np.isfinite(expected.value) for name, expected in golden(case).outputs.items()}
    assert all(finite.all() for name, finite in values.items() if not planted or name == "dbias")
    assert all(finite[:, 1:].all() for name, finite in values.items() if name in ("y", "dx") and finite.ndim == 3)
    assert not planted or not any(values[name].all() for name in values if name != "dbias")


@pytest.mark.one_in(2)
@of_every_case
def test_the_rounded_golden_is_admissible(case):
    """Even without noise, but for the y of cast_then_scale, which has another golden: x_hat is rounded first."""
    computed = golden(case)
    for name, expected in computed.outputs.items():
        value = expected.value
        if name == "y" and case.dialect.order == "cast_then_scale":
            given = {name: tensor.astype(np.float64) for name, tensor in computed.inputs.items()}
            w, bias = given.get("weight", 1.0) + case.dialect.weight_offset, given.get("bias", 0.0)
            value = round_to(computed.intermediates["x_hat"], case.dtype) * w + bias
        rounded = round_to(value, expected.dtype)
        assert np.all(within((rounded, rounded), expected.interval(0.0)))


@pytest.mark.parametrize("case", [case for case in ROW_NORM_CASES if case.has_fixture], ids=lambda case: case.id)
def test_more_noise_admits_all_that_less_noise_does(case):
    for expected in golden(case).outputs.values():
        intervals = [expected.interval(scale) for scale in SCALES]
        assert all(np.all(within(inner, outer)) for inner, outer in pairwise(intervals))


@pytest.mark.parametrize("op", ROW_NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_noise_there_is_one_answer_per_placement_of_roundings(op, dtype):
    """So one in float32 and float64."""
    for case in select(op=op, dtype=dtype):
        for expected in golden(case).outputs.values():
            assert len(expected.placements) == 1 or dtype in HALF
            if len(expected.placements) == 1:
                lower, upper = expected.interval(0.0)
                assert np.array_equal(lower, upper, equal_nan=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("case", select("*/exact"), ids=lambda case: case.id)
def test_an_exact_case_has_one_admissible_number_an_element(case, seed):
    """In every dtype and dialect, by every placement of roundings, and it is the exact value but for the last rounding."""
    for expected in golden(case, seed).outputs.values():
        lower, upper = expected.interval()
        assert np.array_equal(lower, upper)
        assert np.array_equal(lower, round_to(expected.value, expected.dtype))
        assert np.all(expected.admits(lower))
        assert not np.any(expected.admits(np.nextafter(lower, np.inf)))


@pytest.mark.parametrize("case", select("*/exact"), ids=lambda case: case.id)
def test_no_number_of_an_exact_case_is_rounded(case):
    """Statistics, paths of dx and their partial sums: all are numbers of x's dtype."""
    computed = golden(case)
    given = {name: tensor.astype(np.float64) for name, tensor in computed.inputs.items()}
    x, g = given["x"], given["dy"] * given["weight"]
    x_hat, shift = 2 * x, np.mean(g, axis=-1, keepdims=True) if case.op == "layer_norm" else np.zeros_like(x)
    direct, through_mean, through_rstd = 2 * g, -2 * shift, -2 * x_hat * np.mean(g * x_hat, axis=-1, keepdims=True)
    numbers = [x_hat, g, direct, through_mean, through_rstd, through_rstd / 2, direct + through_rstd / 2]
    numbers += [direct + through_rstd, direct + through_mean, through_mean + through_rstd, direct + through_mean + through_rstd]
    assert np.all(computed.intermediates["rstd"] == 2)
    for each in numbers:
        assert np.array_equal(round_to(each, case.dtype), each)


@pytest.mark.parametrize(("dtype", "narrower"), [("float64", "float32"), ("float32", "bfloat16"), ("float32", "float16")])
def test_an_exact_case_is_not_exact_in_a_narrower_dtype(dtype, narrower):
    for case in select("*/exact", dtype=dtype):
        outputs = golden(case).outputs
        for name in ("y", "dx"):
            assert np.all(round_to(outputs[name].value, narrower) != outputs[name].value)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("order", "share"), [("scale_then_cast", 0.95), ("cast_then_scale", 0.85)])
def test_in_half_precision_most_of_y_has_one_admissible_value(dtype, order, share):
    """99 % (bfloat16) and 96 % (float16); where the cast comes first LayerNorm may round before the bias or not."""
    cases = [case for case in ROW_NORM_CASES if case.dtype == dtype and case.dialect.order == order]
    widths = np.concatenate([half_width(golden(case).outputs["y"]).ravel() for case in cases])
    assert np.mean(widths[~np.isnan(widths)] == 0) > share


def test_in_half_precision_none_of_rms_norms_y_has_more_than_two():
    """The numbers on either side of a tie."""
    for case in select("rms_norm/scale_then_cast*"):
        if case.x.rows not in ("nan_row", "inf_row"):
            lower, upper = golden(case).outputs["y"].lower, golden(case).outputs["y"].upper
            assert np.all(upper <= np.nextafter(lower, np.full_like(lower, np.inf)))


def offset_by(mean: float, op: str) -> NormCase:
    """The same noise around another mean: the name, and so the draw, stays."""
    (case,) = select(f"{op}/either_order/float32/random")
    return replace(case, x=Draw(offset=mean))


@pytest.mark.parametrize("output", ["y", "dx", "dweight"])
def test_layer_norms_half_widths_grow_with_the_mean_over_the_deviation(output):
    """Which is the conditioning of the subtraction: no scalar tolerance knows it."""
    near, far = (np.median(half_width(golden(offset_by(mean, "layer_norm")).outputs[output])) for mean in (1e2, 1e4))
    assert far / near == pytest.approx(100, rel=0.15)


@pytest.mark.parametrize("output", ["y", "dweight"])
def test_rms_norms_half_widths_do_not(output):
    near, far = (np.median(half_width(golden(offset_by(mean, "rms_norm")).outputs[output])) for mean in (1e2, 1e4))
    assert far / near == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("op", ROW_NORMS)
def test_benign_float32_is_judged_to_a_few_roundings(op):
    """In units of float32's unit roundoff, relative to the largest y."""
    (case,) = select(f"{op}/either_order/float32/random")
    y = golden(case).outputs["y"]
    assert 2 < np.max(half_width(y)) / np.max(np.abs(y.value)) / 2.0**-24 < 32


def test_float64_is_judged_alike_but_for_the_goldens_own_share():
    wide, narrow = (
        np.median(half_width(golden(case).outputs["y"]) / np.abs(golden(case).outputs["y"].value))
        for dtype in ("float32", "float64")
        for case in select(f"rms_norm/either_order/{dtype}/random")
    )
    assert wide / narrow == pytest.approx(2.0**29 / 2, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_norm_of_width_one_returns_its_bias_exactly(dtype):
    """One feature is its own mean. x_hat and dweight are zero, whatever x, with no room for noise."""
    for case in select("*/width_1", op="layer_norm", dtype=dtype):
        outputs = golden(case).outputs
        assert np.all(golden(case).intermediates["x_hat"] == 0)
        assert (outputs["dweight"].lower, outputs["dweight"].upper) == (0, 0)
        bias = golden(case).inputs["bias"].astype(np.float64)
        assert np.all(outputs["y"].value == bias)
        assert np.all(half_width(outputs["y"]) <= 8 * 2.0**-24 * np.abs(bias))
