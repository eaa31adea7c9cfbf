"""The study `eps`: its figures against NumPy's float16 and a formula, and its verdicts against figures that are altered."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from studies.eps.claims import CLAIMS, between, worst
from studies.eps.measure import DTYPES, EPS, OUTCOMES, SCALES, STATISTICS, WIDTH, Setup, measure
from studies.figures import read_figures

FIGURES = read_figures(Path(__file__).parents[2] / "docs" / "studies" / "eps.json")
UNDERFLOW, SAFER, FLOAT = CLAIMS
IN_X, IN_FLOAT32 = STATISTICS


def altered(outcome, **wanted):
    """The figures with another outcome in some rows."""
    rows = [
        {**row, "outcome": outcome} if all(row[name] == value for name, value in wanted.items()) else row
        for row in FIGURES.rows
    ]
    return replace(FIGURES, rows=tuple(rows))


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("scale", SCALES)
def test_numpys_float16_is_lost_where_the_study_says_so(eps, scale):
    """Every step rounded to float16 by NumPy, which shares no code with torch."""
    deviates = np.random.default_rng(0).normal(size=(16, WIDTH))
    x = (scale * deviates).astype(np.float16)
    with np.errstate(all="ignore"):
        total = np.sum(np.square(x), axis=-1, keepdims=True, dtype=np.float32).astype(np.float16)
        with_eps = (total.astype(np.float32) / WIDTH).astype(np.float16).astype(np.float32) + np.float32(eps)
        y = x * (1 / np.sqrt(with_eps.astype(np.float16).astype(np.float32))).astype(np.float16)
    kind = "NaN" if np.isnan(y).any() else "infinite" if np.isinf(y).any() else "zero" if scale and not y.any() else "finite"
    found = measure(Setup("float16", IN_X, eps, scale, 0))["outcome"]
    assert found == kind if kind != "finite" else found in ("right", "rounded", "off")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", EPS)
def test_statistics_in_float32_are_right_at_every_scale(dtype, eps):
    for scale in SCALES:
        found = measure(Setup(dtype, IN_FLOAT32, eps, scale, 7))
        assert (found["outcome"], found["outside"], found["why"]) == ("right", 0, "")


@pytest.mark.parametrize("eps", EPS)
def test_the_golden_is_as_long_as_eps_leaves_it(eps):
    for scale in (1e-6, 1e-4, 1e-2, 1.0):
        [rms, *_] = FIGURES.values("rms", dtype="float32", statistics=IN_FLOAT32, eps=eps, scale=scale)
        assert rms == pytest.approx(scale / np.sqrt(scale**2 + eps), rel=0.05)


def test_the_committed_figures_are_what_a_run_finds():
    for row in FIGURES.where(seed=1, scale=1e-4) + FIGURES.where(seed=1, scale=100.0):
        found = measure(Setup(*(row[name] for name in Setup.__dataclass_fields__)))
        assert (found["outcome"], found["why"]) == (row["outcome"], row["why"])
        assert found["outside"] == pytest.approx(row["outside"], abs=0.02)


def test_the_worst_of_the_repeats_counts():
    where = {"dtype": "float32", "statistics": IN_X, "eps": 1e-5, "scale": 1.0}
    assert worst(FIGURES, **where) == "right"
    for outcome in OUTCOMES[1:]:
        assert worst(altered(outcome, **where, seed=1), **where) == outcome


def test_underflow_is_told_by_nan_at_1e_8_alone():
    assert [finding.holds for finding in UNDERFLOW.verdict(FIGURES).findings] == [True, True, False]
    assert UNDERFLOW.verdict(altered("NaN", dtype="float16", statistics=IN_FLOAT32, eps=1e-8, scale=0.0)).word == "holds"
    mended = altered("right", dtype="float16", statistics=IN_X, eps=1e-8)
    assert not UNDERFLOW.verdict(mended).findings[0].holds
    worse = altered("infinite", dtype="float16", statistics=IN_X, eps=1e-5, scale=1e-4)
    assert not UNDERFLOW.verdict(worse).findings[1].holds


def test_bfloat16_is_safer_only_where_it_loses_less():
    assert [finding.holds for finding in SAFER.verdict(FIGURES).findings] == [True, False]
    assert SAFER.verdict(altered("NaN", dtype="bfloat16", statistics=IN_X)).word == "does not hold"
    assert SAFER.verdict(altered("zero", dtype="float16", statistics=IN_FLOAT32, scale=1e4)).word == "holds"


def test_float_pays_only_where_all_is_right_with_it_and_not_without():
    assert FLOAT.verdict(FIGURES).word == "holds"
    assert FLOAT.verdict(altered("rounded", dtype="float16", statistics=IN_FLOAT32, scale=1.0, seed=2)).word == "holds in part"
    assert FLOAT.verdict(altered("right")).word == "does not hold"


def test_scales_are_said_in_runs():
    assert between([0.0, 1e-8, 1e-7, 1.0, 100.0, 1000.0]) == "0 to 1e-7, 1, 100 to 1000"
