"""Verdicts and diagnoses -> the causes that a report names."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from math import prod

from conformance.ops.block.taps import TAP
from conformance.port.session import NOT_ASKED
from conformance.report.counting import count_of
from conformance.report.pattern import shape_of
from conformance.report.report import (
    CaseEntry,
    Cause,
    Evidence,
    OutputEntry,
    PortEntry,
    Settings,
    command,
)

DIAGNOSED = 2**20  # elements of a case that is held against the mistakes: each makes a golden of its own
NAMED = 4  # outputs that are named in one line
NUMBER = re.compile(r"(\b(?:b?float|u?int|[bf]?[fsui]|fp)(?:8|16|32|64)\b)|0x[0-9a-fA-F]+|\d+")
Explained = tuple[str, str, Evidence, tuple[str, ...]]


def too_large(shape: tuple[int, ...]) -> bool:
    """Whether a case with an x of this shape is too large to be diagnosed."""
    return prod(shape) > DIAGNOSED


def causes_of(
    settings: Settings, ports: Iterable[PortEntry], verdicts: Sequence[CaseEntry], made: Iterable[Explained]
) -> list[Cause]:
    """What went wrong: known mistakes first, then what none explains; last what a port that had failed was not asked."""
    entries = {(each.port, each.case): each for each in verdicts}
    arguments = {port.port: port.argument for port in ports}
    mistakes: dict[tuple[str, str], list[Explained]] = {}
    for each in made:
        mistakes.setdefault((each[0], each[2].mistake), []).append(each)
    rest: dict[tuple[str, tuple[str, ...]], list[CaseEntry]] = {}
    known = {(port, case) for port, _, _, cases in made for case in cases}
    for each in verdicts:
        if each.status in ("fail", "error") and (each.message or (each.port, each.case) not in known):
            rest.setdefault((each.port, _kind(each)), []).append(each)

    def cause(what: str, evidence: Evidence | None, group: Sequence[CaseEntry]) -> Cause:
        example = min(group, key=lambda each: (not each.fixture, -_visibility(each)))
        off = (output for output in example.outputs if output.is_off)
        output = _parts_at(example) or max(off, key=_deviation, default=None)
        return Cause(
            example.port,
            what,
            evidence,
            tuple(each.case for each in group),
            tuple(dict.fromkeys(each.dtype for each in group)),
            example.case,
            output.output if output else "",
            command(settings, arguments[example.port], example.case),
        )

    diagnosed = [
        cause(group[0][1], _joined([each[2] for each in group]), [entries[port, id_] for each in group for id_ in each[3]])
        for (port, _), group in mistakes.items()
    ]
    passing = [each for each in verdicts if each.status == "pass"]
    others = [cause(_unexplained(group, _like(group[0], passing)), None, group) for group in rest.values()]
    last = [each for each in others if each.what == NOT_ASKED]
    return [*sorted(diagnosed, key=_size), *sorted((each for each in others if each not in last), key=_size), *last]


def _joined(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of one mistake, as it was found in one op, or one shard, or more."""
    best = max(parts, key=lambda part: part.runner_up_outputs)
    return replace(
        best,
        agreeing=sum(part.agreeing for part in parts),
        judged=sum(part.judged for part in parts),
        outputs=sum(part.outputs for part in parts),
        failing=sum(part.failing for part in parts),
        residual=max(part.residual for part in parts),
        where=_united(part.where for part in parts),
        right=_united(part.right for part in parts),
    )


def _united(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(names)))


def _like(entry: CaseEntry, among: Iterable[CaseEntry]) -> list[CaseEntry]:
    """Those of the same port and op."""
    return [each for each in among if (each.port, each.op) == (entry.port, entry.op)]


def _unexplained(group: Sequence[CaseEntry], passing: Sequence[CaseEntry]) -> str:
    """Failures of one op in the same outputs, with the shape of what fails; or errors of one message."""
    first = group[0]
    if first.message:
        others = len({each.message for each in group}) - 1
        return first.message + (f" (and {count_of(others, 'message')} with other numbers)" if others else "")
    what = f"{first.op}: {_in_short(_failing_outputs(first))} outside the intervals; {_why_unnamed(group)}"
    if first.exposes and len({_name(each) for each in group}) == 1:
        what += f" ({_name(first)} exposes {first.exposes})"
    shape = shape_of(group, passing)
    return f"{what}; it fails {shape}" if shape else what


def _why_unnamed(group: Sequence[CaseEntry]) -> str:
    if all(too_large(each.shape) for each in group):
        return "so large a case is not diagnosed: ask a smaller one"
    return "no known mistake explains it"


def _name(each: CaseEntry) -> str:
    return each.case.rpartition("/")[2]


def _kind(each: CaseEntry) -> tuple[str, ...]:
    return (
        (NUMBER.sub(lambda found: found[1] or "#", each.message),) if each.message else (each.op, *_failing_outputs(each)[:1])
    )


def _parts_at(each: CaseEntry) -> OutputEntry | None:
    """The first tap in data-flow order that does not pass: the stage at fault."""
    return next((tap for tap in each.taps if not tap.passes), None)


def _failing_outputs(each: CaseEntry) -> list[str]:
    """What is outside its interval; of the intermediates only the first, which the others may follow from."""
    stage = _parts_at(each)
    first = [stage.output.replace(TAP, "the stage ")] if stage else []
    return first + [output.output for output in each.outputs if output.is_off]


def _in_short(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= NAMED else f"{', '.join(names[:NAMED])} and {len(names) - NAMED} others"


def _visibility(each: CaseEntry) -> float:
    return max((_deviation(output) for output in each.judged if output.is_off), default=0.0)


def _deviation(output: OutputEntry) -> float:
    """How far the worst element is off, relative to what was expected and at most 1; little where one is not finite."""
    if output.worst is None:
        return 0.0
    off = abs(output.worst.actual - output.worst.expected) / max(abs(output.worst.expected), 1e-300)
    return min(off, 1.0) if math.isfinite(off) else 0.01


def _size(cause: Cause) -> int:
    return -len(cause.cases)
