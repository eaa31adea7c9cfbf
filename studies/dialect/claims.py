"""What the notes say of the output's dtype, and what is asked of the two cast orders, judged by the study's figures."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from studies.dialect.measure import MODEL, SUBJECTS
from studies.figures import Array, Figures, short, spread
from studies.study import Claim, Finding

HALF = ("bfloat16", "float16")
SMALL = 0.1  # of what another seed makes: a difference that nobody would see


def keeps_dtype(figures: Figures) -> Iterator[Finding]:
    """In either order, with a weight of x's dtype and of float32."""
    for dtype in HALF:
        for weight_dtype in (dtype, "float32"):
            rows = figures.where(subject="normal weights", dtype=dtype, weight_dtype=weight_dtype)
            for order, name in (("then", "cast, then scale"), ("now", "scale, then cast")):
                [got, *others] = {row[f"dtype_{order}"] for row in rows}
                yield Finding(got == dtype and not others, f"x {dtype}, weight {weight_dtype}, {name}: y {got}")


def one_layer(figures: Figures) -> Iterator[Finding]:
    """No output of the layer differs, whatever the weight."""
    for subject in SUBJECTS[:-1]:
        for dtype in figures.choices("dtype"):
            where = {"subject": subject, "dtype": dtype, "weight_dtype": dtype}
            differ, ulps = figures.values("differ", **where), figures.values("ulps", **where)
            text = (
                f"{subject}, {dtype}: {spread(100 * differ)} % of outputs differ, by at most {short(float(np.max(ulps)))} ulp"
            )
            yield Finding(bool(np.all(differ == 0)), text)


def moved(figures: Figures, dtype: str) -> Array:
    """What a model's loss moves by when it is loaded into the other order."""
    then, now = (figures.values(f"loss_{order}", subject=MODEL, dtype=dtype) for order in ("then", "now"))
    return np.abs(now - then)


def reseeded(figures: Figures, dtype: str) -> Array:
    """What the loss of a model of another seed differs by, for every pair of seeds."""
    losses = figures.values("loss_then", subject=MODEL, dtype=dtype)
    return np.array([abs(a - b) for a, b in combinations(losses, 2)])


def loads(figures: Figures) -> Iterator[Finding]:
    """The loss moves by less than anything that a person would look at."""
    for dtype in HALF:
        move, other = moved(figures, dtype), reseeded(figures, dtype)
        differ = spread(100 * figures.values("differ", subject=MODEL, dtype=dtype))
        loss = spread(figures.values("loss_then", subject=MODEL, dtype=dtype))
        text = f"{differ} % of logits differ; the loss, {loss}, moves by {spread(move)}, with another seed by {spread(other)}"
        yield Finding(bool(np.max(move) < SMALL * np.min(other)), f"{dtype}: {text}")


CLAIMS = (
    Claim("The output's dtype is x's dtype", keeps_dtype),
    Claim("Cast, then scale, and scale, then cast, are one layer", one_layer, "asked here"),
    Claim("A trained model may be loaded into either order", loads, "asked here"),
)
