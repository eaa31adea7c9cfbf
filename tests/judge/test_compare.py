"""`compare`: what passes, what fails and where, what cannot be judged at all, and what the error ratio means."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.judging.compare import FINEST, Verdict, compare, compare_output, error_ratio
from conformance.judging.simulation import STYLES, play
from conformance.mistakes import MISTAKES
from conformance.numbers.expected import Expected
from conformance.numbers.rounding import DTYPES, NUMPY_DTYPES, store
from conformance.ops.cases import select
from conformance.ops.golden import Golden, golden
from conformance.ops.norms.cases import ROW_NORMS, NormCase

Array = np.ndarray

BY_ID = {mistake.id: mistake for mistake in MISTAKES}
reproducible = settings(derandomize=True, database=None, deadline=None)


def only(id_: str) -> NormCase:
    (case,) = select(id_)
    return case


RANDOM = only("layer_norm/either_order/float32/random")
NAN_ROW = only("layer_norm/either_order/float32/nan_row")


def right(expected: Golden) -> dict[str, Array]:
    """What a port without any noise returns."""
    return {name: store(output.interval(0.0)[0], output.dtype) for name, output in expected.outputs.items()}


def judge(case: NormCase, **changed: Array | None) -> Verdict:
    """The right outputs, some of them changed; None leaves one out."""
    outputs = right(golden(case)) | changed
    given = {name: output for name, output in outputs.items() if output is not None}
    return compare("port", golden(case), given, tuple(case.outputs))


def with_element(case: NormCase, output: str, index: tuple[int, ...], value: float) -> Array:
    array = right(golden(case))[output]
    array[index] = value
    return array


@pytest.mark.parametrize("op", ROW_NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_golden_itself_passes_with_ratio_zero(op, dtype):
    for case in select(op=op, dtype=dtype):
        verdict = judge(case)
        assert (verdict.status, verdict.ratio, verdict.message) == ("pass", 0, "")
        assert [(output.output, output.outside, output.worst) for output in verdict.outputs] == [
            (name, 0, None) for name in case.outputs
        ]


@pytest.mark.parametrize("name", RANDOM.outputs)
def test_one_wrong_element_fails_and_is_found(name):
    index = (1, 2, 30)[-len(RANDOM.output_shape(name)) :]
    verdict = judge(RANDOM, **{name: with_element(RANDOM, name, index, 123.0)})
    assert (verdict.port, verdict.case, verdict.status) == ("port", RANDOM, "fail")
    assert {output.output: output.outside for output in verdict.outputs} == dict.fromkeys(RANDOM.outputs, 0) | {name: 1}
    (output,) = [output for output in verdict.outputs if output.output == name]
    expected = golden(RANDOM).outputs[name]
    assert output.worst is not None
    assert (output.worst.index, output.worst.actual) == (index, 123.0)
    assert output.worst.expected == expected.value[index]
    assert (output.worst.lower, output.worst.upper) == (expected.lower[index], expected.upper[index])
    assert output.size == expected.value.size
    assert output.ratio == verdict.ratio > 1e3


def test_the_worst_element_is_the_one_furthest_off_in_its_own_units():
    """Not the one with the largest error: forty half-widths of a narrow interval are worse than thirty of a wide one."""
    expected = golden(RANDOM).outputs["y"]
    lower, upper = expected.interval()
    half_width = (upper - lower) / 2
    narrow, wide = (np.unravel_index(find(half_width), RANDOM.shape) for find in (np.argmin, np.argmax))
    y = expected.value.copy()
    y[narrow] += 40 * half_width[narrow]
    y[wide] += 30 * half_width[wide]
    assert abs(y - expected.value)[wide] > abs(y - expected.value)[narrow]
    output = compare_output("y", expected, store(y, "float32"))
    assert output.outside == 2
    assert output.worst is not None
    assert output.worst.index == narrow


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", RANDOM.outputs)
def test_no_noise_explains_a_nan_or_an_infinity(value, name):
    index = (0, 0, 5)[-len(RANDOM.output_shape(name)) :]
    changed = with_element(RANDOM, name, index, value)
    changed[..., 7] = 1e4  # a wrong NaN is the worst even beside this
    verdict = judge(RANDOM, **{name: changed})
    (output,) = [output for output in verdict.outputs if output.output == name]
    assert (verdict.status, verdict.ratio) == ("fail", np.inf)
    assert output.worst is not None
    assert output.worst.index == index


@pytest.mark.parametrize("value", [0.0, 1.0, np.inf])
def test_where_the_golden_is_nan_nothing_else_passes(value):
    verdict = judge(NAN_ROW, y=with_element(NAN_ROW, "y", (0, 0, 1), value))
    assert (verdict.status, verdict.ratio, verdict.outputs[0].outside) == ("fail", np.inf, 1)
    assert verdict.outputs[0].worst is not None
    assert verdict.outputs[0].worst.index == (0, 0, 1)


def test_any_nan_is_a_nan():
    nan = np.array(0xFFC12345, np.uint32).view(np.float32)
    assert judge(NAN_ROW, y=with_element(NAN_ROW, "y", (0, 0, 1), nan)).status == "pass"


def test_zero_passes_for_minus_zero():
    case = only("rms_norm/either_order/float32/zero_rows")
    y = right(golden(case))["y"]
    for zero in 0.0, -0.0:
        assert judge(case, y=np.where(y == 0, np.float32(zero), y)).ratio == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dx": None}, "output 'dx' is missing: the port returned dbias, dweight, y"),
        (dict.fromkeys(RANDOM.outputs), "output 'y' is missing: the port returned nothing"),
        ({"y": np.zeros((6, 33), np.float32)}, r"y has shape \[6, 33\]; expected \[2, 3, 33\]"),
        ({"dweight": np.zeros((1, 33), np.float32)}, r"dweight has shape \[1, 33\]; expected \[33\]"),
    ],
)
def test_what_cannot_be_judged_is_an_error_that_says_why(changed, message):
    verdict = judge(RANDOM, **changed)
    assert (verdict.status, verdict.outputs) == ("error", ())
    assert re.fullmatch(message, verdict.message)


def test_a_wrong_dtype_fails_whatever_the_values():
    outputs = right(golden(RANDOM))
    verdict = judge(RANDOM, y=outputs["y"].astype(np.float64), dbias=np.zeros(33, np.int32))
    assert (verdict.status, verdict.message) == ("fail", "y is float64; expected float32; dbias is int32; expected float32")
    assert [output.passes for output in verdict.outputs] == [False, True, True, False]
    assert verdict.outputs[0].outside == 0
    assert verdict.ratio == np.inf


def test_a_promoted_y_fails_in_either_direction():
    for id_, dtype, wrong in [
        ("rms_norm/cast_then_scale_float32_weight/bfloat16/random", "float32", "bfloat16"),
        ("rms_norm/scale_then_cast_float32_weight/bfloat16/random", "bfloat16", "float32"),
    ]:
        case = only(id_)
        y = right(golden(case))["y"]
        assert y.dtype == NUMPY_DTYPES[dtype]
        assert f"y is {wrong}; expected {dtype}" in judge(case, y=y.astype(NUMPY_DTYPES[wrong])).message


def test_only_what_is_asked_is_judged():
    expected = golden(RANDOM)
    outputs = {"y": right(expected)["y"], "dx": np.zeros(3)}
    verdict = compare("port", expected, outputs, ("y",))
    assert verdict.status == "pass"
    assert [output.output for output in verdict.outputs] == ["y"]


def test_an_empty_batch_passes_and_its_gradients_are_zero():
    case = only("layer_norm/either_order/float32/rows_0")
    verdict = judge(case)
    assert (verdict.status, verdict.ratio) == ("pass", 0)
    assert [output.size for output in verdict.outputs] == [0, 0, 33, 33]
    assert judge(case, dweight=np.ones(33, np.float32)).ratio == np.inf
    assert judge(case, dbias=np.full(33, np.nan, np.float32)).status == "fail"
    assert judge(case, y=np.zeros((1, 33), np.float32)).status == "error"


@pytest.mark.parametrize("op", ROW_NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_interval_pass_and_the_next_numbers_do_not(op, dtype):
    for case in select("*/random", op=op, dtype=dtype):
        for name, expected in golden(case).outputs.items():
            for end, beyond in (expected.lower, -np.inf), (expected.upper, np.inf):
                inside = compare_output(name, expected, end)
                assert inside.outside == 0
                assert inside.ratio <= 1
                outside = compare_output(name, expected, np.nextafter(end, np.full_like(end, beyond)))
                assert outside.outside == outside.size
                assert outside.ratio > 1


@reproducible
@given(
    noise=st.floats(-1e6, 1e6) | st.floats(0.9, 1.3), index=st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 32))
)
def test_the_ratio_is_the_error_in_half_widths(noise, index):
    """Within the search's first and last step and roundings to float32. It is at most 1 exactly where y passes."""
    expected = golden(RANDOM).outputs["y"]
    lower, upper = (end[index] for end in expected.interval())
    half_width = (upper - lower) / 2
    y = right(golden(RANDOM))["y"]
    y[index] = expected.value[index] + noise * half_width
    output = compare_output("y", expected, y)
    assert (output.ratio <= 1) == (output.outside == 0) == (output.worst is None)
    rounding = 2 * np.spacing(np.abs(y[index])) / half_width
    assert abs(noise) * 0.85 - rounding <= output.ratio <= max(abs(noise) * 1.35, FINEST) + 1.15 * rounding


