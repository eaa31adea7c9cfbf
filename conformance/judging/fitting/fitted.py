"""Mistakes made from the numbers of a port that fails: what the catalogue cannot list, because a number is to be found.

An output times a factor, found by least squares; dweight or dbias without some rows, or with them twice, found by exclusion;
an eps that is not the one asked for, found from the sizes of rows; the variances that rows have in one pass.
A rule is found for a group: one output in one dtype and one dialect, of arrays that are split over devices or are not, each of
which may have code of its own. It must hold in every case of the group, passing ones too. So noise suggests nothing, and
neither does a fault of another kind.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from conformance.judging.compare import Verdict
from conformance.judging.fitting import found_eps, found_factor, found_rows, found_variance
from conformance.judging.fitting.found_factor import Unit
from conformance.mistakes.mistake import LAYER, Mistake
from conformance.numbers.rounding import FORMATS
from conformance.ops.norms.cases import NormCase
from conformance.question.case import is_split

Key = tuple[str, str, str, str, bool]
"""An op, an output, a dtype, a dialect, and whether arrays are split over devices."""

Rule = TypeVar("Rule", found_factor.Factor, found_rows.Rows, found_eps.Rule)
Seen = TypeVar("Seen", found_factor.Scaled, found_rows.Summed, found_eps.Found)

OF_EPS = ("y", "dx")
OF_ROWS = ("dweight", "dbias")
LOOKED_AT = ("y", "dx", "dgate", *OF_ROWS)


@dataclass(frozen=True)
class Group:
    """One output in one op, dtype and dialect, of split arrays or of whole ones: where it fails, and where it passes."""

    failing: list[Unit] = field(default_factory=list)
    passing: list[Unit] = field(default_factory=list)


def fitted(verdicts: Sequence[Verdict], seed: int) -> tuple[Mistake, ...]:
    """The mistakes with a number of their own that explain every case of some group: none, most often.

    `verdicts` are a port's, judged with `seed`. Of two rules that explain as many groups the plainer is taken.
    """
    groups = _groups(verdicts)
    scaled = {key: each for key, group in groups.items() if (each := found_factor.scaled(group.failing, group.passing, seed))}
    factors = _fewest(scaled, found_factor.candidates, found_factor.explains)
    sums = {
        key: found_rows.summed(group.failing, group.passing, seed)
        for key, group in groups.items()
        if key[1] in OF_ROWS and not any(key in keys for _, keys in factors)
    }
    rows = _fewest(sums, found_rows.candidates, found_rows.explains)
    told = {
        key: each
        for key, group in groups.items()
        if key[1] in OF_EPS and (each := found_eps.found(group.failing, group.passing, seed))
    }
    eps = _fewest(told, found_eps.candidates, found_eps.explains)
    failing = (unit for key, group in groups.items() if key[0] in LAYER and key[1] == "y" for unit in group.failing)
    variances = [(case, output) for case, output in failing if case.group_size is None]
    one_pass = found_variance.found(variances, seed)
    return (
        *((one_pass,) if one_pass else ()),
        *(found_factor.as_mistake(factor, _outputs(keys)) for factor, keys in factors),
        *(found_rows.as_mistake(some, _outputs(keys)) for some, keys in rows),
        *(found_eps.as_mistake(rule, _outputs(keys)) for rule, keys in eps if not rule.known),
    )


def _groups(verdicts: Iterable[Verdict]) -> dict[Key, Group]:
    """The groups in which something fails, those first whose numbers are the most precise."""
    groups = defaultdict[Key, Group](Group)
    for verdict in verdicts:
        case = verdict.case
        if not isinstance(case, NormCase):
            continue
        for output in verdict.outputs:
            if output.output in LOOKED_AT and output.dtype == output.expected_dtype:
                group = groups[case.op, output.output, case.dtype, case.dialect.name, is_split(case.layout)]
                (group.failing if output.outside else group.passing).append((case, output))
    precise = sorted(groups, key=lambda key: FORMATS[key[2]].unit_roundoff)
    return {key: groups[key] for key in precise if groups[key].failing}


def _fewest(
    groups: Mapping[Key, Seen], candidates: Callable[[Seen], Sequence[Rule]], explains: Callable[[Rule, Seen], bool]
) -> list[tuple[Rule, set[Key]]]:
    """As few rules as explain every group that some rule explains, and those; the one that explains most first."""
    rules: dict[str, Rule] = {}
    for seen in groups.values():
        for rule in candidates(seen):
            if rule.id not in rules and explains(rule, seen):
                rules[rule.id] = rule
    explained = {id_: {key for key, seen in groups.items() if explains(rule, seen)} for id_, rule in rules.items()}
    chosen: list[tuple[Rule, set[Key]]] = []
    while best := max(explained, key=lambda id_: len(explained[id_]), default=""):
        keys = explained[best]
        if not keys:
            break
        chosen.append((rules[best], keys))
        explained = {id_: others - keys for id_, others in explained.items()}
    return chosen


def _outputs(keys: Iterable[Key]) -> tuple[str, ...]:
    """The outputs that some groups are of, in the usual order."""
    outputs = {output for _, output, *_ in keys}
    return tuple(output for output in LOOKED_AT if output in outputs)
