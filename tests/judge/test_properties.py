"""The judging of properties, without a port: two answers compared, and the scale of rows."""

import numpy as np
import pytest

from conformance.golden import Golden
from conformance.norms.cases import NormCase
from conformance.properties import BY_ID, PROPERTIES, difference, verdict
from conformance.rounding import DTYPES, HALF, round_to, ulp
from conformance.row_scale import row_scale
from conformance.variants import FEW_ROWS, MANY_ROWS, kinds, questions

SIZE = 1_000
ONES, NOWHERE, EVERYWHERE = np.ones(SIZE), np.zeros(SIZE), np.full(SIZE, 0.5)
ALL = np.ones(SIZE, bool)


def changed(count: int, by: float) -> np.ndarray:
    return np.where(np.arange(SIZE) < count, 1 + by, 1.0)


def status(property_: str, actual: np.ndarray, width: np.ndarray, dtype: str = "bfloat16") -> str:
    differences = [difference("y", ONES, actual, width, ALL, dtype)]
    return verdict(BY_ID[property_], kinds()[0], "asked again", differences).status


def test_the_same_bits_hold():
    assert status("repeatable", ONES, NOWHERE) == "holds"


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_must_be_the_same_to_the_bit_may_not_differ_in_one(dtype):
    one_bit = changed(1, float(ulp(np.ones(()), dtype)))
    assert status("repeatable", one_bit, EVERYWHERE, dtype) == "violated"
    assert status("row_count", one_bit, EVERYWHERE, dtype) == "rounding"


@pytest.mark.parametrize(
    ("by", "expected"), [(0.5, "rounding"), (0.75, "violated"), (np.nan, "violated"), (np.inf, "violated")]
)
def test_two_honest_answers_differ_by_the_width_of_an_interval(by, expected):
    actual = ONES.copy()
    actual[3] += by
    assert status("layout", actual, EVERYWHERE) == expected


@pytest.mark.parametrize(("count", "expected"), [(20, "rounding"), (30, "violated"), (260, "violated")])
def test_an_ulp_where_one_value_is_admitted_is_a_rare_event(count, expected):
    assert status("mode", changed(count, 2.0**-7), NOWHERE) == expected


def test_an_honest_port_may_differ_wherever_two_values_are_admitted():
    assert status("mode", changed(SIZE, 2.0**-7), np.full(SIZE, 2.0**-7)) == "rounding"


def test_nan_and_infinity_equal_themselves():
    odd = np.where(np.arange(SIZE) % 2, np.nan, np.inf)
    assert difference("y", odd, odd, NOWHERE, ALL, "float32").differing == 0
    assert difference("y", odd, -odd, NOWHERE, ALL, "float32").beyond == SIZE / 2


def test_the_worst_element_is_named():
    actual = ONES.copy()
    actual[[3, 7]] = 1.25, 1.5
    worst = difference("dx", ONES, actual, NOWHERE, ALL, "bfloat16")
    assert (worst.index, worst.expected, worst.actual, worst.differing, worst.ulps) == ((7,), 1.0, 1.5, 2, 64)
    assert "2 of 1000 elements of dx differ (0.2%), 2 by more than two honest answers can" in worst.words
    assert "dx[7]: 1.5, not 1 (64 ulp)" in worst.words


def test_what_is_not_judged_may_be_anything():
    assert difference("y", ONES, changed(5, np.nan), NOWHERE, np.arange(SIZE) >= 5, "float32").differing == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_ulp_is_the_step_to_the_next_number(dtype):
    for x in (1.0, 1.5, 3.0, 2.0**-20, 2.0**-24 if dtype == "float16" else 2.0**-126):
        step = float(ulp(np.array(x), dtype))
        assert round_to(np.array(x + step), dtype) == x + step
        assert round_to(np.array(x + 0.25 * step), dtype) == x


def many_rows(kind: NormCase, seed: int = 0) -> Golden:
    return next(question.golden for question in questions(kind, seed) if question.measured)


def rounded(measured: Golden) -> np.ndarray:
    """What an implementation without noise returns."""
    expected = measured.outputs["y"]
    return round_to(expected.placements[0](0.0)[0], expected.dtype)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.id)
def test_correct_rounding_has_the_right_scale(kind):
    for seed in range(3):
        scale = row_scale(many_rows(kind, seed), rounded(many_rows(kind, seed)))
        assert scale.rows == 256
        assert scale.mean == 0
        assert scale.holds


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.dtype in HALF], ids=lambda kind: kind.id)
def test_rounding_in_other_places_moves_no_mean(kind):
    """The y of the other order. One rounding less is within the limits; one more is more scattered than they allow for."""
    casts_first = kind.dialect.order == "cast_then_scale"
    for seed in range(3):
        measured = many_rows(kind, seed)
        x_hat, y = measured.intermediates["x_hat"], measured.outputs["y"].value
        weight = measured.inputs["weight"].astype(np.float64)
        y = y if casts_first else y + weight * (round_to(x_hat, kind.dtype) - x_hat)
        scale = row_scale(measured, round_to(y, kind.dtype))
        assert abs(scale.z) < 4
        assert abs(scale.mean) < scale.mean_limit / 2
        assert scale.holds if casts_first else scale.spread > 1.2 * scale.rounding


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.id)
@pytest.mark.parametrize("factor", [1 - 1 / (2 * 768), 1 + 1 / (2 * 768)])
def test_a_factor_of_the_rows_is_measured(kind, factor):
    measured = many_rows(kind)
    expected = measured.outputs["y"]
    bias = measured.inputs["bias"].astype(np.float64) if kind.bias else 0.0
    scale = row_scale(measured, round_to((expected.value - bias) * factor + bias, expected.dtype))
    assert scale.mean == pytest.approx(factor - 1, rel=0.1)
    assert abs(scale.z) > 30
    assert not scale.holds


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_row_that_is_no_number_is_no_scale(broken):
    measured = many_rows(kinds()[0])
    y = rounded(measured)
    y[0, 0, 0] = broken
    assert not row_scale(measured, y).holds


def test_every_variant_is_about_a_property_and_within_the_range_of_its_dtype():
    """Nothing overflows, and what is scaled is scaled exactly."""
    for kind in kinds():
        for question in questions(kind, 0):
            assert question.golden.case.shape in (FEW_ROWS, MANY_ROWS)
            for expected in question.golden.outputs.values():
                assert np.all(np.abs(expected.value) * 8 < 65504)
            for variant in question.variants:
                assert variant.property in BY_ID
                assert variant.given["x"].shape == variant.case.shape
                assert {tensor.dtype for tensor in variant.given.values()} <= {
                    tensor.dtype for tensor in question.golden.inputs.values()
                }
                for name, tensor in variant.given.items() if variant.scaled else ():
                    before, after = question.golden.inputs[name].astype(np.float64), tensor.astype(np.float64)
                    assert np.array_equal(after, before) or np.array_equal(after, 8 * before)


def test_every_property_is_said_in_words():
    for each in PROPERTIES:
        assert each.sentence
        assert each.consequence
        assert each.sentence != each.consequence


def test_kinds_of_several_ops_and_dtypes():
    two = kinds(("rms_norm", "layer_norm"), ("float32", "float16"))
    assert two == tuple(case for case in kinds() if case.dtype in ("float32", "float16"))
    assert {case.dtype for case in kinds("rms_norm", "float16")} == {"float16"}  # and not bfloat16, which ends in it
