"""Which dialect an implementation follows, told from its numbers alone, in every dtype that it has.

The cast order and the offset show in the share of y's elements that equal, bit for bit, what a dialect's own roundings
give: the right one reaches 1 but for rounding boundaries, any wrong one stays below 0.9 (the weight is neither one nor a
power of two). Where nothing is cast, in float32 and float64, the offset shows in the share that lies in its intervals.
What a norm of a sum reads, the sum as it is stored or as it was before, shows in the same way; so does the place of a gate, and
its activation; and so does what is quantised, y as it would be stored or as it was before, in the share of q.
eps shows in the scale of rows whose mean square is near it: asked in three sizes, it is what was asked, or left out, a
constant, or never less than some number.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from conformance.mistakes import MISTAKES
from conformance.numbers.expected import Expected
from conformance.numbers.rounding import DTYPES, HALF, DType
from conformance.ops.draw import Draw
from conformance.ops.golden import golden
from conformance.ops.norms.anatomy import Norm, true_norm
from conformance.ops.norms.cases import QUANTISED, ROW_BY_ROW, ROW_NORMS, NormCase, NormOp
from conformance.ops.norms.gated_norm import GatedNormCase
from conformance.ops.norms.quantised import QuantisedCase
from conformance.ops.norms.stages import Gated
from conformance.ops.table import OPS
from conformance.port.protocol import Hello
from conformance.port.session import NoAnswer, Session
from conformance.question.dialects import GATED_BY, QUANTISED_BY, SPOKEN_BY, SUMS, Dialect, Order, QuantisedY, Sum
from conformance.tools.scoreboard.estimated_eps import Estimates, estimate, followed
from reference.gated_norm import ACTIVATIONS

Array = np.ndarray
Identified = NormOp
IDENTIFIED: tuple[Identified, ...] = ROW_BY_ROW
Ask = Callable[[NormCase], Array | str]
"""Asks a port for y, or for q: its numbers in the dtype they came in, or why there are none, in words."""

DECIDES = 0.99  # the share of equal elements from which on a dialect is taken to be the one followed
SHAPE = (128, 128)
EPS = tuple(float(np.float32(eps)) for eps in (1e-7, 1e-5, 1e-3))  # asked in turn: one that does not change is hard-coded
NOT_ASKED = "not asked"
STORED: tuple[Sum, ...] = ("rounded", "float32")  # what a port is asked that does not say which sums it has: one a dtype
YS: tuple[QuantisedY, ...] = ("rounded", "unrounded")
FINE = 2.0**-5  # a static scale of int8 that leaves few of y's digits and saturates little
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
    """One thing found out of a `dtype`: what was asked, what it is in words, and the figures that say so.

    Not `told` if nothing fits.
    """

    dtype: str
    asked: str
    found: str
    evidence: str
    told: bool = True


def identify(op: Identified, hello: Hello, ask: Ask, dtypes: tuple[DType, ...] = DTYPES) -> tuple[Finding, ...]:
    """What one op of a port follows in each of these dtypes: cast order and offset, what a float32 weight does, and eps."""
    known: list[DType] = [dtype for dtype in dtypes if dtype in hello.dtypes and (op not in QUANTISED or dtype != "float64")]
    if not known:
        evidence = f"the port has {', '.join(hello.dtypes) or 'no dtype'}; asked were {', '.join(dtypes)}"
        return (Finding("", "dialect", NOT_ASKED, evidence),)
    return tuple(finding for dtype in known for finding in _of_dtype(op, dtype, hello, ask))


def identify_port(
    session: Session, ops: tuple[Identified, ...] = IDENTIFIED, dtypes: tuple[DType, ...] = DTYPES
) -> dict[Identified, tuple[Finding, ...]]:
    """What every op of a port follows. Raises `PortFailure` where it cannot be started."""
    hello = session.hello

    def ask_for_y(case: NormCase) -> Array | str:
        try:
            return session.ask(case, golden(case).inputs).outputs[case.made[0]]
        except NoAnswer as answer:
            return str(answer).partition("\n")[0]

    return {op: identify(op, hello, ask_for_y, dtypes) for op in ops if op in hello.ops}


def _of_dtype(op: Identified, dtype: DType, hello: Hello, ask: Ask) -> Iterator[Finding]:
    offset = 0 if 0 in hello.weight_offsets else 1
    half = dtype in HALF
    orders: list[Order] = [order for order in ORDERS if order in (hello.orders or ORDERS)] if half else ["either_order"]
    adds = "residual" in OPS[op].arguments
    sums: list[Sum] = [sum_ for sum_ in SUMS if sum_ in (hello.sums or STORED)] if half and adds else [""]
    ys: list[QuantisedY] = [y for y in YS if y in (hello.ys or YS[:1])] if half and op in QUANTISED else [""]
    for sum_, y in product(sums, ys):
        for order in orders:
            for weight_dtype in WEIGHT_DTYPES if half and op in ROW_NORMS else WEIGHT_DTYPES[:1]:
                for case in _cases(op, dtype, Dialect(order, offset, weight_dtype, sum_, y)):
                    yield _cast_order(case, ask)
    if op not in QUANTISED:  # of y's size too little is left
        found = [_eps(case, ask) for case in _cases(op, dtype, Dialect(orders[0], offset, sum=sums[0]))]
        yield next((finding for finding in found if finding.found != NOT_ASKED), found[0])


def _cases(op: Identified, dtype: str, dialect: Dialect) -> list[NormCase]:
    """Ordinary rows, many of them, with a weight that is neither one nor a power of two; every place and kind of a gate."""
    random: NormCase = next(case for case in OPS[op].cases if case.name.endswith("random"))
    case = replace(random, name="identify", dtype=dtype, dialect=dialect, shape=SHAPE)
    if isinstance(case, QuantisedCase):
        return [replace(case, quantised_dtype="int8", static_scale=FINE)]
    if not isinstance(case, GatedNormCase):
        return [case]
    ways = product((True, False), ACTIVATIONS)
    return [replace(case, norm_before_gate=first, activation=activation) for first, activation in ways]


def _cast_order(case: NormCase, ask: Ask) -> Finding:
    order = f"{case.dialect.order}, " if case.dtype in HALF else ""
    sum_ = f"{case.dialect.sum} sum, " if case.dialect.sum else ""
    sum_ += f"{case.dialect.y} y, " if case.dialect.y else ""
    gate = f"{case.first}, {case.activation}, " if isinstance(case, GatedNormCase) else ""
    asked = f"{sum_}{gate}{order}{case.dialect.parameter_dtype(case.dtype)} weight"
    y = ask(case)
    if isinstance(y, str):
        return Finding(case.dtype, asked, NOT_ASKED, y)
    returned = f"{case.made[0]} is {y.dtype.name}"
    best, runner_up, *_ = matches(case, y)
    evidence = f"matches {best.share:.2%} of {y.size} elements; next is {runner_up.name}: {runner_up.share:.2%}"
    if best.share < DECIDES:
        return Finding(case.dtype, asked, f"no known dialect; {returned}", f"{best.name} {evidence}", told=False)
    return Finding(case.dtype, asked, f"{best.name}; {returned}", evidence)


def matches(case: NormCase, y: Array) -> tuple[Match, ...]:
    """How well y, in the dtype it came in, matches every known dialect, best first; those alike here go by the first's name."""
    found: dict[bytes, Match] = {}
    for name, expected in _candidates(case, y.dtype.name):
        found.setdefault(expected.nearest.tobytes(), Match(name, _share(expected, y)))
    return tuple(sorted(found.values(), key=lambda match: match.share, reverse=True))


