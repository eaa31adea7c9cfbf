"""Which dialect an implementation follows, told from its numbers alone.

The cast order and the offset show in the share of y's elements that equal, bit for bit, what a dialect's own roundings
give: the right one reaches 1 but for rounding boundaries, any wrong one stays below 0.9 (the weight is neither one nor a
power of two). eps shows in the scale of rows whose mean square is near it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from conformance.dialects import Dialect, Order
from conformance.expected import Expected
from conformance.golden import golden
from conformance.inputs import Draw
from conformance.mistakes import MISTAKES
from conformance.norms.anatomy import Norm, outputs_of, true_norm
from conformance.norms.cases import ROW_NORM_CASES, ROW_NORMS, NormCase, RowNormOp
from conformance.protocol import Hello
from conformance.rounding import HALF, DType
from conformance.session import NoAnswer, Session

Array = np.ndarray
Ask = Callable[[NormCase], Array | str]
"""Asks a port for y: its numbers in the dtype they came in, or why there are none, in words."""

DECIDES = 0.99  # the share of equal elements from which on a dialect is taken to be the one followed
SHAPE = (128, 128)
EPS = (float(np.float32(1e-5)), float(np.float32(1e-3)))  # asked in turn: one that does not change is hard-coded
UNSTEADY = 0.05
WIDEST_FIRST: tuple[DType, ...] = ("float64", "float32", "float16", "bfloat16")
ORDERS: tuple[Order, ...] = ("scale_then_cast", "cast_then_scale")
WEIGHT_DTYPES: tuple[Literal["storage", "float32"], ...] = ("storage", "float32")
BY_ID = {mistake.id: mistake for mistake in MISTAKES}
VARIANTS: dict[str, Callable[[Norm], Norm]] = {
    "": lambda norm: norm,
    "the weight rounded first": BY_ID["weight_in_storage_dtype"].alter,
    "weight and bias rounded first": BY_ID["parameters_in_storage_dtype"].alter,
    "every step in x's dtype": BY_ID["computed_in_storage_dtype"].alter,
}


@dataclass(frozen=True, slots=True)
class Match:
    """A dialect by name, and the share of y's elements that are exactly its own."""

    name: str
    share: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found out: what was asked, what it is in words, and the figures that say so; not `told` if nothing fits."""

    asked: str
    found: str
    evidence: str
    told: bool = True


def identify(op: RowNormOp, hello: Hello, ask: Ask) -> tuple[Finding, ...]:
    """What one op of a port follows: cast order and offset, what it makes of a float32 weight, and eps."""
    return tuple(_findings(op, hello, ask))


def identify_port(session: Session, ops: tuple[RowNormOp, ...] = ROW_NORMS) -> dict[RowNormOp, tuple[Finding, ...]]:
    """What every op of a port follows. Raises `PortFailure` where it cannot be started."""
    hello = session.hello

    def ask_for_y(case: NormCase) -> Array | str:
        try:
            return session.ask(case, golden(case).inputs).outputs["y"]
        except NoAnswer as answer:
            return str(answer).partition("\n")[0]

    return {op: identify(op, hello, ask_for_y) for op in ops if op in hello.ops}


def _findings(op: RowNormOp, hello: Hello, ask: Ask) -> Iterator[Finding]:
    offset = 0 if 0 in hello.weight_offsets else 1
    half = next((dtype for dtype in HALF if dtype in hello.dtypes), None)
    orders: list[Order] = [order for order in ORDERS if order in (hello.orders or ORDERS)]
    if half is None:
        yield Finding("cast order", "not to be told", "no half precision: there is no cast")
    else:
        for order in orders:
            for weight_dtype in WEIGHT_DTYPES:
                yield _cast_order(_case(op, half, Dialect(order, offset, weight_dtype)), ask)
    widest = next((dtype for dtype in WIDEST_FIRST if dtype in hello.dtypes), None)
    if widest is None:
        yield Finding("eps", "not asked", f"none of the port's dtypes is known: {', '.join(hello.dtypes) or 'it has none'}")
        return
    yield _eps(_case(op, widest, Dialect(orders[0] if widest in HALF else "either_order", offset)), ask)


def _case(op: RowNormOp, dtype: str, dialect: Dialect) -> NormCase:
    """Ordinary rows, many of them, with a weight that is neither one nor a power of two."""
    random = next(case for case in ROW_NORM_CASES if case.op == op and case.name == "random")
    return replace(random, name="identify", dtype=dtype, dialect=dialect, shape=SHAPE)


def _cast_order(case: NormCase, ask: Ask) -> Finding:
    asked = f"{case.dialect.order}, {case.dtype} x, {case.dialect.parameter_dtype(case.dtype)} weight"
    y = ask(case)
    if isinstance(y, str):
        return Finding(asked, "not asked", y)
    returned = f"y is {y.dtype.name}"
    best, runner_up, *_ = matches(case, y)
    evidence = f"matches {best.share:.2%} of {y.size} elements; next is {runner_up.name}: {runner_up.share:.2%}"
    if best.share < DECIDES:
        return Finding(asked, f"no known dialect; {returned}", f"{best.name} {evidence}", told=False)
    return Finding(asked, f"{best.name}; {returned}", evidence)


def matches(case: NormCase, y: Array) -> tuple[Match, ...]:
    """How well y, in the dtype it came in, matches every known dialect, best first; those alike here go by the first's name."""
    found: dict[bytes, Match] = {}
    for name, expected in _candidates(case, y.dtype.name):
        found.setdefault(expected.nearest.tobytes(), Match(name, _share(expected, y)))
    return tuple(sorted(found.values(), key=lambda match: match.share, reverse=True))


