"""The study `placement`: its gradients against finite differences, its rules, and its verdicts against altered figures."""

from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from studies.figures import read_figures
from studies.placement.claims import CLAIMS, NO_NORM, POST, PRE, largest, rates, trained, warm_ups
from studies.placement.measure import (
    DEEP,
    LEARNT,
    MODELS,
    SHALLOW,
    STEPS,
    Setup,
    build,
    bunched,
    by_layer,
    entropy,
    judged,
    measure,
    setups,
)
from studies.placement.study import STUDY
from studies.training import next_byte_loss, random_windows, training_text

FIGURES = read_figures(Path(__file__).parents[2] / "docs" / "studies" / "placement.json")
UNSTABLE, CLEAN, OUTPUT, WARM_UP, EITHER, WITHOUT = CLAIMS


def altered(changed, **wanted):
    """The figures with other values in some rows; a list of values is for rows with any of them."""

    def meant(row):
        return all(row[name] in value if isinstance(value, list) else row[name] == value for name, value in wanted.items())

    return replace(FIGURES, rows=tuple({**row, **changed(row)} if meant(row) else row for row in FIGURES.rows))


def outcomes(outcome, **wanted):
    return altered(lambda row: {"outcome": outcome} if row["steps"] else {}, **wanted)


def drawn(model, layers=3):
    return Setup(model, "Xavier", layers, 0, 0.0, 0, seed=1)


