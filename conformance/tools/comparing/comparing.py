"""Two ports' answers to the same cases, output by output."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from conformance.judging.compare import OutputVerdict, Status, Verdict
from conformance.numbers.rounding import FORMATS, DType, store
from conformance.ops.golden import golden
from conformance.running.runner import PortRun

Array = np.ndarray
Side = Literal["a", "b", "both", "neither"]
NOT_COUNTED = 2**62  # between a NaN and a number, or numbers of two dtypes
FAR = 2**60  # numbers from zero, further than which it does not matter


@dataclass(frozen=True, slots=True)
class Part:
    """The element in which two outputs are furthest apart: where, what each has there, and the exact value."""

    index: tuple[int, ...]
    a: float
    b: float
    exact: float


@dataclass(frozen=True, slots=True)
class OutputPair:
    """One output of both ports.

    `differ` of `size` elements have other bits, by up to `ulps` numbers of the dtype (None: one is a NaN, or the dtypes are not
    the same). The golden `sides` with whoever lies within the intervals; `nearer_a` and `nearer_b` count, of the elements that
    differ, those where one is nearer to the exact value.
    """

    output: str
    dtype_a: str
    dtype_b: str
    size: int
    differ: int
    ulps: int | None
    sides: Side
    nearer_a: int
    nearer_b: int
    furthest: Part | None

    @property
    def equal(self) -> bool:
        """Whether both have the same bits."""
        return not self.differ and self.dtype_a == self.dtype_b


@dataclass(frozen=True, slots=True)
class CasePair:
    """One case: what became of it in both ports, and the outputs that both returned; none where one returned nothing."""

    case: str
    op: str
    dtype: DType
    status_a: Status
    status_b: Status
    outputs: tuple[OutputPair, ...]

    @property
    def equal(self) -> bool:
        """Whether every output has the same bits."""
        return bool(self.outputs) and all(output.equal for output in self.outputs)

    @property
    def sides(self) -> Side:
        """With whom the golden sides in all outputs together."""
        a, b = (all(output.sides in (side, "both") for output in self.outputs) for side in ("a", "b"))
        return "both" if a and b else "a" if a else "b" if b else "neither"


def compare_runs(a: PortRun, b: PortRun, seed: int) -> tuple[CasePair, ...]:
    """Every case that both ports were asked, in the order of the cases."""
    return tuple(compare_verdicts(*pair, seed) for pair in zip(a.verdicts, b.verdicts, strict=True))


def compare_verdicts(a: Verdict, b: Verdict, seed: int) -> CasePair:
    """What two ports returned for one case."""
    others = {output.output: output for output in b.outputs}
    both = [(output, others[output.output]) for output in a.outputs if output.output in others]
    exact = golden(a.case, seed).outputs if both else {}
    pairs = tuple(compare_outputs(*pair, np.asarray(exact[pair[0].output].value)) for pair in both)
    return CasePair(a.case.id, a.case.op, a.case.dtype, a.status, b.status, pairs)


def compare_outputs(a: OutputVerdict, b: OutputVerdict, exact: Array) -> OutputPair:
    """One output of both, element by element; `exact` are the golden's values."""
    apart = distances(a.actual, b.actual, a.dtype if a.dtype == b.dtype else "")
    signs = (a.actual == 0) & (b.actual == 0) & (np.signbit(a.actual) != np.signbit(b.actual))
    differ = (apart > 0) | signs
    exact = np.broadcast_to(exact, a.actual.shape)
    error_a, error_b = _errors(a.actual, exact), _errors(b.actual, exact)
    furthest = int(np.argmax(apart)) if np.any(apart > 0) else int(np.argmax(signs)) if np.any(signs) else None
    largest = int(np.max(apart, initial=0))
    return OutputPair(
        a.output,
        a.dtype,
        b.dtype,
        a.actual.size,
        int(np.count_nonzero(differ)),
        None if largest == NOT_COUNTED else largest,
        "both" if a.passes and b.passes else "a" if a.passes else "b" if b.passes else "neither",
        int(np.count_nonzero(differ & (error_a < error_b))),
        int(np.count_nonzero(differ & (error_b < error_a))),
        None if furthest is None else _part(furthest, a.actual, b.actual, exact),
    )


def _errors(actual: Array, exact: Array) -> Array:
    """How far each element is off; infinitely, where a NaN is wrong or missing."""
    with np.errstate(all="ignore"):
        error = np.nan_to_num(np.abs(actual - exact), nan=np.inf, posinf=np.inf)
    return np.where((actual == exact) | (np.isnan(actual) & np.isnan(exact)), 0.0, error)


def _part(place: int, a: Array, b: Array, exact: Array) -> Part:
    index = tuple(int(i) for i in np.unravel_index(place, a.shape))
    return Part(index, *(float(array[index]) for array in (a, b, exact)))


def distances(a: Array, b: Array, dtype: str) -> Array:
    """How many numbers of a dtype lie from one to the other, element by element; zero to minus zero is no distance.

    `NOT_COUNTED` where one alone is a NaN; without a dtype, wherever the values are not the same.

    >>> distances(np.array([1.0, 2.0]), np.array([1.0078125, 2.0]), "bfloat16")
    array([1, 0])
    """
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if not dtype:
        return np.where(same, 0, NOT_COUNTED)
    size_a, size_b = _place(a, dtype), _place(b, dtype)
    across = np.minimum(size_a, FAR) + np.minimum(size_b, FAR)  # from one through zero to the other
    apart = np.where(np.signbit(a) == np.signbit(b), np.abs(size_a - size_b), across)
    return np.where(same, 0, np.where(np.isnan(a) | np.isnan(b), NOT_COUNTED, np.minimum(apart, NOT_COUNTED - 1)))


def _place(x: Array, dtype: str) -> Array:
    """How many numbers of a dtype lie from zero to each, whichever side it is on."""
    stored = store(np.where(np.isnan(x), 0.0, np.abs(x)), dtype)
    if dtype == "int8":
        return stored.astype(np.int64)
    return np.ascontiguousarray(stored).view(f"u{FORMATS[dtype].bits // 8}").astype(np.int64).reshape(x.shape)


def worst(pairs: Iterable[CasePair]) -> tuple[CasePair, OutputPair] | None:
    """The case and output in which two ports are furthest apart; None where they have the same bits everywhere."""
    differing = [(pair, output) for pair in pairs for output in pair.outputs if not output.equal]
    return max(differing, key=lambda each: NOT_COUNTED if each[1].ulps is None else each[1].ulps, default=None)