def _candidates(case: NormCase, output_dtype: str) -> Iterator[tuple[str, Expected]]:
    """Every dialect's y on this case's inputs, in the dtype that came. Where nothing is cast there is no order to tell."""
    half = case.dtype in HALF
    true = replace(true_norm(case, 0), output_dtypes=lambda dtypes: dtypes | {case.made[0]: output_dtype})
    variants = VARIANTS if half else {"": VARIANTS[""]}
    orders: tuple[Order, ...] = ORDERS if half else ("either_order",)
    offsets = (0,) if case.weight_offset is None else (0, 1)
    ys: tuple[QuantisedY, ...] = YS if case.dialect.y else ("",)
    for variant, order, offset, sum_, y, gated in product(variants, orders, offsets, _sums_read(case), ys, _gates(true)):
        dialect = replace(case.dialect, order=order, sum=sum_, y=y)
        added = true.added and replace(true.added, stored=sum_ == "rounded")
        quantising = true.quantising and replace(true.quantising, y_dtype=case.dtype if y == "rounded" else None)
        parts = {"added": added, "gated": gated, "quantising": quantising}
        norm = variants[variant](replace(true, dialect=dialect, offset=float(offset), **parts))
        said = [f"{sum_} sum"] * bool(sum_) + [f"{y} y"] * bool(y) + _gate_in_words(gated) + [order] * half
        said += [f"weight offset {offset}"] * (len(offsets) > 1 and (offset or not half)) + [variant] * bool(variant)
        spoken = _spoken_by(sum_, y, gated, order)
        who = f" (as {spoken})" if spoken and not (case.centred or offset or variant) else ""
        yield ", ".join(said) + who, norm.outputs("formula")[case.made[0]]


def _spoken_by(sum_: Sum, y: QuantisedY, gated: Gated | None, order: Order) -> str | None:
    """Who has the function with this sum, this gate and this order."""
    if gated:
        return GATED_BY.get((gated.norm_first, order))
    return QUANTISED_BY.get((sum_, y, order)) if y else SPOKEN_BY.get((sum_, order))


def _gates(norm: Norm) -> list[Gated | None]:
    """The gate in every place and of every kind, the true one first; None alone for a norm that has none."""
    if norm.gated is None:
        return [None]
    first, is_silu = norm.gated.norm_first, norm.gated.is_silu
    ways = product((first, not first), (is_silu, not is_silu))
    acts = {True: ACTIVATIONS["silu"], False: ACTIVATIONS["sigmoid"]}
    return [replace(norm.gated, norm_first=first, is_silu=is_silu, act=acts[is_silu]) for first, is_silu in ways]


def _gate_in_words(gated: Gated | None) -> list[str]:
    if gated is None:
        return []
    return ["norm_then_gate" if gated.norm_first else "gate_then_norm", "silu" if gated.is_silu else "sigmoid"]


def _sums_read(case: NormCase) -> tuple[Sum, ...]:
    """What a norm may read of the sums that have the dtypes asked for."""
    return ("rounded", "unrounded") if case.dialect.sum in ("rounded", "unrounded") else (case.dialect.sum,)


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
    answers: list[Estimates] = []
    for eps in EPS:
        small = replace(case, eps=eps, x=Draw(scale=math.sqrt(eps)))
        y = ask(small)
        if isinstance(y, str):
            return Finding(case.dtype, "eps", NOT_ASKED, y)
        answers.append(estimate(small, y.astype(np.float64)))
    found, evidence, told = followed(answers)
    return Finding(case.dtype, "eps", found, evidence, told)
