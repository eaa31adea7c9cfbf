"""The cases in parts, one for each of several machines."""

from collections.abc import Sequence
from itertools import groupby

from conformance.question.case import Case

Group = tuple[Case, ...]
Program = tuple[str, int, str]


def program(case: Case) -> Program:
    """What the cases have in common that share compiled code: all of their id but the name; x's rank and layout."""
    return case.id.rpartition("/")[0], len(case.shape), case.layout


def shard(cases: Sequence[Case], number: int, count: int) -> tuple[Case, ...]:
    """Part `number` (from 1) of `count` of the cases, in their order: every op's programs, and the cases, dealt out evenly.

    Every case is in exactly one part; a program, which is compiled once, is in one part whole.
    """
    programs = [tuple(group) for _, group in groupby(sorted(cases, key=program), program)]
    parts: list[list[Group]] = [[] for _ in range(count)]
    for group in sorted(programs, key=lambda group: (group[0].op, -len(group), group[0].id)):
        least = min(parts, key=lambda part: (sum(other[0].op == group[0].op for other in part), sum(map(len, part))))
        least.append(group)
    mine = {case.id for group in parts[number - 1] for case in group}
    return tuple(case for case in cases if case.id in mine)
