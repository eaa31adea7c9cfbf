"""What the notes say of a NaN and of its remedies, judged by the study's figures."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from studies.figures import Figures, Row, short, spread
from studies.nan.measure import ALL, LOWER, RATE, REMEDIES
from studies.study import Claim, Finding

GROWN = 10.0  # a factor that nobody who looks at the statistics would miss
TENFOLD = "10 times the usual"


def runs(figures: Figures, remedy: str) -> list[Row]:
    """Those with a remedy, or none, at its own rate."""
    return figures.where(remedy=remedy, rate=REMEDIES.get(remedy, {}).get("rate", RATE))


def broken(rows: Sequence[Row]) -> list[Row]:
    """Those that turned NaN."""
    return [row for row in rows if row["survived"] < row["steps"]]


def counted(rows: Sequence[Row]) -> str:
    """How many turned NaN, and after how many steps."""
    steps = np.array([row["survived"] for row in broken(rows)])
    return f"NaN in {len(steps)} of {len(rows)} runs" + (f", after {spread(steps)} steps" if len(steps) else "")


def hunted(figures: Figures) -> Iterator[Finding]:
    """The weights are still finite, and what is named first lies in the first layer whose statistics are not: in any dtype."""
    for row in broken(runs(figures, "none")):
        there = "NaN or infinite too" if row["in_float32"] is None else f"as large as {short(row['in_float32'])}"
        text = f"seed {row['seed']}, after {row['survived']} steps: `{row['first']}`; the same step in float32 is {there} there"
        yield Finding(_named(row), text)
    wider = [row for name in ("bfloat16", "float32") for row in broken(runs(figures, name))]
    named = sum(_named(row) for row in wider)
    text = f"bfloat16 and float32: a layer in {named} of {len(wider)} runs; in the others NaN was in the weights already"
    yield Finding(named == len(wider), f"{text}, from the gradients of the step before")


def _named(row: Row) -> bool:
    return bool(row["weights_finite"]) and row["first"].startswith(f"stack.{row['layer']}.")


def growth(row: Row) -> float:
    """In the step of the NaN: the deviation after the last finite layer by that after the first."""
    finite = row["layer_std"][-1][: row["layer"]]
    return finite[-1] / finite[0] if finite else 1.0


def alarms(row: Row) -> list[bool]:
    """For every step before the NaN: whether a layer puts out more than 10 times the usual, which is the median so far."""
    peak = row["peak"]
    return [step > 0 and peak[step] > GROWN * float(np.median(peak[:step])) for step in range(len(peak))]


def ahead(row: Row) -> int:
    """For how many steps there was an alarm without a break when the NaN came."""
    calm = [step for step, alarm in enumerate(alarms(row)) if not alarm]
    return len(row["peak"]) - 1 - max(calm, default=-1)


def foretold(figures: Figures) -> Iterator[Finding]:
    """Layer by layer in the step itself; step by step before it; and not where no NaN follows."""
    rows = broken(runs(figures, "none"))
    grown, steps = np.array([growth(row) for row in rows]), np.array([ahead(row) for row in rows])
    text = f"in its step the deviation grows {spread(grown)}-fold from the first layer to the last that is finite"
    yield Finding(bool(np.all(grown > GROWN)), text)
    text = f"the step before, a layer puts out {TENFOLD} in {np.sum(steps > 0)} of {len(rows)} runs"
    yield Finding(bool(np.all(steps > 0)), f"{text}; for {spread(steps)} steps")
    false = sum(sum(alarms(row)) - ahead(row) for row in rows)
    text = f"{false} of all {sum(len(row['peak']) for row in rows)} steps had {TENFOLD} and then less again"
    yield Finding(false == 0, text)


def float16s(figures: Figures) -> Iterator[Finding]:
    """float32 goes on where float16 turns NaN."""
    for rate in (RATE, LOWER):
        float16, float32 = (figures.where(remedy=name, rate=rate) for name in ("none", "float32"))
        text = f"rate {short(rate)}: in float32 {counted(float32)}; in float16 {counted(float16)}"
        yield Finding(len(broken(float32)) == 0 < len(broken(float16)), text)


def safer(figures: Figures) -> Iterator[Finding]:
    """Seed by seed its runs last as long as float16's, and some longer; and fewer of its gradients are lost."""
    for rate in (RATE, LOWER):
        float16, bfloat16 = (figures.where(remedy=name, rate=rate) for name in ("none", "bfloat16"))
        gained = np.array([row["survived"] - other["survived"] for row, other in zip(bfloat16, float16, strict=True)])
        text = f"rate {short(rate)}: longer finite than float16 in {np.sum(gained > 0)} of {len(gained)} runs"
        text = f"{text}, shorter in {np.sum(gained < 0)}; {counted(bfloat16)}, in float16 in {len(broken(float16))}"
        yield Finding(bool(np.all(gained >= 0) and np.any(gained > 0)), text)
    lost = [100 * figures.values("underflow", remedy=name, rate=RATE) for name in ("bfloat16", "none")]
    text = "of the layers' gradients are zero in the first step"
    yield Finding(bool(np.all(lost[0] < lost[1])), f"{spread(lost[0])} % {text} in bfloat16, {spread(lost[1])} % in float16")


def helps(remedy: str, figures: Figures) -> Iterator[Finding]:
    """No NaN, or at least a later one; and where there is none, the model learns more than how often each byte occurs."""
    rows, without = runs(figures, remedy), runs(figures, "none")
    alive = [row for row in rows if row not in broken(rows)]
    name = f"{remedy}: " if remedy in ("Kaiming", "Xavier") else ""
    yield Finding(len(alive) == len(rows), f"{name}{counted(rows)}; without it {counted(without)}")
    if len(alive) < len(rows):
        gained = np.array([row["survived"] - other["survived"] for row, other in zip(rows, without, strict=True)])
        text = f"{name}finite for longer in {np.sum(gained > 0)} of {len(rows)} runs, by {spread(gained)} steps"
        yield Finding(bool(np.all(gained > 0)), text)
    if alive:
        loss, unigram = np.array([row["final"] for row in alive]), alive[0]["unigram"]
        text = f"the loss is {spread(loss)} after {alive[0]['steps']} steps; the bytes' frequencies alone have {short(unigram)}"
        yield Finding(bool(np.all(loss < unigram)), name + text)


def initialised(figures: Figures) -> Iterator[Finding]:
    """Either of them helps, and at least where matrices were drawn with a deviation of one."""
    for init in ("Kaiming", "Xavier"):
        yield from helps(init, figures)
        rows, broad = runs(figures, init), runs(figures, "broad")
        text = f"{init}: {counted(rows)}; where matrices are drawn with a deviation of one {counted(broad)}"
        yield Finding(len(broken(rows)) < len(broken(broad)), text)


CLAIMS = (
    Claim("Statistics after every layer name the first that turns NaN", hunted),
    Claim("They tell of it ahead", foretold, "asked here"),
    Claim("It is float16 that turns NaN, and not the model", float16s, "asked here"),
    Claim("Pre-LN with RMSNorm mends it", partial(helps, "Pre-LN, RMSNorm")),
    Claim("A lower rate and a warm-up mend it", partial(helps, "lower rate, warm-up")),
    Claim("Kaiming or Xavier initialisation mends it", initialised),
    Claim("Clipping the gradient at a norm of 1.0 mends it", partial(helps, "clipping")),
    Claim("bfloat16's autocast mends it", partial(helps, "bfloat16")),
    Claim("All of them together mend it", partial(helps, ALL)),
    Claim("bfloat16 is safer than float16", safer),
)
