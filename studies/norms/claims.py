"""What the notes say of the norms' speed and memory, judged by the study's figures; and what is asked besides."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from studies.figures import Array, Figures, Row, short, spread
from studies.norms.contenders import BATCH_NORM, LAYER_NORM, NONE, NOTED, OUR_LAYER_NORM, OURS, TORCHS
from studies.norms.measure import ROOTS
from studies.norms.turns import PHASES
from studies.study import Claim, Finding

FORWARD, BACKWARD, STEP = range(len(PHASES))
NOTES = {"forward": (2.3, 2.1), "backward": (4.5, 4.0), "step": (45.2, 42.1), "memory": (2.8, 2.7)}  # LayerNorm's, RMSNorm's
AS_CLAIMED = "saves what is claimed"
ROOT_SAVING = 0.05  # of 5 to 10 %
EXACT = 0.01  # of a mean or a deviation: eps takes a little of a deviation
RMS_NORMS = {NOTED: LAYER_NORM, OURS: OUR_LAYER_NORM, TORCHS: LAYER_NORM}  # each with the LayerNorm that it is compared with


def saving(quantity: str) -> float:
    """What the notes say that RMSNorm saves, as a share."""
    before, after = NOTES[quantity]
    return 1 - after / before


def timed(figures: Figures, *pairs: tuple[str, str]) -> list[dict[str, Any]]:
    """In which settings these pairs were timed, each once."""
    names = ("subject", "mode", "dtype", "norm", "against")
    rows = [row for row in figures.where(asked="time") if (row["norm"], row["against"]) in pairs]
    return [dict(zip(names, key, strict=True)) for key in dict.fromkeys(tuple(row[name] for name in names) for row in rows)]


def ratios(figures: Figures, phase: int, **setting: Any) -> Array:
    """For every seed, the median over the rounds of a time over its neighbour's."""
    return figures.values("ratio", asked="time", **setting)[:, phase]


def peak(figures: Figures, norm: str, **setting: Any) -> Row:
    """The figures of a training step's memory."""
    return figures.where(asked="memory", norm=norm, **setting)[0]


def judged(values: Array, saved: float) -> str:
    """In words: what was claimed is met where at least half of it is saved in every repeat."""
    if np.max(values) <= 1 - saved / 2:
        return AS_CLAIMED
    if np.max(values) < 1:
        return "saves less than claimed"
    return "takes more" if np.min(values) > 1 else "not told apart"


def faster(phase: int) -> Callable[[Figures], Iterator[Finding]]:
    """RMSNorm takes less time, in every setting."""

    def implies(figures: Figures) -> Iterator[Finding]:
        for setting in timed(figures, *RMS_NORMS.items()):
            yield less(figures, phase, saving(PHASES[phase]), **setting)

    return implies


def less(figures: Figures, phase: int, saved: float, **setting: Any) -> Finding:
    """One of them takes less time than the other."""
    values = ratios(figures, phase, **setting)
    before, after = (
        short(float(np.median(figures.values(column, asked="time", **setting)[:, phase]))) for column in ("against_ms", "ms")
    )
    word = judged(values, saved)
    text = f"{where(**setting)}: {spread(values)} of the time, {before} → {after} ms: {word}"
    return Finding(word == AS_CLAIMED, text)


def where(subject: str, norm: str, against: str, mode: str, dtype: str) -> str:
    """A setting in words."""
    return f"{subject}, {mode}, {dtype}, {norm} against {against}"


def smaller(figures: Figures) -> Iterator[Finding]:
    """RMSNorm's training step takes less memory."""
    for its in figures.where(asked="memory"):
        if its["norm"] in RMS_NORMS:
            setting = {name: its[name] for name in ("subject", "mode", "dtype")}
            other = peak(figures, RMS_NORMS[its["norm"]], **setting)
            ratio, megabytes = its["peak"] / other["peak"], " → ".join(f"{row['peak'] / 1e6:.4g}" for row in (other, its))
            word = judged(np.array([ratio]), saving("memory"))
            named = where(**setting, norm=its["norm"], against=other["norm"])
            yield Finding(word == AS_CLAIMED, f"{named}: {ratio:.3f} of the bytes, {megabytes} MB: {word}")


