"""Mistakes made from the numbers of a port that fails: what the catalogue cannot list, because a number is to be found.

An output times a factor, found by least squares; dweight or dbias without some rows, or with them twice, found by exclusion.
A rule is found for a group: one output in one dtype and one dialect, which may have code of its own. It must hold in every
case of the group, passing ones too. So noise suggests nothing, and neither does a fault of another kind.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from conformance.compare import OutputVerdict, Verdict
from conformance.mistakes import found_factor, found_rows
from conformance.mistakes.mistake import Mistake
from conformance.norms.cases import NormCase

Unit = tuple[NormCase, OutputVerdict]
"""One output of one case."""
Key = tuple[str, str, str, str]
"""An op, an output, a dtype and a dialect."""

Rule = TypeVar("Rule", found_factor.Factor, found_rows.Rows)

OF_ROWS = ("dweight", "dbias")
LOOKED_AT = ("y", "dx", *OF_ROWS)


@dataclass(frozen=True)
class Group:
    """One output in one op, dtype and dialect: where it fails, and where it passes."""

    failing: list[Unit] = field(default_factory=list)
    passing: list[Unit] = field(default_factory=list)

    @property
    def units(self) -> list[Unit]:
        """Both."""
        return self.failing + self.passing


def fitted(verdicts: Sequence[Verdict], seed: int) -> tuple[Mistake, ...]:
    """The mistakes with a number of their own that explain every case of some group: none, most often.

    `verdicts` are a port's, judged with `seed`. Of two rules that explain the same groups the plainer is taken.
    """
    groups = _groups(verdicts)
    factors = {key: _factors(group, seed) for key, group in groups.items()}
    rows = {key: _rows(group, seed) for key, group in groups.items() if key[1] in OF_ROWS and not factors[key]}
    return (*_fewest(factors, found_factor.as_mistake), *_fewest(rows, found_rows.as_mistake))


def _groups(verdicts: Iterable[Verdict]) -> dict[Key, Group]:
    """The groups in which something fails."""
    groups = defaultdict[Key, Group](Group)
    for verdict in verdicts:
        case = verdict.case
        if not isinstance(case, NormCase):
            continue
        for output in verdict.outputs:
            if output.output in LOOKED_AT and output.dtype == output.expected_dtype:
                group = groups[case.op, output.output, case.dtype, case.dialect.name]
                (group.failing if output.outside else group.passing).append((case, output))
    return {key: group for key, group in groups.items() if group.failing}


def _factors(group: Group, seed: int) -> list[found_factor.Factor]:
    failing = [found_factor.measure(unit, seed) for unit in group.failing]
    if not all(measured.agrees(measured.factor) for measured in failing):
        return []
    measured = failing + [found_factor.measure(unit, seed) for unit in group.passing]
    return found_factor.candidates(measured, [case for case, _ in group.units])


def _rows(group: Group, seed: int) -> list[found_rows.Rows]:
    failing = [each for unit in group.failing if (each := found_rows.sums(unit, seed))]
    passing = [each for unit in group.passing if (each := found_rows.sums(unit, seed))]
    return [rows for rows in found_rows.candidates(failing) if found_rows.all_agree(rows, failing, passing)]


def _fewest(rules: Mapping[Key, Sequence[Rule]], as_mistake: Callable[[Rule, tuple[str, ...]], Mistake]) -> list[Mistake]:
    """As few rules as explain every group that some rule explains; the one that explains most groups first."""
    explains = defaultdict[str, set[Key]](set)
    by_id: dict[str, Rule] = {}
    for key, some in rules.items():
        for rule in some:
            by_id.setdefault(rule.id, rule)
            explains[rule.id].add(key)
    mistakes: list[Mistake] = []
    left = {key for key, some in rules.items() if some}
    while left:
        best = max(by_id, key=lambda id_: len(explains[id_] & left))
        outputs = {output for _, output, _, _ in explains[best] & left}
        mistakes.append(as_mistake(by_id[best], tuple(output for output in LOOKED_AT if output in outputs)))
        left -= explains[best]
    return mistakes
