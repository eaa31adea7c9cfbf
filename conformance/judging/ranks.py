"""What every rank has whole: judged on each, and the same on all, to the bit."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from conformance.judging.compare import OutputVerdict, Verdict, compare_output
from conformance.numbers.expected import Expected

Array = np.ndarray


def on_every_rank(verdict: Verdict, expected: Mapping[str, Expected], whole: Mapping[str, tuple[Array, ...]]) -> Verdict:
    """The verdict on joined outputs, in the light of those that ranks have whole, as each returned them.

    Where ranks disagree it is a failure, whoever is right; the numbers judged are those of the first rank that is not.
    """
    if not verdict.outputs:
        return verdict
    differing = {name: rank for name, of_ranks in whole.items() if (rank := _first_other(of_ranks))}
    if not differing:
        return verdict
    outputs = tuple(
        _first_wrong(each, expected[each.output], whole[each.output]) if each.output in differing else each
        for each in verdict.outputs
    )
    said = ", ".join(f"{name} of rank {rank} is not that of rank 0" for name, rank in differing.items())
    return replace(verdict, status="fail", outputs=outputs, message=f"ranks disagree: {said}")


def _first_other(of_ranks: tuple[Array, ...]) -> int:
    """The first rank whose tensor differs from rank 0's in a bit; 0 if none does. A NaN is a NaN."""
    return next((rank for rank, each in enumerate(of_ranks) if not _is_same(each, of_ranks[0])), 0)


def _is_same(a: Array, b: Array) -> bool:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a), np.signbit(b) | np.isnan(b) & np.signbit(a))


def _first_wrong(verdict: OutputVerdict, expected: Expected, of_ranks: tuple[Array, ...]) -> OutputVerdict:
    judged = (compare_output(verdict.output, expected, each) for each in of_ranks)
    return next((each for each in judged if not each.passes), verdict)