@pytest.mark.parametrize("model", MODELS)
def test_a_gradient_is_what_the_loss_changes_by(model):
    """Along the gradient the loss rises by its norm, and across it not at all."""
    probe, last = build(drawn(model)), "feed_forward.down.weight"
    state = torch.random.get_rng_state()
    norms = by_layer(probe)
    torch.random.set_rng_state(state)
    windows = random_windows(training_text(), 8, 32)
    probe.double()
    for block, norm in zip(probe.stack, norms, strict=True):
        matrix = block.get_parameter(last)
        along = matrix.grad / matrix.grad.norm()

        def loss_at(step, matrix=matrix, along=along):
            with torch.no_grad():
                matrix += step * along
                loss = next_byte_loss(probe(windows[:, :-1]), windows).item()
                matrix -= step * along
            return loss

        assert (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5 == pytest.approx(norm, rel=1e-3)


def test_the_models_of_a_seed_differ_in_their_norms_alone():
    seen = []
    for model in MODELS:
        state = build(drawn(model)).state_dict()
        seen.append(({name: value for name, value in state.items() if value.ndim == 2}, torch.rand(1)))
        assert any(name.endswith("norm.weight") for name in state) is (model != NO_NORM)
        assert any(name.endswith("norm.bias") for name in state) is (model not in (NO_NORM, "Pre-LN, RMSNorm"))
    for matrices, then in seen:
        assert then == seen[0][1], "the text is drawn from here on"
        assert all(torch.equal(matrix, seen[0][0][name]) for name, matrix in matrices.items())


def test_the_entropy_is_that_of_the_bytes():
    counts = np.bincount(training_text().numpy())
    shares = counts[counts > 0] / counts.sum()
    assert entropy() == pytest.approx(-np.sum(shares * np.log(shares))) == pytest.approx(3.04, abs=0.005)
    assert LEARNT * entropy() == pytest.approx(2.74, abs=0.005), "as the page says"


def test_a_run_learns_by_its_end_and_is_finite_throughout():
    fine = [log(128)] * 40 + [LEARNT * entropy() - 0.01] * 20
    assert judged(fine, [1.0] * 60) == "learns"
    assert judged([*fine[:-1], 5.0], [1.0] * 60) == "does not learn"
    assert judged([entropy()] * 60, [1.0] * 60) == "does not learn"
    assert judged(fine, [1.0, float("inf"), *[1.0] * 58]) == "not finite"
    assert judged([float("nan"), *fine], [1.0] * 61) == "not finite"


def test_a_curve_is_thinned_and_ends_where_it_is_not_finite():
    assert bunched([1.0, 2.0, 3.0, 4.0, 5.0] * 2, 10) == [3.0, 3.0]
    assert bunched([1.0] * 5 + [float("inf")], 15) == [1.0, None, None]


def test_what_is_not_finite_is_not_finite_from_its_first_step():
    found = measure(Setup(NO_NORM, "Xavier", DEEP, STEPS, 1e-3, 0, 0))
    assert found["outcome"] == "not finite"
    assert set(found["losses"]) == {None} == {found["final"]}


@pytest.mark.parametrize("model", MODELS)
def test_the_committed_gradients_are_what_a_run_finds(model):
    for row in FIGURES.where(model=model, steps=0, layers=3, seed=1):
        found = measure(Setup(*(row[name] for name in Setup.__dataclass_fields__)))
        assert found["by_layer"] == pytest.approx(row["by_layer"], rel=0.01)


def test_a_committed_run_is_what_a_run_finds():
    """On another machine the sums may come in another order, of which training makes more with every step."""
    [row] = FIGURES.where(model="Pre-LN, RMSNorm", layers=SHALLOW, rate=3e-3, warm_up=0, seed=0)
    found = measure(Setup(*(row[name] for name in Setup.__dataclass_fields__)))
    assert found["outcome"] == row["outcome"] == "learns"
    for column in ("losses", "gradients"):
        assert found[column][:4] == pytest.approx(row[column][:4], rel=0.02)
    assert found["final"] == pytest.approx(row["final"], abs=0.1)
    assert found["final"] == pytest.approx(np.mean(found["losses"][-4:]), rel=1e-3), "the last 20 steps"


def test_a_quick_run_asks_a_part_of_what_a_full_one_asks():
    def asked(quick):
        return {(s.model, s.init, s.layers, s.rate, s.warm_up > 0, s.seed) for s in setups(quick)}

    assert asked(True) < asked(False)


def test_a_largest_rate_is_that_of_most_seeds():
    rate = rates(FIGURES, SHALLOW)[-1]
    one = outcomes("not finite", model=PRE[0], layers=SHALLOW, rate=rate, warm_up=0, seed=0)
    two = outcomes("not finite", model=PRE[0], layers=SHALLOW, rate=rate, warm_up=0, seed=[0, 1])
    learning = outcomes("learns", model=PRE[0])
    assert largest(learning, PRE[0], SHALLOW, 0) == rate
    assert largest(outcomes("not finite"), PRE[0], SHALLOW, 0) == 0
    for figures, expected in ((one, rate), (two, rates(FIGURES, SHALLOW)[-2])):
        rows = tuple(
            {**row, "outcome": "learns"} if row["outcome"] == "does not learn" and row["model"] == PRE[0] else row
            for row in figures.rows
        )
        assert largest(replace(figures, rows=rows), PRE[0], SHALLOW, 0) == expected


def test_post_ln_that_learns_as_pre_ln_does_is_not_unstable():
    assert [finding.holds for finding in UNSTABLE.verdict(FIGURES).findings] == [True, True, True, False, True]
    assert UNSTABLE.verdict(outcomes("does not learn", model=POST, init="small")).word == "holds"
    mended = outcomes("learns", model=POST, layers=DEEP)
    assert [finding.holds for finding in UNSTABLE.verdict(mended).findings] == [False, False, False, False, True]
    never = outcomes("does not learn", model=POST)
    assert not UNSTABLE.verdict(never).findings[-1].holds, "then it is not the depth"


def test_a_clean_path_is_one_on_which_gradients_and_rates_stay():
    def scaled(by):
        return lambda row: {"by_layer": [g and g * by for g in row["by_layer"]]}

    before = [finding.holds for finding in CLEAN.verdict(FIGURES).findings]
    assert before[:4] == [True] * 4
    for by in (0.1, 10):
        assert not CLEAN.verdict(altered(scaled(by), model=PRE[0], layers=48)).findings[0].holds
    broken = CLEAN.verdict(outcomes("does not learn", model=PRE[1], layers=DEEP)).findings
    assert [finding.holds for finding in broken[-2:]] == [False, False]


def test_gradients_that_go_otherwise_with_the_depth_are_seen():
    assert [finding.holds for finding in OUTPUT.verdict(FIGURES).findings] == [True, True, True, True, False]
    flat = altered(lambda row: {"by_layer": [0.5] * row["layers"]}, model=list(MODELS[1:]))
    assert [finding.holds for finding in OUTPUT.verdict(flat).findings] == [True, False, False, False, False]
    falling = altered(lambda row: {"by_layer": [row["layers"] ** -0.5] * row["layers"]}, model=POST)
    assert not OUTPUT.verdict(falling).findings[0].holds


def test_warm_up_that_does_nothing_is_not_needed():
    def ungrouped(row):
        twin = {**{name: row[name] for name in ("model", "layers", "rate", "seed", "steps")}, "warm_up": 0}
        return {"outcome": FIGURES.where(**twin)[0]["outcome"]} if row["steps"] == STEPS else {}

    found = WARM_UP.verdict(FIGURES).findings
    assert found[0].holds
    assert not WARM_UP.verdict(altered(ungrouped, warm_up=STEPS // 2)).findings[0].holds
    needed = WARM_UP.verdict(outcomes("not finite", model=PRE[0], warm_up=0)).findings
    assert [finding.holds for finding in needed if finding.figure.startswith(PRE[0])] == [False, False]


def test_losses_that_part_are_not_all_the_same():
    assert EITHER.verdict(FIGURES).word == "holds"
    worse = altered(lambda row: {"final": row["final"] + 0.2}, model=PRE[0], layers=DEEP, rate=1e-3, warm_up=0)
    assert [finding.holds for finding in EITHER.verdict(worse).findings] == [True, False]
    assert EITHER.verdict(outcomes("not finite", model=PRE[0])).word == "does not hold"


def test_without_a_norm_one_run_that_learns_is_enough():
    assert WITHOUT.verdict(FIGURES).word == "holds"
    for one in ({"layers": SHALLOW, "rate": 1e-3, "seed": 2}, {"init": "small"}):
        assert WITHOUT.verdict(outcomes("learns", model=NO_NORM, **one)).word == "holds in part"


def test_the_tables_have_every_run_once():
    shallow, deep, gradients = STUDY.tables(FIGURES)
    for table, layers in ((shallow, SHALLOW), (deep, DEEP)):
        cells = [cell for row in table.body for cell in row[2:]]
        assert sum(cell.count(";") + 1 for cell in cells) == len(trained(FIGURES, layers))
        assert len(table.body) == len(MODELS) * len(warm_ups(FIGURES, layers))
    assert len(gradients.body) == 2 * len(MODELS)
