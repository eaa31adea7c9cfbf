"""The study `eps`."""

from collections.abc import Iterator
from itertools import product
from typing import Any

from studies.eps.claims import CLAIMS, between, scales
from studies.eps.measure import OUTCOMES, measure, setups
from studies.eps.picture import draw
from studies.figures import Figures, short
from studies.study import Study, Table


def tables(figures: Figures) -> tuple[Table]:
    """For every dtype and kind of statistics: at which scales which outcome, and why; each text once, with its eps."""
    body: list[tuple[str, ...]] = []
    for dtype, statistics in product(figures.choices("dtype"), figures.choices("statistics")):
        by_text: dict[str, list[str]] = {}
        for eps in figures.choices("eps"):
            text = "; ".join(_outcomes(figures, dtype, statistics, eps)) or "right at every scale"
            by_text.setdefault(text, []).append(short(eps))
        body += [(dtype, statistics, ", ".join(all_eps), text) for text, all_eps in by_text.items()]
    return (
        Table("What becomes of y, the worst of any repeat, and at which input scales", ("x", "statistics", "eps", "y"), body),
    )


def _outcomes(figures: Figures, dtype: str, statistics: str, eps: float) -> Iterator[str]:
    """The outcomes that are not right, the worst first."""
    setup: dict[str, Any] = {"dtype": dtype, "statistics": statistics, "eps": eps}
    for outcome in reversed(OUTCOMES[1:]):
        by_why: dict[str, list[float]] = {}
        for scale in scales(figures, (outcome,), **setup):
            by_why.setdefault(figures.where(**setup, scale=scale, outcome=outcome)[0]["why"], []).append(scale)
        for why, its in by_why.items():
            yield f"{outcome} at {between(its)}" + (f" ({why})" if why else "")


METHOD = """\
RMSNorm of 16 rows of 512 normal deviates (MiniMind-small's width) times the input scale, and of rows of zeros, without
a weight, so that the order of cast and scale does not matter. *In float32* is `impl_torch.rms_norm`, which is the layer
as the notes have it; *in x's dtype* is the same formula with the `.float()` taken out: `x *
torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)`.

Every element of y is judged by the interval that the golden, given the same x and the same eps, admits to honest
float32 arithmetic ([tolerances](../tolerances.md)); a set-up is called by the worst of its elements: right, rounded
(outside by at most 4 ulps), off (by more), zero, infinite, NaN. Why is read off the steps of the formula: which of them
left the range of the dtype."""

STUDY = Study(
    name="eps",
    method=METHOD,
    columns={
        "dtype": "the dtype of x and y",
        "statistics": "where squares, mean and rsqrt are computed",
        "eps": "joins the mean square inside the root; the float32 nearest to it, everywhere",
        "scale": "the standard deviation of x before it is rounded to its dtype; 0: rows of zeros",
        "seed": "of NumPy's generator, which draws x",
        "outcome": f"the worst that happened to an element of y: {', '.join(OUTCOMES)}",
        "outside": "the share of elements outside the golden's intervals",
        "error": "the largest error of a finite element outside its interval, in ulps; null where none is finite",
        "rms": "the root mean square of the golden y",
        "why": "the first step that left the dtype's range, where y is not right",
    },
    setups=setups,
    measure=measure,
    claims=CLAIMS,
    tables=tables,
    caption="What becomes of RMSNorm's output by input scale and eps, with statistics in x's dtype and in float32.",
    draw=draw,
)