@pytest.mark.parametrize("op", ROW_NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ratio_never_falls_as_the_error_grows(op, dtype):
    for case in select("*/random", op=op, dtype=dtype):
        expected = golden(case).outputs["y"]
        errors = [0.0, *(2.0**k for k in range(-60, 4))]
        exact = expected.interval(0.0)[0]
        ratios = [compare_output("y", expected, store(exact * (1 + error), expected.dtype)).ratio for error in errors]
        assert ratios == sorted(ratios)
        assert ratios[0] == 0
        assert ratios[-1] > 1e3


def test_elements_are_counted_by_their_own_intervals_where_all_together_are_too_far_off():
    """One element far off spoils the root mean square of all; it alone is outside."""
    value = np.linspace(1.0, 2.0, 448)
    expected = Expected.around(value, np.full_like(value, 0.5), "float64", rms=0.1)
    actual = value + 0.01
    assert compare_output("out", expected, actual).passes
    actual[7] += 100.0
    output = compare_output("out", expected, actual)
    assert (output.outside, output.size, output.together, output.passes) == (1, 448, False, False)
    assert output.worst is not None
    assert output.worst.index == (7,)


def test_an_output_fails_though_every_element_is_inside():
    value = np.linspace(1.0, 2.0, 448)
    expected = Expected.around(value, np.full_like(value, 0.5), "float64", rms=0.1)
    output = compare_output("out", expected, value + 0.4)
    assert (output.outside, output.together, output.passes) == (0, False, False)
    assert output.worst is not None
    assert output.ratio == pytest.approx(4.0, rel=0.25)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_error_ratio_is_the_least_scale_that_admits_every_element(dtype):
    """Whether it is found at once, for outputs with one placement, or searched for."""
    for number, case in enumerate(select(op="layer_norm", dtype=dtype)[::9]):
        returned = play(case, 0, STYLES[number % len(STYLES)], BY_ID["eps_1e-06"] if number % 2 else None)
        for name, expected in golden(case).outputs.items():
            actual = returned[name].astype(np.float64)
            ratio = error_ratio(expected, actual)
            assert (ratio <= 1) == bool(np.all(expected.admits(actual)))
            if 1 / 16 < ratio < float("inf"):
                assert np.all(expected.admits(actual, 1.3 * ratio))
                assert not np.all(expected.admits(actual, 0.7 * ratio))
