"""What docs/tolerances.md claims: what the intervals admit on any input, what the cases keep to, and what is rejected."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.limits import equal_numbers, expect, golden_sum, path_overflows, ratio, sorted_row, tie_in_g
from benchmarks.search import KINDS
from benchmarks.welford import UPDATES, around_300, error_of_rstd, torch_dx
from conformance.judging.compare import compare_output
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.cases import ROW_NORM_CASES, ROW_NORMS
from conformance.ops.norms.values import honest
from conformance.tools.judges.honest import ARRANGEMENTS, Arrangement, Honest
from conformance.tools.judges.sums import SUMS

SHALLOW = ("pairwise", "32 lanes", "Kahan")
TWO_PASSES = tuple(arrangement for arrangement in ARRANGEMENTS if arrangement.variance != "welford")


@pytest.mark.parametrize("op", ROW_NORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0, 1e4])
@pytest.mark.parametrize("n", [2, 33])
def test_shallow_sums_use_half_an_interval_on_any_row(op, kind, n, offset):
    """Whatever the row: their worst case lies below the bound that for other orders holds with high probability."""
    (case,) = select(f"{op}/either_order/float32/random")
    case, rng = replace(case, shape=(4, n)), np.random.default_rng(n)
    tensors = {"x": KINDS[kind](rng, case.shape) + offset, "dy": rng.normal(size=case.shape), "weight": rng.normal(size=n)}
    tensors |= {"bias": rng.normal(size=n)} if case.bias else {}
    inputs = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    expected = expect(case, inputs)
    for order in SHALLOW:
        for arrangement in TWO_PASSES:
            outputs = Honest(case, inputs, order, arrangement).outputs()
            assert all(compare_output(name, expected[name], out).ratio <= 0.5 for name, out in outputs.items())


@given(st.floats(1, 2, width=32))
@settings(max_examples=200, deadline=None)
def test_a_constant_row_of_33_may_be_summed_one_by_one(value):
    """Every partial sum may be rounded the same way; at this width, the cases' own, that is still within the bound."""
    case, inputs = equal_numbers(n=33, value=value)
    assert ratio(case, inputs, "sequential", Arrangement(), "y") <= 1


def test_the_cases_keep_away_from_the_ends_of_float32s_range():
    """No square overflows, and no output is subnormal: the budgets have no term for either."""
    for case in ROW_NORM_CASES:
        x = np.abs(golden(case).inputs["x"].astype(np.float64))
        assert np.max(x[np.isfinite(x)], initial=0.0) < 1e18
        for expected in golden(case).outputs.values():
            size = np.abs(expected.value)
            assert np.min(size[size > 0], initial=1.0) > 2.0**-126 / 2.0**-24


@pytest.mark.parametrize("order", [order for order in SUMS if order != "Kahan"])
def test_an_infinity_asks_for_plain_sums(order):
    (case,) = select("rms_norm/either_order/float32/inf_row")
    with np.errstate(invalid="ignore"):
        outputs = Honest(case, golden(case).inputs, order, Arrangement()).outputs()
        compensated = Honest(case, golden(case).inputs, "Kahan", Arrangement()).outputs()
    assert compare_output("y", golden(case).outputs["y"], outputs["y"]).outside == 0
    assert compare_output("y", golden(case).outputs["y"], compensated["y"]).outside > 0


def test_the_honest_norms_compute_in_the_compute_dtype():
    """Else they would prove nothing: a float64 sum has no float32 noise."""
    for case in select("*/random", cases=ROW_NORM_CASES):
        norm = Honest(case, golden(case).inputs, "pairwise", Arrangement("welford"))
        assert norm.rstd.dtype == norm.dx().dtype == norm.y().dtype == np.dtype(honest(case.dtype).forward)


@pytest.mark.parametrize(("dtype", "seed"), [("float32", 63), ("float64", 58)])
def test_welfords_variance_is_admitted(dtype, seed):
    (case,) = select(f"layer_norm/either_order/{dtype}/mean_300")
    dx = Honest(case, golden(case, seed).inputs, "sequential", Arrangement("welford")).dx()
    assert compare_output("dx", golden(case, seed).outputs["dx"], dx).outside == 0


def test_torchs_own_layer_norm_is_admitted():
    (case,) = select("layer_norm/either_order/float32/mean_300")
    expected = golden(case, 111)
    assert compare_output("dx", expected.outputs["dx"], torch_dx(case, expected.inputs)).outside == 0


def test_a_tie_in_g_may_be_rounded_through_float32():
    assert ratio(*tie_in_g(), "pairwise", Arrangement(backward="autograd"), "dx") <= 1


def test_a_path_of_dx_may_overflow_float16_in_a_placement_that_was_not_taken():
    assert ratio(*path_overflows(), "pairwise", Arrangement(), "dx") <= 1


def test_such_a_path_does_not_make_an_infinity_admissible():
    """rstd·g is 1e5 and rounds to infinity, but dx is 5e4: what that placement returns would be wrong."""
    (case,) = select("rms_norm/scale_then_cast/float16/random")
    tensors = {"x": [[0.25, 0.25]], "dy": [[2.5e4, 0.0]], "weight": [1.0, 1.0]}
    given = {name: np.array(tensor, np.float16) for name, tensor in tensors.items()}
    ends = expect(replace(case, shape=(1, 2)), given)["dx"].interval()
    assert np.abs(ends) == pytest.approx(5e4, rel=1e-3)


def test_the_golden_adds_many_equal_rows_in_float64():
    assert golden_sum() <= 1


def test_a_constant_row_of_64_may_not():
    """The probabilistic bound's price; were this to pass, the page would claim too little."""
    assert ratio(*equal_numbers(), "sequential", Arrangement(), "y") > 1


@pytest.mark.parametrize("n", [7, 33, 768])
def test_welfords_rstd_errs_by_less_than_two_kappa_v_whatever_the_width(n):
    """Where the features come in no order; and by something, or rho would have no need of the term."""
    errors = error_of_rstd(Honest(*around_300(n, "random"), "sequential", UPDATES))
    assert 0.1 < np.max(errors) < 2


def test_but_not_where_the_features_are_sorted():
    """One by one the running mean lags behind, always on the same side; were this to pass, the page would claim too little."""
    assert ratio(*sorted_row(), "sequential", UPDATES, "dx") > 1
    assert ratio(*sorted_row(), "pairwise", Arrangement(), "dx") < 0.5
