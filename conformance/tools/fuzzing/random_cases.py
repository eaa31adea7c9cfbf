"""Random cases: what a fuzzer asks. Drawn by hypothesis, which also knows how to make one that fails smaller."""

from collections.abc import Sequence
from math import log2, prod, sqrt
from typing import Any, TypeVar, get_args

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from conformance.numbers.rounding import FORMATS, HALF, QUANTISED_DTYPES, DType
from conformance.ops.answerable import LARGEST_X, why_unanswerable
from conformance.ops.cases import Names, case_type, is_of
from conformance.ops.draw import Cotangent, Draw, Rows, Weight
from conformance.ops.norms.add_norm import Residual, Unread
from conformance.ops.norms.cases import ADD_NORMS, GATED_NORMS, QUANTISED, ROW_BY_ROW, NormCase, NormOp
from conformance.ops.norms.gated_norm import Gate
from conformance.ops.norms.quantised import Weights
from conformance.ops.norms.quantising import Scaling, group_size
from conformance.ops.table import OPS
from conformance.port.protocol import Hello
from conformance.question.case import Layout
from conformance.question.dialects import Dialect
from conformance.running.runner import unsupported
from reference.gated_norm import Activation

Question = tuple[NormOp, DType, Dialect]
T = TypeVar("T")

SIMPLEST_FIRST: tuple[DType, ...] = ("float32", "float64", "bfloat16", "float16")
ELEMENTS = 4_000  # of x at most: a fault of indexing shows in fewer, and more are slow to judge
# Except that narrow rows may be as many as overflow a grid (of so many blocks in CUDA's second dimension). In half precision so
# many numbers repeat themselves, which no sum of random roundings does.
MANY_ROWS, NARROW = 100_000, 4
GRID = 65_535

# The usual ones first, then others; all are float32 numbers.
EPS = tuple(float(np.float32(eps)) for eps in (1e-5, 1e-6, 1e-8, 1e-12, 1e-3, 1e-2, 5e-5, 2e-7, 3e-10))


def _room(dtype: DType) -> float:
    """A scale, or an offset, that leaves room for the tails."""
    return min(LARGEST_X, FORMATS[dtype].largest) / 8


def questions(hello: Hello, op: Names = (), dtype: Names = ()) -> tuple[Question, ...]:
    """What a port claims to have, the simplest first: ops, dtypes and dialects; only of the ops and dtypes given, if any."""
    plain = (
        case_type(op)(name="plain", exposes="", op=op, dtype=dtype, dialect=dialect)
        for dtype in SIMPLEST_FIRST
        for op in ROW_BY_ROW
        for dialect in case_type(op)(name="plain", exposes="", op=op, dtype=dtype).dialects
    )
    claimed = tuple(case for case in plain if not unsupported(case, hello))
    return tuple((case.op, case.dtype, case.dialect) for case in claimed if is_of(case, op, dtype))


def cases(asked: Sequence[Question], *, groups: bool = False) -> SearchStrategy[NormCase]:
    """Cases that have an answer, each of one of these questions; `groups`: with groups, too.

    The simplest is a single value with no options.
    """
    by_dtype = [[question for question in asked if question[1] == dtype] for dtype in SIMPLEST_FIRST]
    questions = st.one_of([st.sampled_from(group) for group in by_dtype if group])  # half precision has more dialects
    return _unchecked(questions, groups).filter(lambda case: not why_unanswerable(case))


def _powers_of_two(low: int, high: int) -> SearchStrategy[float]:
    return st.integers(low, high).map(lambda exponent: 2.0**exponent)


def _mostly_first(options: Sequence[T]) -> SearchStrategy[T]:
    """The first of the options in half of the draws, any in the others."""
    return st.just(options[0]) | st.sampled_from(options)


# Made once, since hypothesis takes longer to make a strategy than to draw from it.
_WIDTHS = (
    st.integers(1, 40)
    | st.builds(lambda exponent, step: 2**exponent + step, st.integers(1, 8), st.integers(-1, 1))  # next to a power of two
    | st.integers(1, 300)
)
_BATCHES = st.lists(st.integers(0, 7), max_size=3) | st.integers(0, 400).map(lambda rows: [rows])
_ONE_IN_16 = st.integers(0, 15).map(lambda number: number == 15)  # so that False is the simplest
_MANY_ROWS = st.integers(400, MANY_ROWS) | st.integers(GRID + 1, MANY_ROWS)
_EPS = _mostly_first(EPS)
_BOOLEANS = st.booleans()
_SCALES = {dtype: st.just(1.0) | _powers_of_two(-30, int(log2(_room(dtype)))) for dtype in SIMPLEST_FIRST}
_OFFSETS = st.just(0.0) | _powers_of_two(-2, 14)
_ROWS = _mostly_first([rows for rows in get_args(Rows) if rows != "exact"])
_WEIGHTS_OR_NONE = st.sampled_from([weight for weight in get_args(Weight) if weight != "ones"])  # which hide a lost weight
_WEIGHTS = st.sampled_from([weight for weight in get_args(Weight) if weight not in ("ones", "absent")])
_DY = _mostly_first([dy for dy in get_args(Cotangent) if dy != "ones"])
_DY_SCALES = st.just(1.0) | _powers_of_two(-14, 4)
_LAYOUTS = _mostly_first([layout for layout in get_args(Layout) if not layout.startswith(("residual", "sharded"))])
_RESIDUALS = _mostly_first(get_args(Residual))
_UNREAD = _mostly_first(get_args(Unread))
_SCALINGS = st.sampled_from(get_args(Scaling))
_STATIC_SCALES = _powers_of_two(-16, 10) | st.integers(1, 9_999).map(lambda number: float(np.float32(number / 10_000)))
_SCALE_UBS = st.just(0.0) | _powers_of_two(-6, 3)
_NEW_WEIGHTS = _mostly_first([weights for weights in get_args(Weights) if weights != "ties"])
_GATES = _mostly_first(get_args(Gate))
_ACTIVATIONS = st.sampled_from(get_args(Activation))
_DRAWS = st.integers(0, 9_999)


