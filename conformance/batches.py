"""The rows of a batch in other batches: each alone, in batches of 2 to 64, and in halves.

A split covers the whole batch, so that all rows of y and dx are compared with what they were in it, and the gradients of
the parameters, added up over the parts, with those of the whole. Together the splits have every batch size once or more.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from conformance.norms.cases import NormCase
from conformance.norms.tolerances import NormBudget
from conformance.properties import BY_ID, Difference, Finding, difference, verdict
from conformance.protocol import Answer
from conformance.rounding import ulp
from conformance.session import Session
from conformance.variants import Question

Array = np.ndarray
Split = tuple[slice, ...]

LARGEST = 64  # rows of a batch; larger ones are halves of all rows
ROWWISE, SUMMED = ("y", "dx"), ("dweight", "dbias")


def splits(rows: int) -> tuple[Split, ...]:
    """Halves; batches of every size from 64 down to 2, as many as fit into a split and the rest of the rows; single rows."""
    sizes = iter(range(min(LARGEST, rows), 1, -1))
    made = [_split([rows - rows // 2, rows // 2])]
    size = next(sizes, None)
    while size is not None:
        parts: list[int] = []
        while size is not None and sum(parts) + size <= rows:
            parts.append(size)
            size = next(sizes, None)
        left = rows - sum(parts)
        made.append(_split(parts + [LARGEST] * (left // LARGEST) + [left % LARGEST]))
    return (*made, _split([1] * rows))


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

    The answers are returned too, without their outputs: they say what was overwritten.
    """
    whole = Whole(question, budget, first.outputs)
    count = len(whole.rows("y"))
    given = question.golden.inputs
    differences: list[Difference] = []
    sizes: set[int] = set()
    answers: list[Answer] = []
    for split in splits(count):
        parts = [session.ask(*_part(question.case, given, rows)) for rows in split]
        found = list(_compared(whole, split, parts))
        differences += found
        sizes |= _sizes(whole, split, parts, found)
        answers += [Answer({}, part.overwrote) for part in parts]
    return _finding(question.case, count, sizes, differences, bitwise=bitwise), answers


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
            yield _difference(f"{name}, added up over {len(parts)} parts,", expected, np.where(close, expected, total), allowed,
                              dtypes[name])  # fmt: skip


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


def _sizes(whole: Whole, split: Split, parts: list[Answer], found: list[Difference]) -> set[int]:
    """The batch sizes of a split in which some row of y or dx differs."""
    if not found:
        return set()
    names = [name for name in ROWWISE if name in whole.outputs]
    return {
        rows.stop - rows.start
        for rows, part in zip(split, parts, strict=True)
        if any(not _is_same(whole.rows(name)[rows], part.outputs[name][0]) for name in names)
    }


def _finding(case: NormCase, count: int, sizes: set[int], differences: list[Difference], *, bitwise: bool) -> Finding:
    asked = f"each of {count} rows alone, in batches of 2 to {LARGEST} and in halves"
    if sizes:
        asked = f"{asked}: differs in {in_words(sizes)}"
    return verdict(BY_ID["row_count"], case, asked, differences, bitwise=bitwise)


def in_words(sizes: set[int]) -> str:
    """Batch sizes, as runs: `batches of 1, 3 to 8 and 64 rows`."""
    ordered = sorted(sizes)
    starts = [size for size in ordered if size - 1 not in sizes]
    ends = [size for size in ordered if size + 1 not in sizes]
    runs = [f"{start} to {end}" if end > start else f"{start}" for start, end in zip(starts, ends, strict=True)]
    listed = " and ".join(filter(None, [", ".join(runs[:-1]), runs[-1]]))
    return f"batches of {listed} row{'s' * (ordered != [1])}"
