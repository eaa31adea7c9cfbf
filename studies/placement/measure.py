"""Four language models that differ in their norms alone: their gradients as they are drawn, and how they train."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, product
from math import isfinite, log
from typing import Any, Literal, get_args

import numpy as np
import torch

from studies.language_model import CONFIG, Init, LanguageModel, Placement
from studies.training import next_byte_loss, random_windows, training, training_text

Model = Literal["no norm", "Post-LN", "Pre-LN, LayerNorm", "Pre-LN, RMSNorm"]
Outcome = Literal["learns", "does not learn", "not finite"]

MODELS: tuple[Model, ...] = get_args(Model)
INITS: tuple[Init, ...] = ("Xavier", "small")
DRAWN = (3, 6, 12, 24, 48)  # layers
RATES = {4: (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), 12: (1e-3, 3e-3, 1e-2, 3e-2)}  # by layers
STEPS, QUICK_STEPS = 120, 80
SHALLOW, DEEP = RATES
BATCH, WINDOW = 8, 32
BUNCH = 5  # steps that are one point of a curve
LAST = 20  # steps that the final loss is the mean of
LEARNT = 0.9  # of the entropy of single bytes: a loss below it has been learnt from what came before


@dataclass(frozen=True)
class Setup:
    """One model, trained for so many steps at a rate that rises over the first `warm_up` of them; untrained where 0."""

    model: Model
    init: Init
    layers: int
    steps: int
    rate: float
    warm_up: int
    seed: int


def setups(quick: bool) -> Sequence[Setup]:
    """All of them for three seeds; where it is to be quick one rate and seed, fewer steps, and no warm-up of deep models."""
    seeds, steps = (1, QUICK_STEPS) if quick else (3, STEPS)
    drawn = [
        Setup(model, init, layers, 0, 0.0, 0, seed)
        for model, init, layers in product(MODELS, INITS, DRAWN[::3] if quick else DRAWN)
        for seed in range(seeds)
    ]
    trained = [
        Setup(model, "Xavier", layers, steps, rate, warm_up, seed)
        for model, layers in product(MODELS, RATES)
        for rate in ((1e-2,) if quick else RATES[layers])
        for warm_up in ((0,) if quick and layers == DEEP else (0, steps // 2))
        for seed in range(seeds)
    ]
    if not quick:  # what else might help where no rate does: time, and small matrices
        trained.append(Setup("Post-LN", "Xavier", DEEP, steps=400, rate=3e-4, warm_up=200, seed=0))
        others: tuple[Model, ...] = ("Post-LN", "no norm")
        trained += [Setup(model, "small", DEEP, 240, 1e-3, 0, seed) for model in others for seed in range(seeds)]
    return [*drawn, *trained]


def build(setup: Setup) -> LanguageModel:
    """The model, as it is drawn."""
    placements: dict[Model, Placement] = {"no norm": "none", "Post-LN": "post"}
    config = replace(CONFIG, norm="rms_norm" if setup.model.endswith("RMSNorm") else "layer_norm")
    torch.manual_seed(setup.seed)
    return LanguageModel(config, setup.layers, placements.get(setup.model, "pre"), setup.init)


def measure(setup: Setup) -> dict[str, Any]:
    """The gradients of a model that is drawn, by layer, or the curves of one that is trained."""
    torch.set_num_threads(1)  # the sums then come in one order, however many cores there are
    model = build(setup)
    if not setup.steps:
        return {"outcome": None, "final": None, "losses": [], "gradients": [], "by_layer": by_layer(model)}
    how: dict[str, Any] = {"rate": setup.rate, "warm_up": setup.warm_up, "batch": BATCH, "window": WINDOW}
    losses, gradients = list[float](), list[float]()
    for step in islice(training(model, **how), setup.steps):
        losses.append(step.loss)
        gradients.append(step.gradient)
        if not isfinite(step.loss) or not isfinite(step.gradient):
            break
    return {
        "outcome": judged(losses, gradients),
        "final": written(float(np.mean(losses[-LAST:]))),
        "losses": bunched(losses, setup.steps),
        "gradients": bunched(gradients, setup.steps),
        "by_layer": [],
    }


def by_layer(model: LanguageModel) -> list[float | None]:
    """For every layer the norm of the gradient by its last matrix, for which Xiong et al. derive it; null where not finite."""
    windows = random_windows(training_text(), BATCH, WINDOW)
    next_byte_loss(model(windows[:, :-1]), windows).backward()
    gradients = (block.get_parameter("feed_forward.down.weight").grad for block in model.stack)
    return [None if gradient is None else written(gradient.double().norm().item()) for gradient in gradients]


def judged(losses: Sequence[float], gradients: Sequence[float]) -> Outcome:
    """Whether a run went well; all of it counts, and for the learning its end."""
    if not all(isfinite(value) for value in (*losses, *gradients)):
        return "not finite"
    return "learns" if np.mean(losses[-LAST:]) < LEARNT * entropy() else "does not learn"


@cache
def entropy() -> float:
    """Of the text's single bytes, in nats: the least loss of a model that looks at nothing."""
    text = training_text().tolist()
    return -sum(count / len(text) * log(count / len(text)) for count in Counter(text).values())


def bunched(values: Sequence[float], steps: int) -> list[float | None]:
    """A curve of fewer points: the mean of every few steps, null from where a value is not finite."""
    padded = np.full(steps, np.nan)
    padded[: len(values)] = values
    return [written(value) for value in padded.reshape(-1, BUNCH).mean(axis=1)]


def written(value: float) -> float | None:
    """Four digits, or null, for JSON knows no NaN."""
    return float(f"{value:.4g}") if isfinite(value) else None