@st.composite
def _unchecked(draw: DrawFn, questions: SearchStrategy[Question], groups: bool) -> NormCase:
    op, dtype, dialect = draw(questions)
    shape = _shape(draw, many_rows=dtype not in HALF)
    eps = draw(_EPS)
    further: dict[str, Any] = {"shape": shape, **_further(draw, op, shape, groups)}
    return case_type(op)(
        op=op,
        dtype=dtype,
        dialect=dialect,
        eps=eps,
        x=_values(draw, dtype, eps),
        weight=draw(_WEIGHTS_OR_NONE if dialect.is_plain else _WEIGHTS),
        bias="bias" in OPS[op].arguments and draw(_BOOLEANS),
        dy=draw(_DY),
        dy_scale=draw(_DY_SCALES),
        layout=draw(_LAYOUTS),
        name=f"draw_{draw(_DRAWS)}",
        exposes="",
        **further,
    )


def _further(draw: DrawFn, op: NormOp, shape: tuple[int, ...], groups: bool) -> dict[str, Any]:
    """What an op has besides: a residual, a scale, a gate; and groups of one of the sizes that divide the width."""
    if op in QUANTISED:
        return _quantised(draw, shape) | ({"residual": draw(_RESIDUALS)} if "residual" in OPS[op].arguments else {})
    if op in ADD_NORMS:
        return {"residual": draw(_RESIDUALS), "unread": draw(_UNREAD)}
    drawn: dict[str, Any] = {}
    if op in GATED_NORMS:
        drawn = {"gate": draw(_GATES), "activation": draw(_ACTIVATIONS), "norm_before_gate": draw(_BOOLEANS)}
    sizes = [size for size in range(1, shape[-1] + 1) if shape[-1] % size == 0]
    are_grouped, number = draw(_BOOLEANS), draw(_DRAWS)
    return drawn | ({"group_size": sizes[number % len(sizes)]} if groups and are_grouped else {})


def _quantised(draw: DrawFn, shape: tuple[int, ...]) -> dict[str, Any]:
    """How y is quantised; with scales of groups a row is of one to three of them."""
    scaling: Scaling = draw(_SCALINGS)
    size = group_size(scaling, shape[-1])
    width = shape[-1] if size == shape[-1] else size * (1 + shape[-1] % 3)
    dynamic = scaling in ("per_row", "per_group_128")
    return {
        "shape": (*shape[:-1], width),
        "scaling": scaling,
        "quantised_dtype": draw(st.sampled_from(QUANTISED_DTYPES)),
        "static_scale": draw(_STATIC_SCALES),
        "scale_ub": draw(_SCALE_UBS) if dynamic else 0.0,
        "weights": draw(_NEW_WEIGHTS),
    }


def _shape(draw: DrawFn, *, many_rows: bool) -> tuple[int, ...]:
    """Rank 1 to 4; any axis but the last may be empty. Now and then a great many narrow rows, where there may be.

    All is drawn for every case: a failure is made smaller by another dtype, or by fewer rows, only if all else is drawn alike.
    """
    width, batch = draw(_WIDTHS), draw(_BATCHES)
    are_many, rows = draw(_ONE_IN_16), draw(_MANY_ROWS)
    if are_many and many_rows:
        return rows, min(width, NARROW)
    while prod(batch) * width > ELEMENTS:
        batch.pop()
    return (*batch, width)


def _values(draw: DrawFn, dtype: DType, eps: float) -> Draw:
    """Values of any size, half of them counted from where eps matters; offsets of any size against them."""
    unit = sqrt(eps) if draw(_BOOLEANS) else 1.0
    scale = min(unit * draw(_SCALES[dtype]), _room(dtype))
    offset = min(scale * draw(_OFFSETS), _room(dtype))
    return Draw(scale, -offset if offset and draw(_BOOLEANS) else offset, draw(_ROWS))
