"""The cases that are asked of a port on several ranks: those of the norms, split by rows and by features."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod

from conformance.numbers.rounding import FORMATS
from conformance.ops.cases import CASES
from conformance.ops.norms.cases import NormCase
from conformance.question.case import OVER_RANKS, Case, split
from conformance.question.collectives import Collectives

EVEN = tuple(case for case in CASES if case.layout in ("sharded_rows", "sharded_features"))
"""Cases whose parts are as large on every rank; they are asked with the quick ones, for ports that have no others."""
FEW, UNEVEN = 2, 5
"""Entries of the first axis of most cases; and as many as make uneven parts of it on two ranks, and on four an empty one."""


def on_ranks(cases: Iterable[Case], ranks: int) -> tuple[NormCase, ...]:
    """Of the norms' cases each that can be split, once for each way, with the split behind a dot: `random.rows`.

    Their first axis is made longer where it is short, so that its parts are uneven. Cases of one process's arrays that are
    split evenly keep their shape. Those that ask for strides are left out: each rank's part is a tensor of its own.
    """
    return tuple(each for case in cases if isinstance(case, NormCase) for each in _splits(case, ranks))


def least_collectives(case: NormCase) -> tuple[Collectives, Collectives]:
    """What a split cannot do without, forward and backward: for every sum a number in the compute dtype, and no round more.

    Rows that are split need dweight and dbias; in BatchNorm the mean and the variance, and dx's two sums, which are dweight
    and dbias as well. Features that are split need every row's statistics, and dx's projections; in BatchNorm nothing. A
    scale that is found for a row needs its largest number, once its statistics are known.
    """
    rows, width = prod(case.shape[:-1]), case.shape[-1]
    parameters = sum(name in case.outputs for name in ("dweight", "dbias"))
    statistics, is_batch_norm = 1 + case.centred, case.op == "batch_norm"
    in_training = case.settings.get("training", False)
    if split(case.layout) == "rows":
        forward = [2 * width] * in_training
        backward = [(2 if in_training else parameters) * width] * (in_training or parameters > 0)
    else:
        forward = [rows * statistics] * (not is_batch_norm) + [rows] * ("scale" in case.outputs)
        backward = [rows * statistics] * (not is_batch_norm and "dx" in case.outputs)
    size = 8 if FORMATS[case.dtype].compute_dtype == "float64" else 4
    return Collectives(len(forward), size * sum(forward)), Collectives(len(backward), size * sum(backward))


def _splits(case: NormCase, ranks: int) -> Iterator[NormCase]:
    if case.layout not in ("contiguous", "sharded_rows", "sharded_features"):
        return
    batch, d = case.shape[:-1], case.shape[-1]
    if batch and case.layout != "sharded_features":
        first = UNEVEN if batch[0] == FEW else batch[0]
        yield replace(case, name=f"{case.name}.rows", shape=(first, *case.shape[1:]), layout=OVER_RANKS["rows"])
    if d >= ranks and not _in_groups(case) and case.layout != "sharded_rows":
        yield replace(case, name=f"{case.name}.features", layout=OVER_RANKS["features"])


def _in_groups(case: NormCase) -> bool:
    """Whether features are in groups, each of which a rank would have to have whole."""
    return "group_size" in case.settings or case.settings.get("scaling", "static") not in ("static", "per_row")
