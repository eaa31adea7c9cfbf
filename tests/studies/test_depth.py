"""The study `depth`: its figures against the golden and against theory, and its verdicts against figures that are altered."""

from dataclasses import replace
from math import pi, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from reference import layer_norm, layer_norm_vjp, rms_norm, rms_norm_vjp
from studies.depth.claims import CLAIMS, DEEP, NOTED
from studies.depth.measure import INITS, NORMS, Layer, Setup, measure
from studies.figures import read_figures

FIGURES = read_figures(Path(__file__).parents[2] / "docs" / "studies" / "depth.json")
FADE, STEADY, INITIALISED, CLEAN, UNAIDED = CLAIMS
EPS = 1e-5


def altered(change, column, **wanted):
    """The figures with one column changed in some rows."""
    rows = [
        {**row, column: change(row[column])} if all(row[name] == value for name, value in wanted.items()) else row
        for row in FIGURES.rows
    ]
    return replace(FIGURES, rows=tuple(rows))


def golden_norm(norm, x, dy=None):
    """y, or dx, by the float64 golden; BatchNorm is LayerNorm of the columns."""
    match norm:
        case "none":
            return x if dy is None else dy
        case "RMSNorm":
            return rms_norm(x, eps=EPS).y if dy is None else rms_norm_vjp(dy, x, eps=EPS).dx
        case "LayerNorm":
            return layer_norm(x, eps=EPS).y if dy is None else layer_norm_vjp(dy, x, eps=EPS).dx
        case "BatchNorm":
            return golden_norm("LayerNorm", x.T, None if dy is None else dy.T).T


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("residual", [False, True])
def test_a_stack_is_measured_as_the_golden_computes_it(norm, init, residual):
    """The same draws, forward and backward in float64, by hand."""
    layers, rows, width, seed = 6, 16, 24, 3
    torch.manual_seed(seed)
    drawn = [Layer(norm, init, residual, width).linear for _ in range(layers)]
    x, dy = (torch.randn(rows, width).double().numpy() for _ in range(2))
    inputs, active = [x], []
    for linear in drawn:
        weight, bias = (p.detach().double().numpy() for p in (linear.weight, linear.bias))
        before = golden_norm(norm, inputs[-1]) @ weight.T + bias
        active.append(before > 0)
        inputs.append(np.maximum(before, 0) + residual * inputs[-1])
    gradients = [dy]
    for linear, mask, into in zip(reversed(drawn), reversed(active), reversed(inputs[:-1]), strict=True):
        through = golden_norm(norm, into, (gradients[0] * mask) @ linear.weight.detach().double().numpy())
        gradients.insert(0, through + residual * gradients[0])
    measured = measure(Setup(norm, init, residual, layers, rows, seed), width)
    expected = {
        "activation_std": [a.std(ddof=1) for a in inputs],
        "signal_std": [(a - a.mean(axis=0)).std(ddof=1) for a in inputs],
        "gradient_std": [g.std(ddof=1) for g in gradients],
    }
    for name, values in expected.items():
        assert measured[name] == pytest.approx(values, rel=2e-3), name


def test_the_biases_hold_the_floor_that_the_notes_take_for_fading():
    """The root mean square m of a layer's output obeys m² = (m²/3 + 1/(3·512))/2; ReLU's mean is 1/√π of it."""
    floor = sqrt(1 / (5 * 512)) * sqrt(1 - 1 / pi)
    std = FIGURES.values("activation_std", norm="none", init="default", residual=False, layers=DEEP)
    assert std[:, 8:].mean() == pytest.approx(floor, rel=0.05)
    signal = FIGURES.values("signal_std", norm="none", init="default", residual=False, layers=DEEP)
    assert np.median(signal[:, 9] / signal[:, 8]) == pytest.approx(1 / sqrt(6), rel=0.05)


def test_xavier_loses_half_of_the_mean_square_with_every_relu():
    std = FIGURES.values("activation_std", norm="none", init="Xavier", residual=False, layers=DEEP)
    assert np.median((std[:, DEEP] / std[:, 1]) ** (1 / (DEEP - 1))) == pytest.approx(sqrt(1 / 2), rel=0.02)


@pytest.mark.parametrize(("norm", "rate"), [("RMSNorm", 1.0), ("LayerNorm", (1 - 1 / pi) ** -0.5)])
def test_centring_is_what_makes_gradients_grow(norm, rate):
    std = FIGURES.values("gradient_std", norm=norm, residual=False, layers=DEEP)
    assert np.median((std[:, 1] / std[:, DEEP]) ** (1 / (DEEP - 1))) == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("norm", NORMS)
def test_the_committed_figures_are_what_a_run_finds(norm):
    """On another machine the sums may come in another order, and 8 layers make little of that."""
    for row in FIGURES.where(norm=norm, layers=8, seed=1, init="Kaiming"):
        setup = Setup(*(row[name] for name in Setup.__dataclass_fields__))
        for name, values in measure(setup).items():
            assert values == pytest.approx(row[name], rel=0.01)


def test_the_notes_figures_would_bear_the_notes_out():
    def noted(values):
        """As the notes have it, and on as it began."""
        return [NOTED.get(layer, 0.016 if layer < 8 else 0.016 * 0.6 ** (layer - 8)) for layer in range(len(values))]

    assert FADE.verdict(FIGURES).word == "holds in part"
    findings = FADE.verdict(altered(noted, "activation_std", norm="none")).findings
    assert all(finding.holds for finding in findings)
    assert not any(finding.holds for finding in FADE.verdict(altered(lambda v: [2.0] * len(v), "activation_std")).findings)


def test_activations_that_grow_or_fade_are_not_steady():
    held = [finding.holds for finding in STEADY.verdict(FIGURES).findings]
    assert held == [True, False, True, False]
    flat = altered(lambda values: [1.0] * len(values), "activation_std")
    assert STEADY.verdict(flat).word == "holds"
    for factor in (2.0, 0.5):
        moved = altered(
            lambda values, f=factor: [*values[:-1], values[1] * f], "activation_std", norm="RMSNorm", residual=False
        )
        assert not STEADY.verdict(moved).findings[0].holds


def test_an_initialisation_that_loses_the_gradient_keeps_nothing_alive():
    assert INITIALISED.verdict(FIGURES).findings[0].holds
    lost = altered(lambda values: [1e-6, *values[1:]], "gradient_std", norm="none", init="Kaiming", residual=False)
    assert INITIALISED.verdict(lost).word == "does not hold"


def test_a_residual_path_that_loses_the_gradient_is_not_clean():
    assert CLEAN.verdict(FIGURES).word == "holds"
    for lost in (1e-6, 1e6, float("nan")):
        blocked = altered(lambda values, g=lost: [g, *values[1:]], "gradient_std", norm="LayerNorm", residual=True)
        assert CLEAN.verdict(blocked).word == "holds in part"
    clean = altered(lambda values: [1.0] * len(values), "gradient_std", norm="none", residual=True)
    assert not CLEAN.verdict(clean).findings[-1].holds, "then it would not be the norm that does it"


def test_what_explodes_without_residuals_is_seen():
    assert [finding.holds for finding in UNAIDED.verdict(FIGURES).findings] == [True, False, False]
    assert UNAIDED.verdict(altered(lambda values: [1.0] * len(values), "gradient_std")).word == "holds"