def _candidates(case: NormCase, output_dtype: str) -> Iterator[tuple[str, Expected]]:
    """Every dialect's y on this case's inputs, in the dtype that came."""
    true = replace(true_norm(case, 0), output_dtypes=lambda dtypes: dtypes | {"y": output_dtype})
    for variant, alter in VARIANTS.items():
        for order in ORDERS:
            for offset in (0, 1):
                norm = alter(replace(true, dialect=replace(case.dialect, order=order), offset=float(offset)))
                yield (
                    ", ".join([order] + ["weight offset 1"] * offset + [variant] * bool(variant)),
                    outputs_of(norm, "formula")["y"],
                )


def _share(expected: Expected, y: Array) -> float:
    """The share of elements that are exactly as expected, by any of the dialect's own placements.

    In float32 nothing is exact: there it is the share within the interval.
    """
    actual = y.astype(np.float64)
    scale = 0.0 if expected.dtype in HALF else 1.0
    equal = np.zeros(y.shape, bool)
    for placement in expected.placements:
        lower, upper = replace(expected, placements=(placement,), _intervals={}).interval(scale)
        equal |= (lower <= actual) & (actual <= upper)
    return float(np.mean(equal))


def _eps(case: NormCase, ask: Ask) -> Finding:
    estimates: list[Estimate] = []
    for eps in EPS:
        small = replace(case, eps=eps, x=Draw(scale=math.sqrt(eps)))
        y = ask(small)
        if isinstance(y, str):
            return Finding("eps", "not asked", y)
        estimates.append(_estimate(small, y.astype(np.float64)))
    first, second = estimates
    evidence = f"{first.eps:.3g} where {EPS[0]:.3g} is asked, {second.eps:.3g} where {EPS[1]:.3g} is"
    if first.place != second.place or first.spread > UNSTEADY:
        return Finding(
            "eps", "neither under the root nor added to it", f"rows disagree by {first.spread:.0%} of it", told=False
        )
    if np.allclose([first.eps, second.eps], EPS, rtol=0.02):
        return Finding("eps", f"{first.place}, as asked", evidence)
    if np.allclose([first.eps, second.eps], 0, atol=1e-4 * EPS[0]):
        return Finding("eps", "left out", evidence)
    if math.isclose(first.eps, second.eps, rel_tol=0.1):
        return Finding("eps", f"{first.place}, hard-coded at {first.eps:.3g}", evidence)
    return Finding("eps", f"{first.place}, but not what is asked", evidence)


@dataclass(frozen=True, slots=True)
class Estimate:
    """eps as the scales of the rows have it, how far the rows disagree, in units of the eps asked, and where it stands."""

    eps: float
    spread: float
    place: str


def _estimate(case: NormCase, y: Array) -> Estimate:
    """Least squares give every row's scale, rstd, for a weight with and without an offset; eps follows from it."""
    given = {name: array.astype(np.float64) for name, array in golden(case).inputs.items()}
    x = given["x"] - (np.mean(given["x"], axis=-1, keepdims=True) if case.op == "layer_norm" else 0.0)
    target, mean_square = y - given.get("bias", 0.0), np.mean(x**2, axis=-1)
    fits: list[tuple[float, Array]] = []
    for offset in (0, 1):
        weighted = x * (given["weight"] + offset)
        scale = np.sum(target * weighted, axis=-1) / np.sum(weighted**2, axis=-1)
        fits.append((float(np.sum((target - scale[..., None] * weighted) ** 2)), scale))
    rstd = min(fits, key=lambda fit: fit[0])[1]
    with np.errstate(all="ignore"):
        places = {"inside the root": rstd**-2.0 - mean_square, "outside the root": 1 / rstd - np.sqrt(mean_square)}
    estimates = [Estimate(float(np.median(eps)), float(np.std(eps) / case.eps), place) for place, eps in places.items()]
    return min(estimates, key=lambda estimate: estimate.spread)
