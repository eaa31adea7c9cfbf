"""What changed between versions of a library: the scores of one run beside those of the run before."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from conformance.tools.scoreboard.scoreboard import Row, Score, Scoreboard


@dataclass(frozen=True, slots=True)
class Change:
    """A library in two runs that were of different versions: which, when the later run was, and what its numbers became."""

    title: str
    versions: str
    date: str
    cells: tuple[str, ...]

    @property
    def summary(self) -> str:
        """What its numbers became, in words."""
        return "; ".join(self.cells) or "nothing"


def changes(boards: Iterable[Scoreboard]) -> list[Change]:
    """What changed wherever an implementation's versions did; boards are in the order of their dates."""
    judged: dict[str, list[tuple[str, Row]]] = {}
    for board in boards:
        for row in board.rows:
            if not row.absent:
                judged.setdefault(row.title, []).append((board.date, row))
    return [
        Change(title, _versions(before, after), date, tuple(_cells(before, after)))
        for title, runs in judged.items()
        for (_, before), (date, after) in pairwise(runs)
        if before.versions != after.versions
    ]


def _versions(before: Row, after: Row) -> str:
    """Which versions are others than before."""
    names = sorted(before.versions.keys() | after.versions.keys())
    pairs = ((name, before.versions.get(name, "none"), after.versions.get(name, "none")) for name in names)
    return ", ".join(f"{name} {old} → {new}" for name, old, new in pairs if old != new)


def _cells(before: Row, after: Row) -> Iterator[str]:
    """The scores that are others, where both runs have them and they can be compared.

    Where the kit asks more cases than it did, a count says nothing: then it counts that all conformed, and do not any more,
    or the other way round.
    """
    old = {_place(score): score for score in before.scores}
    for new in after.scores:
        was = old.get(_place(new))
        if was and (was.conforms != new.conforms or (was.judged == new.judged and was.passed != new.passed)):
            yield f"{_place(new)}: {was.passed}/{was.judged} → {new.passed}/{new.judged}"


def _place(score: Score) -> str:
    return f"{score.op} {score.dtype} {score.direction}"
