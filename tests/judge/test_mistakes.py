"""Every mistake of the catalogue is the golden with one thing altered, and the kit sees it wherever it makes a difference."""

import numpy as np
import pytest

from conformance.cases import CASES, OPS, select
from conformance.compare import compare
from conformance.golden import golden
from conformance.mistakes import BACKWARDS, MISTAKES, Mistake
from conformance.rounding import DTYPES

SMALL = tuple(case for case in CASES if case.has_fixture)

# In float32 and float64 the storage dtype is the compute dtype: there is nothing to round to, and no order of casts.
ONLY_IN_HALF = {
    "eps_in_storage_dtype",
    "squares_in_storage_dtype",
    "rstd_in_storage_dtype",
    "other_order",
    "weight_in_storage_dtype",
}
VISIBLE = [
    (mistake, op, dtype)
    for mistake in MISTAKES
    for op in mistake.ops
    for dtype in DTYPES
    if dtype in ("bfloat16", "float16") or mistake.id not in ONLY_IN_HALF
]


def test_ids_are_unique_and_every_sentence_says_something():
    assert len({mistake.id for mistake in MISTAKES}) == len(MISTAKES)
    assert all(len(mistake.sentence.split()) > 2 for mistake in MISTAKES)


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("op", OPS)
def test_altering_nothing_is_the_golden(op, backward):
    nothing = Mistake("nothing", "nothing is altered", lambda norm: norm)
    for case in select(f"{op}/*/random") + select(f"{op}/*/mean_30") + select(f"{op}/*/rows_near_eps"):
        for name, altered in nothing.outputs(case, 0, backward).items():
            expected = golden(case).outputs[name]
            scale = np.max(np.abs(expected.value))
            np.testing.assert_allclose(altered.value, expected.value, rtol=0, atol=1e-12 * scale)
            if case.dtype in ("bfloat16", "float16"):
                assert np.mean(altered.lower != expected.lower) < 0.01


@pytest.mark.parametrize(("mistake", "op", "dtype"), VISIBLE, ids=lambda value: getattr(value, "id", value))
def test_every_mistake_is_rejected_in_every_dtype_that_shows_it(mistake, op, dtype):
    cases = [case for case in SMALL if (case.op, case.dtype) == (op, dtype)]
    assert any(_verdict(mistake, case).status == "fail" for case in cases)


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m.id in ONLY_IN_HALF], ids=lambda mistake: mistake.id)
def test_what_only_half_precision_shows_passes_elsewhere(mistake):
    cases = [case for case in SMALL if case.op in mistake.ops and case.dtype in ("float32", "float64")]
    assert all(_verdict(mistake, case).status == "pass" for case in cases)


def _verdict(mistake, case):
    made = {name: output.nearest for name, output in mistake.outputs(case).items()}
    return compare("mistaken", golden(case), made, tuple(case.outputs))
