"""The study `dialect`: its figures against the golden rounded by ml_dtypes, its verdicts against figures that are altered."""

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from reference import rms_norm
from studies.dialect.claims import CLAIMS, HALF, moved, reseeded
from studies.dialect.measure import MODEL, NOW, SUBJECTS, THEN, WIDTH, Setup, measure
from studies.dialect.model import evaluate, train
from studies.figures import read_figures
from studies.language_model import BYTES
from studies.training import HELD_OUT

FIGURES = read_figures(Path(__file__).parents[2] / "docs" / "studies" / "dialect.json")
KEEPS_DTYPE, ONE_LAYER, LOADS = CLAIMS


def altered(changed, **wanted):
    """The figures with other values in some rows."""
    rows = [{**row, **changed} if all(row[name] == value for name, value in wanted.items()) else row for row in FIGURES.rows]
    return replace(FIGURES, rows=tuple(rows))


@pytest.mark.parametrize(("subject", "weights"), [("weights near one", (1, 0.1)), ("normal weights", (0, 1))])
@pytest.mark.parametrize("dtype", HALF)
def test_the_golden_rounded_in_both_places_differs_as_often(subject, weights, dtype):
    rng, to = np.random.default_rng(5), np.dtype(getattr(ml_dtypes, dtype, dtype))
    x, weight = (a.astype(to).astype(float) for a in (rng.normal(size=(256, WIDTH)), rng.normal(*weights, size=WIDTH)))
    x_hat = rms_norm(x, eps=1e-5).x_hat
    then, now = (x_hat.astype(to).astype(float) * weight).astype(to), (x_hat * weight).astype(to)
    found = FIGURES.values("differ", subject=subject, dtype=dtype, weight_dtype=dtype)
    assert found == pytest.approx(np.mean(then != now), abs=0.02)


def test_the_committed_layers_are_what_a_run_finds():
    """On a CPU that sums in another order an output may round the other way."""
    for row in FIGURES.where(seed=1, steps=0):
        found = measure(Setup(*(row[name] for name in Setup.__dataclass_fields__)))
        assert found["differ"] == pytest.approx(row["differ"], abs=1e-3)
        assert (found["dtype_then"], found["dtype_now"]) == (row["dtype_then"], row["dtype_now"])


def test_a_model_is_trained_seeded_and_loaded_into_either_order():
    model, again = train(20, 0), train.__wrapped__(20, 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    losses = {order: evaluate(model, order, torch.float32)[0] for order in (THEN, NOW)}
    assert losses[THEN] == losses[NOW] < evaluate(train(0, 0), THEN, torch.float32)[0] < np.log(BYTES) + 0.1
    (loss, logits), (_, others) = (evaluate(model, order, torch.bfloat16) for order in (THEN, NOW))
    assert logits.dtype == torch.bfloat16
    assert not torch.equal(logits, others)
    assert loss == pytest.approx(losses[THEN], rel=0.01)
    assert next(model.parameters()).dtype == torch.float32, "what is evaluated is a copy"


def test_the_loss_is_of_text_that_was_not_trained_on():
    """Memorised text would have a loss near zero: held out, it keeps a good part of its entropy."""
    _, logits = evaluate(train(0, 0), THEN, torch.float32)
    assert logits.shape[0] * logits.shape[1] <= HELD_OUT
    assert np.all(FIGURES.values("loss_float32", subject=MODEL) > 1)


def test_a_promoted_output_is_what_breaks_the_notes_claim():
    findings = KEEPS_DTYPE.verdict(FIGURES).findings
    assert [finding.figure for finding in findings if not finding.holds] == [
        f"x {dtype}, weight float32, cast, then scale: y float32" for dtype in HALF
    ]
    assert KEEPS_DTYPE.verdict(altered({"dtype_then": "float16"}, dtype="float16")).word == "holds in part"
    mended = altered({"dtype_then": "bfloat16"}, dtype="bfloat16")
    rows = tuple({**row, "dtype_then": "float16"} if row["dtype"] == "float16" else row for row in mended.rows)
    assert KEEPS_DTYPE.verdict(replace(mended, rows=rows)).word == "holds"


def test_layers_are_one_only_where_nothing_differs():
    assert ONE_LAYER.verdict(FIGURES).word == "holds in part"
    assert ONE_LAYER.verdict(altered({"differ": 0.0})).word == "holds"
    assert ONE_LAYER.verdict(altered({"differ": 1e-6})).word == "does not hold"
    assert any(f.holds and f.figure.startswith(SUBJECTS[0]) for f in ONE_LAYER.verdict(FIGURES).findings)


def test_a_loss_that_moves_as_another_seed_moves_it_is_harm():
    assert LOADS.verdict(FIGURES).word == "holds"
    for dtype in HALF:
        assert np.max(moved(FIGURES, dtype)) < np.min(reseeded(FIGURES, dtype)) / 10
    assert LOADS.verdict(altered({"loss_now": 2.5}, subject=MODEL, dtype="bfloat16")).word == "holds in part"
    assert LOADS.verdict(altered({"loss_now": float("nan")}, subject=MODEL)).word == "does not hold"
