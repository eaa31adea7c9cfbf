"""The rows of a batch in other batches: each alone, in batches of 2 to 64, and in halves.

A split covers the whole batch, so that all rows of y and dx are compared with what they were in it, and the gradients of
the parameters, added up over the parts, with those of the whole. Together the splits have every batch size once or more.
A compiler may take long over every new size. Those where kernels change are asked first: 1, and next to powers of two.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from conformance.numbers.rounding import ulp
from conformance.ops.norms.cases import NormCase
from conformance.ops.norms.tolerances import NormBudget
from conformance.port.protocol import Answer
from conformance.port.session import Session
from conformance.tools.properties.properties import BY_ID, Difference, Finding, difference, verdict
from conformance.tools.properties.variants import Question

Array = np.ndarray
Split = tuple[slice, ...]

LARGEST = 64  # rows of a batch; larger ones are halves of all rows
TELLING = (64, 33, 32, 17, 16, 9, 8, 5, 4, 3, 2)  # one above and one below whatever number of rows a kernel changes at
SLOW = 10.0  # times as long over a new size as over a row alone: the port compiles for every size, and is not asked them all
ROWWISE, SUMMED = ("y", "dx"), ("dweight", "dbias")


def splits(rows: int) -> tuple[Split, ...]:
    """Halves, the telling sizes, single rows; then all other sizes up to 64, as many as fit into a split.

    What is left of the rows in a split is one batch more, of 64 rows at most.
    """
    other = [size for size in range(LARGEST, 1, -1) if size not in TELLING]
    halves = [rows - rows // 2, rows // 2]
    sizes = [halves, *_fitted(TELLING, rows), [1] * rows, *_fitted(other, rows)]
    return tuple(map(_split, sizes))


def _fitted(sizes: Sequence[int], rows: int) -> Iterator[list[int]]:
    """The sizes that there are rows for, in lists that each add up to all rows."""
    parts: list[int] = []
    for size in [*(size for size in sizes if size <= rows), rows]:  # the last one ends a list that is begun
        left = rows - sum(parts)
        if parts and size > left:
            yield parts + [LARGEST] * (left // LARGEST) + [left % LARGEST]
            parts = []
        parts.append(size)


def _split(sizes: list[int]) -> Split:
    ends = np.cumsum(sizes)
    return tuple(slice(int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True) if size)


@dataclass(frozen=True)
class Whole:
    """The answer to the whole batch, its rows flattened; what the comparison may allow is worked out when it is needed."""

    question: Question
    budget: NormBudget
    outputs: dict[str, Array]

    def rows(self, output: str) -> Array:
        """An output of a row each, [rows, d]."""
        return self.outputs[output].reshape(-1, self.question.case.shape[-1])

    def width(self, output: str) -> Array:
        """How far two honest answers may be apart, of the output's shape with its rows flattened."""
        expected = self.question.golden.outputs[output]
        lower, upper = expected.interval()
        return np.broadcast_to(upper - lower, expected.value.shape).reshape(self.rows(output).shape)


def judge_batches(
    question: Question, budget: NormBudget, first: Answer, session: Session, *, bitwise: bool
) -> tuple[Finding, list[Answer]]:
    """Ask for the rows in every split, and compare with the answer to all of them. Raises `NoAnswer`.

    A port that is slow over new sizes is not asked all of them, unless `bitwise`. The answers are returned too, without
    their outputs: they say what was overwritten.
    """
    whole = Whole(question, budget, first.outputs)
    count = len(whole.rows("y"))
    given = question.golden.inputs
    differences: list[Difference] = []
    asked, differing = set[int](), set[int]()
    answers: list[Answer] = []
    durations: list[float] = []
    for split in splits(count):
        if 1 in asked and not bitwise and durations[1] > SLOW * durations[2]:
            break
        asked |= {rows.stop - rows.start for rows in split}
        parts, duration = _ask(session, question.case, given, split)
        durations.append(duration)
        found = list(_compared(whole, split, parts))
        differences += found
        differing |= _differing(whole, split, parts, found)
        answers += [Answer({}, part.overwrote) for part in parts]
    what = f"{count} rows in {in_words(asked)}"
    if differing:
        what += f", different in {in_words(differing)}"
    return verdict(BY_ID["row_count"], question.case, what, differences, bitwise=bitwise), answers


