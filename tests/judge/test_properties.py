"""The judging of properties, without a port: two answers compared, batches, the scale of rows, and whole tensors."""

from collections import Counter

import numpy as np
import pytest

from conformance.judging.simulation import STYLES, play
from conformance.numbers.rounding import DTYPES, HALF, round_to, store, ulp
from conformance.ops.golden import Golden
from conformance.ops.norms.cases import NormCase
from conformance.ops.norms.golden import norm_values
from conformance.ops.norms.tolerances import norm_budget
from conformance.tools.properties.batches import LARGEST, in_words, splits
from conformance.tools.properties.properties import BY_ID, PROPERTIES, difference, verdict
from conformance.tools.properties.row_scale import RowScale, row_scale
from conformance.tools.properties.variants import FEW_ROWS, MANY_ROWS, TIMES, kinds, questions
from conformance.tools.properties.whole_tensor import errors_of, judge_whole, scatter

SIZE = 1_000
ONES, NOWHERE, EVERYWHERE = np.ones(SIZE), np.zeros(SIZE), np.full(SIZE, 0.5)
ALL = np.ones(SIZE, bool)


def changed(count: int, by: float) -> np.ndarray:
    return np.where(np.arange(SIZE) < count, 1 + by, 1.0)


def status(property_: str, actual: np.ndarray, width: np.ndarray, dtype: str = "bfloat16", *, bitwise: bool = False) -> str:
    differences = [difference("y", ONES, actual, width, ALL, dtype)]
    return verdict(BY_ID[property_], kinds()[0], "asked again", differences, bitwise=bitwise).status


def test_the_same_bits_hold():
    assert status("repeatable", ONES, NOWHERE) == "holds"


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_must_be_the_same_to_the_bit_may_not_differ_in_one(dtype):
    one_bit = changed(1, float(ulp(np.ones(()), dtype)))
    assert status("repeatable", one_bit, EVERYWHERE, dtype) == "violated"
    assert status("row_count", one_bit, EVERYWHERE, dtype) == "rounding"


def test_a_server_requires_the_same_bits_of_what_changes_from_request_to_request():
    one_bit = changed(1, 2.0**-7)
    exact = {each.id for each in PROPERTIES if status(each.id, one_bit, EVERYWHERE, bitwise=True) == "violated"}
    always = {each.id for each in PROPERTIES if status(each.id, one_bit, EVERYWHERE) == "violated"}
    assert exact - always == {"row_count", "row_order", "stateless"}


@pytest.mark.parametrize("rows", [256, 100, 64, 5, 2])
def test_splits_have_every_batch_size_and_every_row_once(rows):
    sizes = Counter(part.stop - part.start for split in splits(rows) for part in split)
    for split in splits(rows):
        assert [row for part in split for row in range(part.start, part.stop)] == list(range(rows))
    assert set(range(1, min(LARGEST, rows) + 1)) <= set(sizes)
    assert sizes[1] >= rows


def test_batch_sizes_are_said_in_runs():
    assert in_words({1}) == "batches of 1 row"
    assert in_words({2, 1, 64}) == "batches of 1, 2 and 64 rows"
    assert in_words({3, 5, 6, 7, 8}) == "batches of 3 and 5 to 8 rows"


def test_a_question_is_asked_a_dozen_times():
    few = next(questions(kinds()[0], 0))
    again = [each for each in few.variants if each.property == "repeatable"]
    assert len(again) + 1 == TIMES >= 12
    assert all(np.array_equal(each.given["x"], few.golden.inputs["x"]) for each in again)


def test_what_is_asked_in_between_differs_in_one_thing_at_a_time():
    few = next(questions(kinds("layer_norm", "bfloat16")[0], 0))
    changed = [
        {name for name, tensor in each.given.items() if not np.array_equal(tensor, few.golden.inputs[name])}
        for each in few.variants
        if each.apart
    ]
    assert changed == [{"x", "dy", "weight", "bias"}, {"dy"}, {"weight", "bias"}, {"x"}, {"x", "dy", "weight", "bias"}]


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


def scale_of(measured: Golden, y: np.ndarray) -> RowScale:
    norm, _ = norm_values(measured.case, measured.inputs)
    return row_scale(measured, norm, norm_budget(norm), y)


