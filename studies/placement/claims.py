"""What the notes, and Xiong et al. 2020 (arXiv:2002.04745), say of where a norm stands, judged by the study's figures."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from studies.figures import Array, Figures, Row, short, spread
from studies.placement.measure import DEEP, MODELS, QUICK_STEPS, SHALLOW, STEPS
from studies.study import Claim, Finding

NO_NORM, POST, *PRE = MODELS
KEPT = 2.0  # a factor within which gradients are the same
CLOSE = 0.25  # within which an exponent is the one derived, and not the other
HOW = {"Xavier": "drawn by Xavier", "small": "drawn with a deviation of 0.02"}
XIONG = "Xiong et al. 2020"
ALIKE = 0.1  # nats a byte between losses that nobody would tell apart


def trained(figures: Figures, layers: int, **wanted: Any) -> list[Row]:
    """The runs of models of this depth, over rates, warm-ups and seeds."""
    return figures.where(layers=layers, steps=QUICK_STEPS if figures.quick else STEPS, **wanted)


def warm_ups(figures: Figures, layers: int) -> list[int]:
    """In how many steps the rate rose."""
    return sorted({row["warm_up"] for row in trained(figures, layers)})


def rates(figures: Figures, layers: int) -> list[float]:
    """At which rates there are runs."""
    return sorted({row["rate"] for row in trained(figures, layers)})


def largest(figures: Figures, model: str, layers: int, warm_up: int) -> float:
    """The largest rate at which more than half of the seeds learn; 0 where there is none."""

    def learns(rate: float) -> bool:
        return _most(trained(figures, layers, model=model, rate=rate, warm_up=warm_up))

    return max(filter(learns, rates(figures, layers)), default=0.0)


def up_to(figures: Figures, model: str, layers: int, warm_up: int) -> str:
    """The largest rate in words."""
    rate = largest(figures, model, layers, warm_up)
    highest = ", the highest asked" if rate == rates(figures, layers)[-1] else ""
    return f"up to {short(rate)}{highest}" if rate else "at no rate"


def drawn(figures: Figures, layer: int, model: str, layers: int, init: str = "Xavier") -> Array:
    """The norm of the gradient by a layer's last matrix, in the model as it is drawn, for every seed."""
    return figures.values("by_layer", model=model, init=init, layers=layers, steps=0)[:, layer]


def depths(figures: Figures) -> list[int]:
    """Of the models whose gradients were measured as they are drawn."""
    return sorted({row["layers"] for row in figures.where(steps=0)})


def unstable(figures: Figures) -> Iterator[Finding]:
    """Deep it does not learn where Pre-LN does, nor with more time or other matrices; less deep it does."""
    for warm_up in warm_ups(figures, DEEP):
        post, *pre = (largest(figures, model, DEEP, warm_up) for model in (POST, *PRE))
        found = "; ".join(f"{model} learns {up_to(figures, model, DEEP, warm_up)}" for model in (POST, *PRE))
        yield Finding(post < min(pre), f"{DEEP} layers, {_warmed(warm_up)}: {found}")
    yield from helped(figures, POST)
    found = "; ".join(f"{_warmed(w)} it learns {up_to(figures, POST, SHALLOW, w)}" for w in warm_ups(figures, SHALLOW))
    yield Finding(
        any(largest(figures, POST, SHALLOW, w) for w in warm_ups(figures, SHALLOW)), f"Post-LN, {SHALLOW} layers: {found}"
    )


def helped(figures: Figures, model: str) -> Iterator[Finding]:
    """Given more steps, or drawn otherwise, it does not learn either; a quick run does not ask."""
    longer = [row for row in figures.where(model=model, layers=DEEP) if row["steps"] > STEPS]
    for init, steps in dict.fromkeys((row["init"], row["steps"]) for row in longer):
        runs = figures.where(model=model, init=init, steps=steps)
        how = f"{HOW[init]}, {steps} steps at {short(runs[0]['rate'])} {_warmed(runs[0]['warm_up'])}"
        losses = _spread(np.array([run["final"] for run in runs], np.float64))
        yield Finding(not _most(runs), f"{model}, {DEEP} layers, {how}: the loss ends at {losses}")


def clean(figures: Figures) -> Iterator[Finding]:
    """What is far from the loss gets the same gradient in stacks of any depth, and deep models learn as others do."""
    few, *_, many = depths(figures)
    for model in (*PRE, POST, NO_NORM):
        near, far = (drawn(figures, 0, model, layers) for layers in (few, many))
        kept = bool(1 / KEPT <= np.median(far) / np.median(near) <= KEPT)
        text = f"the first layer's gradient is {spread(near)} in a stack of {few}, {_spread(far)} in one of {many}"
        yield Finding(kept is (model in PRE), f"{model}, as drawn: {text}")
    for model in PRE:
        for warm_up in warm_ups(figures, DEEP):
            here, there = (largest(figures, model, layers, warm_up) for layers in (SHALLOW, DEEP))
            found = (f"{layers} layers learn {up_to(figures, model, layers, warm_up)}" for layers in (SHALLOW, DEEP))
            holds = there >= min(here, rates(figures, DEEP)[-1]) > 0
            yield Finding(holds, f"{model}, {_warmed(warm_up)}: {'; '.join(found)}")