def rooted(figures: Figures) -> Iterator[Finding]:
    """The rsqrt saves its share in the layer, and alone."""
    for setting in timed(figures, *ROOTS):
        yield less(figures, FORWARD, ROOT_SAVING, **setting)


def halved(figures: Figures) -> Iterator[Finding]:
    """The parameters of a layer, and of all norms of a model."""
    for norm, against in RMS_NORMS.items():
        its, other = (figures.where(asked="output", norm=name)[0]["parameters"] for name in (norm, against))
        yield Finding(2 * its == other, f"a layer, {norm}: {its}; {against}: {other}")
    models = [peak(figures, name, subject="model") for name in (TORCHS, LAYER_NORM)]
    its, other = (row["parameters"] for row in models)
    width = figures.where(asked="output", norm=TORCHS)[0]["parameters"]
    norms = 2 * models[0]["layers"] + 1
    text = f"a model with {norms} norms: {its} against {other} parameters, {short(100 * (other - its) / other)} % fewer"
    yield Finding(other - its == norms * width, text)


def centred(figures: Figures) -> Iterator[Finding]:
    """What is 0 and what is 1 of an output, and what keeps the mean that it had."""
    for norm in dict.fromkeys(row["norm"] for row in figures.where(asked="output")):
        rows = figures.where(asked="output", norm=norm)
        which, size = ("column", "std") if norm == BATCH_NORM else ("row", "rms" if norm in RMS_NORMS else "std")
        means, sizes = (np.array([row[f"{which}_{of}"] for row in rows]) for of in ("mean", size))
        zero = bool(np.all(np.abs(means) < EXACT))
        one = bool(np.all(np.abs(sizes - 1) < EXACT))
        text = f"{norm}: {which} means {between(means)}, {NAMES[size]} {between(sizes)}"
        yield Finding(one and zero is (norm not in RMS_NORMS), text)


NAMES = {"std": "standard deviations", "rms": "root mean squares"}


def between(values: Array) -> str:
    """The least and the greatest of all."""
    low, high = (short(float(value)) for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def enough(figures: Figures) -> Iterator[Finding]:
    """Without any norm the model saves what the notes have RMSNorm save."""
    for setting in timed(figures, (NONE, LAYER_NORM)):
        for phase, name in enumerate(PHASES):
            saved = 1 - ratios(figures, phase, **setting)
            text = f"{setting['mode']}, {name}: without any norm {spread(100 * saved)} % less time than with {LAYER_NORM}"
            claimed = saving(name)
            yield Finding(bool(np.all(saved >= claimed)), f"{text}; RMSNorm is to save {short(100 * claimed)} %")


def no_dearer(figures: Figures) -> Iterator[Finding]:
    """BatchNorm's step takes no more time than LayerNorm's."""
    for setting in timed(figures, (BATCH_NORM, LAYER_NORM)):
        values = ratios(figures, STEP, **setting)
        yield Finding(bool(np.max(values) <= 1), f"{where(**setting)}: {spread(values)} of the time of a step")


CLAIMS = (
    Claim("RMSNorm is faster than LayerNorm: forward, 2.3 → 2.1 ms, 8.7 %", faster(FORWARD)),
    Claim("RMSNorm is faster than LayerNorm: backward, 4.5 → 4.0 ms, 11.1 %", faster(BACKWARD)),
    Claim("RMSNorm is faster than LayerNorm: training, 1000 steps in 45.2 → 42.1 s, 6.9 %", faster(STEP)),
    Claim("RMSNorm takes less memory than LayerNorm: 2.8 → 2.7 GB, 3.6 %", smaller),
    Claim("rsqrt is 5 to 10 % faster than 1/sqrt", rooted),
    Claim("RMSNorm has d parameters, LayerNorm 2d", halved),
    Claim("LayerNorm centres every row, BatchNorm every column, RMSNorm neither", centred, "asked here"),
    Claim("Norms take so much of a model's time that another one can save what the notes say", enough, "asked here"),
    Claim("BatchNorm takes no more time than LayerNorm", no_dearer, "asked here"),
)
