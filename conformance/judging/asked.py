"""What is diagnosed: the outputs of cases, in groups that a port may have code of its own for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from conformance.judging.compare import OutputVerdict, Verdict
from conformance.question.case import Case, is_split

LARGE = 1_000  # elements of x beyond which a case is looked at only where no smaller one fails, or by what was found there
FEW_LARGE = 2  # large cases that fail, and that pass, on which every mistake is tried where no small one fails


@dataclass(frozen=True, slots=True)
class Group:
    """What a port may have code of its own for: an output in one dtype and variant of its op, quantised to one dtype with a
    scale that is returned or not, of arrays that are split over devices or not, in small cases or in large ones.
    """

    output: str
    dtype: str
    variant: str
    quantised_dtype: str
    returns_scale: bool
    is_split: bool
    small: bool


@dataclass(frozen=True, eq=False, slots=True)
class Unit:
    """One output of one case, and the group that it is counted in."""

    verdict: Verdict
    output: OutputVerdict
    group: Group

    @property
    def fails(self) -> bool:
        """Whether it is to be explained."""
        return self.verdict.status == "fail" and not self.output.passes


@dataclass(frozen=True, eq=False, slots=True)
class Asked:
    """One case, and its outputs."""

    verdict: Verdict
    small: bool
    units: tuple[Unit, ...]

    @classmethod
    def of(cls, verdict: Verdict) -> "Asked":
        """A case as it was judged."""
        case, small = verdict.case, is_small(verdict.case)
        quantised = case.settings.get("quantised_dtype", ""), "scale" in case.outputs
        branch = case.dtype, case.variant, *quantised, is_split(case.layout), small
        groups = [Group(output.output, *branch) for output in verdict.judged]
        return cls(verdict, small, tuple(map(partial(Unit, verdict), verdict.judged, groups)))


def is_small(case: Case) -> bool:
    """Whether a case is so small that every mistake can be tried on it."""
    return prod(case.shape) <= LARGE


def few_if_large(cases: Sequence[Asked]) -> Sequence[Asked]:
    """The cases themselves, or of large ones the smallest that fail and pass: every mistake is tried on them."""
    if not cases or cases[0].small:
        return cases
    failing = sorted((asked for asked in cases if asked.verdict.status == "fail"), key=_elements)
    passing = sorted((asked for asked in cases if asked.verdict.status == "pass"), key=_elements)
    return failing[:FEW_LARGE] + passing[:FEW_LARGE]


def _elements(asked: Asked) -> int:
    return prod(asked.verdict.case.shape)


def spread(cases: Sequence[Asked], count: int) -> Sequence[Asked]:
    """So many of the cases, from all over."""
    step = max(1, len(cases) // max(1, count))
    return cases[::step][: max(0, count)]
