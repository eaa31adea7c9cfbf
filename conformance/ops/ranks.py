"""The cases that are asked of a port on several ranks: those of the norms, split by rows and by features."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from conformance.ops.cases import CASES
from conformance.ops.norms.cases import NormCase
from conformance.question.case import OVER_RANKS, Case

EVEN = tuple(case for case in CASES if case.layout in ("sharded_rows", "sharded_features"))
"""Cases whose parts are as large on every rank; they are asked with the quick ones, for ports that have no others."""
FEW, UNEVEN = 2, 5
"""Entries of the first axis of most cases; and as many as make uneven parts of it on two ranks, and on four an empty one."""


def on_ranks(cases: Iterable[Case], ranks: int) -> tuple[NormCase, ...]:
    """Of the norms' cases each that can be split, once for each way, with the split behind a dot: `random.rows`.

    Their first axis is made longer where it is short, so that its parts are uneven. Cases of one process's arrays that are
    split evenly keep their shape. Those that ask for strides are left out: each rank's part is a tensor of its own.
    """
    return tuple(split for case in cases if isinstance(case, NormCase) for split in _splits(case, ranks))


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