def rounded(measured: Golden) -> np.ndarray:
    """What an implementation without noise returns."""
    expected = measured.outputs["y"]
    return round_to(expected.placements[0](0.0)[0], expected.dtype).copy()


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.id)
def test_correct_rounding_has_the_right_scale(kind):
    for seed in range(3):
        scale = scale_of(many_rows(kind, seed), rounded(many_rows(kind, seed)))
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
        scale = scale_of(measured, round_to(y, kind.dtype))
        assert abs(scale.z) < 4
        assert abs(scale.mean) < scale.mean_limit / 2
        assert scale.holds if casts_first else scale.spread > 1.2 * scale.rounding


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.id)
@pytest.mark.parametrize("factor", [1 - 1 / (2 * 768), 1 + 1 / (2 * 768)])
def test_a_factor_of_the_rows_is_measured(kind, factor):
    measured = many_rows(kind)
    expected = measured.outputs["y"]
    bias = measured.inputs["bias"].astype(np.float64) if kind.bias else 0.0
    scale = scale_of(measured, round_to((expected.value - bias) * factor + bias, expected.dtype))
    assert scale.mean == pytest.approx(factor - 1, rel=0.1)
    assert abs(scale.z) > 30
    assert not scale.holds


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_row_that_is_no_number_is_no_scale(broken):
    measured = many_rows(kinds()[0])
    y = rounded(measured)
    y[0, 0, 0] = broken
    assert not scale_of(measured, y).holds


def whole(measured: Golden, outputs: dict[str, np.ndarray]) -> dict[str, tuple[str, str]]:
    """What is found of whole tensors: the status of either property, and the words."""
    norm, _ = norm_values(measured.case, measured.inputs)
    findings = judge_whole(measured, norm, norm_budget(norm), outputs)
    return {each.property.id: (each.status, each.words) for each in findings}


@pytest.mark.parametrize("place", range(len(kinds())), ids=lambda place: kinds()[place].id)
def test_honest_errors_are_on_neither_side_and_no_larger_than_roundings(place):
    seed = place % len(STYLES)
    measured = many_rows(kinds()[place], seed)
    found = whole(measured, play(measured.case, seed, STYLES[seed]))
    assert {id_: status for id_, (status, _) in found.items()} == {"unbiased": "holds", "precise": "holds"}


def stored(measured: Golden, output: str, value: np.ndarray) -> dict[str, np.ndarray]:
    return {output: store(value, measured.case.outputs[output])}


@pytest.mark.parametrize("output", ["y", "dx", "dweight", "dbias"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_ulp_up_is_a_bias(dtype, output):
    measured = many_rows(*kinds("layer_norm", dtype))
    exact = measured.outputs[output].value
    up = exact + ulp(exact, dtype) * (3 if output.startswith("dw") else 1)
    status, words = whole(measured, stored(measured, output, up))["unbiased"]
    assert status == "violated"
    assert f"{output} is off by" in words
    assert "ulp up on average" in words


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.dtype in HALF], ids=lambda kind: kind.id)
def test_the_upper_end_of_every_interval_of_half_precision_is_a_bias(kind):
    """Each is admissible; together they are no rounding to nearest."""
    measured = many_rows(kind)
    upper = measured.outputs["dx"].upper
    status, words = whole(measured, {"dx": upper})["unbiased"]
    assert (status, "up on average" in words) == ("violated", True)


CASTS_FIRST = [kind for kind in kinds() if kind.dialect.order == "cast_then_scale"]  # which has the wider intervals


@pytest.mark.parametrize("kind", CASTS_FIRST, ids=lambda kind: kind.id)
def test_the_further_end_of_every_interval_of_half_precision_is_no_precision(kind):
    measured = many_rows(kind)
    exact, (lower, upper) = measured.outputs["dx"].value, measured.outputs["dx"].interval()
    found = whole(measured, stored(measured, "dx", np.where(upper - exact > exact - lower, upper, lower)))
    assert found["precise"][0] == "violated"
    assert found["unbiased"][0] == "holds"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_noise_of_many_ulps_is_no_precision(dtype):
    measured = many_rows(*kinds("rms_norm", dtype))
    y = measured.outputs["y"].value
    noise = np.random.default_rng(0).uniform(-4, 4, MANY_ROWS) * ulp(y, dtype)
    found = whole(measured, stored(measured, "y", np.where(y == 0, 0, y + noise)))
    assert found["precise"][0] == "violated"
    assert found["unbiased"][0] == "holds"


def test_the_limit_of_honest_roundings_is_their_own_size():
    """A correctly rounded y in one placement has the errors that are expected of it, hardly less than is allowed."""
    measured = many_rows(kinds("rms_norm", "bfloat16")[1])
    norm, _ = norm_values(measured.case, measured.inputs)
    assert 0.97 < scatter(errors_of(measured, norm, norm_budget(norm), "y", measured.outputs["y"].nearest)).excess <= 1


def test_an_output_with_an_element_outside_is_left_to_the_run():
    measured = many_rows(kinds("rms_norm", "bfloat16")[0])
    outputs = play(measured.case, 0, STYLES[0])
    outputs["y"] = outputs["y"] * np.float32(1.5)
    assert {status for status, _ in whole(measured, {"y": outputs["y"]}).values()} == {"not asked"}
    outputs["y"] = measured.outputs["y"].nearest
    outputs["y"][0, 0, 0] = np.nan
    assert {status for status, _ in whole(measured, {"y": outputs["y"]}).values()} == {"not asked"}
    assert {status for status, _ in whole(measured, outputs).values()} == {"holds"}  # the others'


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