def _ask(session: Session, case: NormCase, given: dict[str, Array], split: Split) -> tuple[list[Answer], float]:
    """The answers to the parts of a split, and the median of the seconds that each took."""
    parts: list[Answer] = []
    seconds: list[float] = []
    for rows in split:
        began = time.perf_counter()
        parts.append(session.ask(*_part(case, given, rows)))
        seconds.append(time.perf_counter() - began)
    return parts, median(seconds)


def _part(case: NormCase, given: dict[str, Array], rows: slice) -> tuple[NormCase, dict[str, Array]]:
    """The question about some of the rows; what is given for all of them is the same."""
    d = case.shape[-1]
    taken = {name: given[name].reshape(1, -1, d)[:, rows] for name in ("x", "dy")}
    return replace(case, shape=taken["x"].shape), given | taken


def _compared(whole: Whole, split: Split, parts: list[Answer]) -> Iterator[Difference]:
    """Every output that is not what it was in the whole batch."""
    dtypes = whole.question.case.outputs
    for name in (name for name in ROWWISE if name in whole.outputs):
        expected = whole.rows(name)
        actual = np.concatenate([part.outputs[name].reshape(-1, expected.shape[-1]) for part in parts])
        if not _is_same(expected, actual):
            yield _difference(name, expected, actual, whole.width(name), dtypes[name])
    for name in (name for name in SUMMED if name in whole.outputs):
        expected = whole.outputs[name].astype(np.float64)
        terms = np.stack([part.outputs[name].astype(np.float64) for part in parts])
        total, allowed = terms.sum(axis=0), _allowed(whole, name, terms)
        close = np.abs(total - expected) <= allowed
        if not np.all(close):
            sizes = in_words({rows.stop - rows.start for rows in split})
            summed, actual = f"{name} added up over {sizes}", np.where(close, expected, total)
            yield _difference(summed, expected, actual, allowed, dtypes[name])


def _difference(name: str, expected: Array, actual: Array, width: Array, dtype: str) -> Difference:
    everywhere = np.ones(expected.shape, bool)
    return difference(name, expected.astype(np.float64), actual.astype(np.float64), width, everywhere, dtype)


def _allowed(whole: Whole, output: str, terms: Array) -> Array:
    """How far the sum of the parts' gradients may be from the gradient of the whole.

    Each is off by its arithmetic and by half an ulp. The budgets of the parts add up to no more than the whole's: γ(k) of
    fewer rows is less, and the rest of it is a sum over the rows. What a dialect rounds before the sum is in the width.
    """
    dtype = whole.question.case.outputs[output]
    final = (ulp(whole.outputs[output].astype(np.float64), dtype) + ulp(terms, dtype).sum(axis=0)) / 2
    width = np.subtract(*whole.question.golden.outputs[output].interval()[::-1])
    return 2 * (getattr(whole.budget, output) + width) + final


def _is_same(expected: Array, actual: Array) -> bool:
    return expected.dtype == actual.dtype and expected.tobytes() == actual.tobytes()


def _differing(whole: Whole, split: Split, parts: list[Answer], found: list[Difference]) -> set[int]:
    """The batch sizes of a split in which some row of y or dx differs."""
    if not found:
        return set()
    names = [name for name in ROWWISE if name in whole.outputs]
    return {
        rows.stop - rows.start
        for rows, part in zip(split, parts, strict=True)
        if any(not _is_same(whole.rows(name)[rows], part.outputs[name][0]) for name in names)
    }


def in_words(sizes: set[int]) -> str:
    """Batch sizes, runs of three and more in short: `batches of 1, 2, 4 to 8 and 64 rows`."""
    ordered = sorted(sizes)
    starts = [size for size in ordered if size - 1 not in sizes]
    ends = [size for size in ordered if size + 1 not in sizes]
    runs: list[str] = []
    for start, end in zip(starts, ends, strict=True):
        runs += [f"{start} to {end}"] if end - start > 1 else map(str, range(start, end + 1))
    listed = " and ".join(filter(None, [", ".join(runs[:-1]), runs[-1]]))
    return f"batches of {listed} row{'s' * (ordered != [1])}"
