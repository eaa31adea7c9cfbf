"""The shape of what fails, where no mistake has a name for it: only such cases, and only in such places.

A trait is what a case is like, a place where the elements of an output lie outside. What all failures share, and no case that
passes, is said.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from conformance.judging.compare import OutputVerdict
from conformance.numbers.rounding import HALF
from conformance.question.case import Case, is_split
from conformance.report.report import CaseEntry, OutputEntry

Array = np.ndarray

MULTIPLES = (1024, 512, 256, 128, 64, 32, 16, 8, 4)  # widths of blocks and of vectors
TELLING = 8  # elements on one side that are no coincidence
WIDTH_OF_TRAITS: tuple[tuple[str, Callable[[int], bool]], ...] = (
    ("the width is no power of two", lambda n: n & (n - 1) != 0),
    *((f"the width is no multiple of {block}", lambda n, block=block: n % block != 0) for block in MULTIPLES[::-1]),
)


def traits(case: Case) -> tuple[str, ...]:
    """What a case is like, in words, but for its sizes. The first that tells failures from the rest is said."""
    dialect = case.dialect
    said = {
        "x is not contiguous": case.layout in ("permuted", "sliced", "strided", "expanded"),
        "arrays are split over devices": is_split(case.layout),
        f"the layout is {case.layout}": case.layout != "contiguous",
        "one is added to the weight": dialect.weight_offset == 1,
        "the weight is float32 beside x of half precision": dialect.weight_dtype == "float32",
        f"x is {case.dtype}": True,
        "x is of half precision": case.dtype in HALF,
        # After the dtype: a port with one order has it in all of its half precision.
        "x_hat is cast before it is scaled": dialect.order == "cast_then_scale",
        "x_hat is scaled before it is cast": dialect.order == "scale_then_cast",
    }
    return tuple(words for words, holds in (said | case.traits).items() if holds)


def places(output: OutputVerdict) -> tuple[str, ...]:
    """Where the elements outside lie, in words that hold of them all, the narrowest first; empty where nothing can be said."""
    if output.expected is None or not output.outside:
        return ()
    outside = ~output.expected.within(output.actual)
    found = list(_indices("feature", np.flatnonzero(_along(outside, -1)), output.actual.shape[-1]))
    if output.actual.ndim > 1:
        rows = outside.reshape(-1, outside.shape[-1])
        found += _indices("row", np.flatnonzero(rows.any(axis=1)), len(rows))
    return tuple([*found, *_sizes(output.actual[outside], output.expected.value, outside)])


def _along(outside: Array, axis: int) -> Array:
    others = tuple(each for each in range(outside.ndim) if each != axis % outside.ndim)
    return np.asarray(outside.any(axis=others))


def _indices(what: str, at: Array, count: int) -> Iterator[str]:
    """Which features or rows these are of so many, in words; nothing where they are all, or just any."""
    first, last = int(at[0]), int(at[-1])
    if len(at) == 1 and first == 0:
        yield f"in {what} 0"
    if len(at) == 1 and last == count - 1:
        yield f"in the last {what}"
    if count > 2 and first > 0 and last == count - 1 and len(at) == count - first:
        yield f"in {what}s from {first} on"
    if count > 2 and first == 0 and last < count - 1 and len(at) == last + 1 > 1:
        yield f"in {what}s up to {last}"
    if count > 3 and len(at) > 1 and not np.any(at % 2 != first % 2):
        yield f"in {'even' if first % 2 == 0 else 'odd'} {what}s"


def _sizes(actual: Array, value: Array, outside: Array) -> Iterator[str]:
    """What the wrong numbers have in common."""
    right = np.broadcast_to(value, outside.shape)[outside]
    if np.all(np.isnan(actual)):
        yield "where NaN is returned"
    elif not np.any(actual):
        yield "where zero is returned"
    elif actual.size >= TELLING and np.all(np.abs(actual) < np.abs(right)):
        yield "with numbers that are too close to zero"


def shape_of(failing: Sequence[CaseEntry], passing: Sequence[CaseEntry]) -> str:
    """What all that fails has in common, and what passes has not; empty where that is nothing, or too little fails to say."""
    if len(failing) < 2:
        return ""
    only = [*_sizes_of(failing, passing), *_common_traits(failing, passing)][:1] if passing else []
    where = _common([output for each in failing for output in each.outputs if output.outside])[:1]
    return ", ".join([*(f"only where {words}" for words in only), *(f"only {words}" for words in where)])


def _common_traits(failing: Iterable[CaseEntry], passing: Iterable[CaseEntry]) -> list[str]:
    elsewhere = {trait for each in passing for trait in each.traits}
    shared = set.intersection(*(set(each.traits) for each in failing))
    return [trait for trait in next(iter(failing)).traits if trait in shared - elsewhere]


def _sizes_of(failing: Sequence[CaseEntry], passing: Sequence[CaseEntry]) -> Iterator[str]:
    """What the failing cases' widths and numbers of rows have in common."""
    for words, holds in WIDTH_OF_TRAITS:
        if all(holds(_width(each)) for each in failing) and not any(holds(_width(each)) for each in passing):
            yield words
    for what, size in (("the width is more than", _width), ("the number of rows is more than", _rows)):
        most = max(map(size, passing), default=0)
        if most and min(map(size, failing)) > most:
            yield f"{what} {most}"


def _width(each: CaseEntry) -> int:
    return each.shape[-1]


def _rows(each: CaseEntry) -> int:
    return int(np.prod(each.shape[:-1]))


def _common(outputs: Sequence[OutputEntry]) -> list[str]:
    """The places that hold of every output that fails."""
    shared = set.intersection(*(set(output.places) for output in outputs)) if outputs else set[str]()
    return [place for place in outputs[0].places if place in shared] if outputs else []
