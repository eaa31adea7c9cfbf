"""What the notes say of eps and half precision, judged by the study's figures."""

from collections.abc import Iterator, Sequence

from studies.eps.measure import OUTCOMES, SCALES
from studies.figures import Figures, short
from studies.study import Claim, Finding

FATAL = ("zero", "infinite", "NaN")


def worst(figures: Figures, dtype: str, statistics: str, eps: float, scale: float) -> str:
    """The worst outcome of a set-up over its repeats."""
    rows = figures.where(dtype=dtype, statistics=statistics, eps=eps, scale=scale)
    return max((row["outcome"] for row in rows), key=OUTCOMES.index)


def scales(figures: Figures, outcomes: Sequence[str], dtype: str, statistics: str, eps: float) -> list[float]:
    """The input scales at which the worst outcome is one of these."""
    return [scale for scale in figures.choices("scale") if worst(figures, dtype, statistics, eps, scale) in outcomes]


def count(figures: Figures, outcomes: Sequence[str], dtype: str, statistics: str) -> int:
    """The set-ups of a dtype, over eps and scale, of which the worst outcome is one of these."""
    return sum(len(scales(figures, outcomes, dtype, statistics, eps)) for eps in figures.choices("eps"))


def between(scales: Sequence[float]) -> str:
    """A list of scales in words; runs of neighbours by their ends."""
    runs: list[list[float]] = []
    for scale in scales:
        if runs and SCALES.index(scale) == SCALES.index(runs[-1][-1]) + 1:
            runs[-1].append(scale)
        else:
            runs.append([scale])
    return ", ".join(short(run[0]) if len(run) == 1 else f"{short(run[0])} to {short(run[-1])}" for run in runs)


def underflow(figures: Figures) -> Iterator[Finding]:
    """1e-8 fails in float16, 1e-5 does not, and it is the layer as the notes have it that fails."""
    for statistics, eps, fails in (("in x's dtype", 1e-8, True), ("in x's dtype", 1e-5, False), ("in float32", 1e-8, True)):
        undefined = scales(figures, ("infinite", "NaN"), "float16", statistics, eps)
        where = "statistics in float16" if statistics == "in x's dtype" else "statistics in float32, as the layer has them"
        total = len(figures.choices("scale"))
        at = f" ({between(undefined)})" if undefined else ""
        lost = f"NaN or infinite at {len(undefined)} of {total} input scales{at}"
        yield Finding(bool(undefined) is fails, f"{where}, eps {short(eps)}: {lost}")


def safer(figures: Figures) -> Iterator[Finding]:
    """Fewer outputs of bfloat16 are lost."""
    total = len(figures.choices("scale")) * len(figures.choices("eps"))
    for statistics in figures.choices("statistics"):
        bfloat16, float16 = (count(figures, FATAL, dtype, statistics) for dtype in ("bfloat16", "float16"))
        lost = f"zero, infinite or NaN in {bfloat16} of {total} set-ups in bfloat16, in {float16} in float16"
        yield Finding(bfloat16 < float16, f"statistics {statistics}: {lost}")


def float_pays(figures: Figures) -> Iterator[Finding]:
    """Without it there are wrong elements, with it there are none."""
    total = len(figures.choices("scale")) * len(figures.choices("eps"))
    for dtype in ("float16", "bfloat16"):
        without, with_float = (count(figures, OUTCOMES[1:], dtype, statistics) for statistics in ("in x's dtype", "in float32"))
        text = f"wrong elements in {without} of {total} set-ups without it, in {with_float} with it"
        yield Finding(with_float == 0 < without, f"{dtype}: {text}")


CLAIMS = (
    Claim("In float16 an eps of 1e-8 underflows where 1e-5 holds", underflow),
    Claim("bfloat16 is safer than float16", safer),
    Claim("The layer's `.float()`, statistics in float32, is what half precision needs", float_pays),
)