def near_the_output(figures: Figures) -> Iterator[Finding]:
    """By depth: the exponents that Xiong et al. derive, 0 and -1/2; and how large the gradients are, however they are drawn."""
    few, *_, many = depths(figures)
    for model, exponent in ((POST, 0.0), *((model, -0.5) for model in PRE)):
        gradients = [float(np.median(drawn(figures, -1, model, layers))) for layers in depths(figures)]
        found = float(np.polyfit(np.log(depths(figures)), np.log(gradients), 1)[0])
        text = f"the last layer's gradient goes with the depth's power {found:.2f}; derived is {exponent:g}"
        yield Finding(abs(found - exponent) < CLOSE, f"{model}, {few} to {many} layers: {text}")
    for init, how in HOW.items():
        post, *pre = (drawn(figures, -1, model, many, init) for model in (POST, *PRE))
        text = f"the last of {many} layers has a gradient of {spread(post)} in Post-LN, {spread(np.concatenate(pre))} in Pre-LN"
        yield Finding(float(np.median(post)) > KEPT * float(np.max(pre)), f"{how}: {text}")


def warming_up(figures: Figures) -> Iterator[Finding]:
    """Post-LN learns at larger rates with it; Pre-LN does not need it."""
    for layers in (SHALLOW, DEEP):
        if len(warm_ups(figures, layers)) < 2:  # a quick run does not ask
            continue
        for model in (POST, *PRE):
            without, warmed = (largest(figures, model, layers, warm_up) for warm_up in warm_ups(figures, layers))
            found = "; ".join(f"{_warmed(w)} {up_to(figures, model, layers, w)}" for w in warm_ups(figures, layers))
            yield Finding(warmed > without if model == POST else without >= warmed > 0, f"{model}, {layers} layers: {found}")


def either_norm(figures: Figures) -> Iterator[Finding]:
    """The same largest rates, and losses that are as good as the same."""
    for layers in (SHALLOW, DEEP):
        same = all(
            len({largest(figures, model, layers, warm_up) for model in PRE}) == 1 for warm_up in warm_ups(figures, layers)
        )
        apart: list[tuple[float, float]] = []
        for rate in rates(figures, layers):
            for warm_up in warm_ups(figures, layers):
                runs = [trained(figures, layers, model=model, rate=rate, warm_up=warm_up) for model in PRE]
                layer_norm, rms_norm = (float(np.median([run["final"] for run in its])) for its in runs)
                apart.append((abs(layer_norm - rms_norm), rate))
        most, where = max(apart)
        text = f"{layers} layers: {'the same largest rates' if same else 'not the same largest rates'}; medians of the losses"
        yield Finding(same and most < ALIKE, f"{text} {short(most)} apart at most, at {short(where)}")


def without_a_norm(figures: Figures) -> Iterator[Finding]:
    """It learns at no rate, nor drawn otherwise."""
    for layers in (SHALLOW, DEEP):
        runs = trained(figures, layers, model=NO_NORM)
        learn, lost = (sum(run["outcome"] == outcome for run in runs) for outcome in ("learns", "not finite"))
        finals = [run["final"] for run in runs if run["outcome"] == "does not learn"]
        others = f"; the losses of the others end at {spread(np.array(finals))}" if finals else ""
        text = f"{learn} of {len(runs)} runs learn, {lost} leave what float32 has{others}"
        yield Finding(not learn, f"{layers} layers: {text}")
    yield from helped(figures, NO_NORM)


def _most(runs: Sequence[Row]) -> bool:
    """Whether more than half of them learn."""
    return 2 * sum(run["outcome"] == "learns" for run in runs) > len(runs)


def _warmed(warm_up: int) -> str:
    return f"warmed up over {warm_up} steps" if warm_up else "without warm-up"


def _spread(values: Array) -> str:
    return spread(values) if np.all(np.isfinite(values)) else "not finite"


CLAIMS = (
    Claim("Post-LN is unstable in deep stacks", unstable),
    Claim("Pre-LN keeps the residual path clean", clean),
    Claim(
        "Post-LN has large gradients near the output, however deep; Pre-LN's shrink with the root of the depth",
        near_the_output,
        XIONG,
    ),
    Claim("Post-LN needs warm-up, Pre-LN does not", warming_up, XIONG),
    Claim("LayerNorm or RMSNorm is all the same to Pre-LN", either_norm, "asked here"),
    Claim("Without a norm a model does not learn", without_a_norm, "asked here"),
)
