"""Verdicts -> the mistakes that explain them, or none.

A mistake explains an output if the output's numbers take fewer bits to tell to someone who knows the mistake than to someone
who believes the port to be right (`conformance.judging.bits`). They are counted group by group, a group being one output in
one dtype and variant of the op: a port may have code of its own for each, and a mistake may be in the forward pass alone.
What passes counts too: it costs little if the port is right, and all its digits under a mistake that would have changed it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest

import numpy as np

from conformance.judging.asked import Asked, Group, Unit, few_if_large, spread
from conformance.judging.bits import Told, tell, whole
from conformance.judging.compare import Verdict, error_ratio
from conformance.judging.diagnosis import Diagnosis
from conformance.judging.fitting.fitted import fitted
from conformance.judging.hypotheses import Outputs, comes_near, if_made, if_right
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import Mistake, both
from conformance.mistakes.ranks import mistakes_among
from conformance.numbers.expected import Expected
from conformance.ops.table import OPS
from conformance.question.case import DEVICES, is_split

Array = np.ndarray

PRICE = 12.0  # bits to say that a group has a mistake, or that it does not have one that would change it
FOUND = 0.8  # of its bits count for a mistake that was fitted to the numbers: one of the catalogue is as likely with fewer
SHARE = 1 / 3  # of the bits that failures cost: a mistake that saves less is not named
SHARE_OF_TWO = 1 / 2  # two at once are many more hypotheses, and must save more
REST = 1 / 4  # of these bits: where less is left, two mistakes at once are not tried
FEW = 0.05  # of these bits, or of the failing outputs: so few are not worth a name or another search
FIRST, FIRST_OF_TWO = 3, 2  # cases on whose failing outputs every mistake is tried, and every two at once
ROUNDS = ((16, 6), (6, 16), (2, None))  # so many of the best mistakes are tried on so many cases, in the end on all
TIES = 4  # times as many where they are as good: what tells them apart may be asked in one case alone
NEARLY = 0.95  # of the bits of the best one: with so many a mistake may be as good, where intervals are rough
MOST = 0.9  # the share of an output that is nearly all of it: noise before a rounding may tip an element now and then


def diagnose(verdicts: Sequence[Verdict], seed: int, among: Sequence[Mistake] | None = None) -> tuple[Diagnosis, ...]:
    """The fewest mistakes that explain what fails, in the order in which they are found.

    `verdicts` are those of one port and one op, judged with `seed`. The mistakes are those of ranks that split a case, those of
    the catalogue, and those made from the numbers themselves, or some (`among`). What none of them explains appears in none.
    """
    if all(output.passes for verdict in verdicts for output in verdict.judged):
        return ()
    search = Search([verdict for verdict in verdicts if verdict.judged], seed)
    known = (*_among_ranks(verdicts), *MISTAKES, *fitted(verdicts, seed)) if among is None else among
    among = [mistake for mistake in known if any(mistake.can_be_made_in(verdict.case.op) for verdict in verdicts)]
    diagnoses: list[Diagnosis] = []
    all_ = search.left
    while search.left > FEW * all_:
        found = [each.mistake for each in diagnoses]
        best = search.best([mistake for mistake in among if mistake not in found])
        ranked = search.enough(best, SHARE)
        if not ranked and search.left > REST * all_:  # two at once may leave numbers that neither has alone
            alone = [*found[:1], *list(best)[:1]]
            ranked = search.enough(search.best_of_two(alone, among), SHARE_OF_TWO)
        if not ranked:
            break
        diagnoses.append(search.take(*ranked))
    return tuple(diagnoses)


def _among_ranks(verdicts: Sequence[Verdict]) -> tuple[Mistake, ...]:
    """The mistakes of the ranks that split the tensors of some cases, or of the devices; none where all are whole."""
    if (ranks := max(verdict.ranks for verdict in verdicts)) > 1:
        return mistakes_among(ranks)
    return mistakes_among(DEVICES, "device") if any(is_split(verdict.case.layout) for verdict in verdicts) else ()


class Search:
    """What a port returned for one op, and the bits that it takes, given the mistakes found so far."""

    def __init__(self, judged: Iterable[Verdict], seed: int) -> None:
        self._seed = seed
        self._asked = [Asked.of(verdict) for verdict in judged]
        self._units = [unit for asked in self._asked for unit in asked.units]
        self._failing = [unit for unit in self._units if unit.fails]
        self._searched = few_if_large([asked for asked in self._asked if asked.small == self._any_small_fails()])
        self._costly = any(OPS[asked.verdict.case.op].costly for asked in self._asked)
        self._right: dict[Unit, Told] = {}
        self._size: dict[Unit, Array | float] = {}
        self._if_right = {asked: if_right(asked.verdict, seed) for asked in self._asked}
        for asked, right in self._if_right.items():
            self._right |= {unit: tell(right.get(unit.output.output), unit.output) for unit in asked.units}
            self._size |= {unit: _size(right.get(unit.output.output)) for unit in asked.units}
        self._now = dict(self._right)
        self._known: dict[tuple[Mistake, Unit, bool], list[Told]] = {}
        self._ways: dict[tuple[Mistake, Asked, bool], list[Outputs]] = {}
        self._case_of = {unit: asked for asked in self._asked for unit in asked.units}

    @property
    def left(self) -> float:
        """The bits that failures cost more than they would inside their intervals."""
        return sum(self._now[unit].excess for unit in self._left())

    def best(self, mistakes: Iterable[Mistake]) -> dict[Mistake, float]:
        """The mistakes that save most of the bits that are left, and how many."""
        return self._ranked(self._best(mistakes, self._first_units(FIRST), rough=True))

    def best_of_two(self, alone: Iterable[Mistake], among: Iterable[Mistake]) -> dict[Mistake, float]:
        """The same of each of some mistakes together with any other, where two save more than those alone."""
        units = self._first_units(FIRST_OF_TWO)
        least = max(self._best(alone, units, rough=True).values(), default=0.0) + PRICE
        pairs = self._best(self._pairs(alone, among), units, rough=True)
        return self._ranked({two: saved for two, saved in pairs.items() if saved > least})

    def _first_units(self, count: int) -> list[Unit]:
        """The failing outputs of the cases that tell most, on which every mistake is tried."""
        return [unit for asked in self._telling()[:count] for unit in asked.units if unit.fails]

    def _ranked(self, best: dict[Mistake, float]) -> dict[Mistake, float]:
        """Of the best mistakes in a few outputs, in rounds, fewer and fewer on more and more cases."""
        telling = self._telling()
        others = [asked for asked in self._searched if asked not in telling]
        for kept, count in ROUNDS:
            cases = telling + others if count is None else [*telling[:count], *spread(others, count - len(telling))]
            rough = count is not None or (self._costly and max(best.values(), default=0.0) >= SHARE * self.left)
            best = self._best(
                _first(kept, best, NEARLY if self._costly else 1.0),
                [unit for asked in cases for unit in asked.units],
                rough=rough,
            )
        return self._told_apart(best, telling) if self._costly else best

    def _told_apart(self, best: Mapping[Mistake, float], cases: Iterable[Asked]) -> dict[Mistake, float]:
        """The same, and those that rough intervals hardly tell apart in the order of what they save with their own."""
        near = [mistake for mistake in best if best[mistake] >= NEARLY * max(best.values())][:TIES]
        if len(near) < 2:
            return dict(best)
        own = self._best(near, [unit for asked in cases for unit in asked.units], rough=False)
        return {mistake: best[mistake] for mistake in dict.fromkeys([*own, *best])}

    def enough(self, best: Mapping[Mistake, float], share: float) -> list[Mistake]:
        """The first two that save so large a share of the bits that are left, and explain some output."""
        found: list[Mistake] = []
        for mistake in (mistake for mistake, saved in best.items() if saved >= share * self.left):
            if self._explains(mistake, rough=True) and (found or self._explains(mistake, rough=False)):
                found.append(mistake)
            if len(found) == 2:
                break
        return found

    def _explains(self, mistake: Mistake, *, rough: bool) -> bool:
        """Whether a mistake explains nearly all of more than a few outputs, and some case whole.

        What saves bits here and there, and agrees with no case, explains nothing.
        """
        told = self._told_best(mistake, [unit for asked in self._searched for unit in asked.units], rough=rough)
        touched = [[told[unit] for unit in asked.units if unit in told] for asked in self._searched]
        if not any(each and not any(one.outside for one in each) for each in touched):
            return False
        return sum(_is_explained(unit, told) for unit in self._left()) > FEW * len(self._failing)

    def _pairs(self, found: Iterable[Mistake], among: Iterable[Mistake]) -> list[Mistake]:
        """Each of some mistakes together with any other; a bound, doubled, would hold anything."""
        case = self._failing[0].verdict.case
        known = [mistake for mistake in among if mistake.exact(case)]
        return [both(first, second) for first in found if first in known for second in known if first is not second]

    def take(self, mistake: Mistake, runner_up: Mistake | None = None) -> Diagnosis:
        """Take a mistake for made, and say how well it explains what is left."""
        told = self._told_best(mistake, self._units)
        explained = [unit for unit in self._failing if self._now[unit].outside and _is_explained(unit, told)]
        disagreeing = {self._case_of[unit] for unit, each in told.items() if each.outside}
        where = {unit.output.output for unit in told}
        also = self._also(runner_up, explained) if runner_up else 0
        self._now |= {unit: each for unit, each in told.items() if each.bits < self._now[unit].bits}
        return Diagnosis(
            mistake,
            tuple({self._case_of[unit]: unit.verdict for unit in explained}.values()),
            outputs=len(explained),
            failing=len(self._failing),
            agreeing=len(self._asked) - len(disagreeing),
            judged=len(self._asked),
            residual=self._residual(mistake, explained),
            where=self._in_order(where),
            right=self._in_order({unit.output.output for unit in self._units if self._is_exempt(mistake, unit)} - where),
            runner_up=(runner_up, also) if runner_up and also else None,
        )

    def _any_small_fails(self) -> bool:
        return any(unit.group.small for unit in self._failing)

    def _in_order(self, names: set[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(unit.output.output for unit in self._units if unit.output.output in names))

    def _is_exempt(self, mistake: Mistake, unit: Unit) -> bool:
        """Whether an output passes that a mistake would have changed."""
        searched = self._case_of[unit] in self._searched
        return unit.output.passes and searched and all(told.outside for told in self._told(mistake, unit))

    def _also(self, mistake: Mistake, explained: Iterable[Unit]) -> int:
        """How many of the outputs that one mistake explains another explains too; in a composite op, nearly so."""
        units = list(explained)
        rough = any((mistake, unit, False) not in self._known for unit in units)
        told = self._told_best(mistake, units, rough=rough)
        return sum(_is_explained(unit, told) for unit in units)

    def _left(self) -> list[Unit]:
        return [unit for asked in self._searched for unit in asked.units if unit.fails and self._now[unit].outside]

    def _telling(self) -> list[Asked]:
        """The failing cases: of every group in turn the one that costs most."""
        groups: dict[Group, list[Unit]] = defaultdict(list)
        for unit in sorted(self._left(), key=lambda unit: self._now[unit].excess, reverse=True):
            groups[unit.group].append(unit)
        turns = chain.from_iterable(zip_longest(*groups.values()))
        return list(dict.fromkeys(self._case_of[unit] for unit in turns if unit))

    def _best(self, mistakes: Iterable[Mistake], units: Sequence[Unit], *, rough: bool) -> dict[Mistake, float]:
        """The bits that each mistake saves in these outputs, most first; without those that save none.

        Of two that save the same, but for a fraction of a bit, the first remains the first.
        """
        saved = {mistake: self._worth(mistake, units, rough) for mistake in mistakes}
        ranked = sorted(saved, key=lambda mistake: round(saved[mistake]), reverse=True)
        return {mistake: saved[mistake] for mistake in ranked if saved[mistake] > 0}

    def _worth(self, mistake: Mistake, units: Iterable[Unit], rough: bool) -> float:
        """The bits that a mistake saves in these outputs, less what it costs to say in which groups."""
        saved = sum(_less_price(max(ways)) for ways in self._saved(mistake, units, rough=rough).values())
        return FOUND * saved if mistake.found else saved

    def _saved(self, mistake: Mistake, units: Iterable[Unit], *, rough: bool = False) -> dict[Group, list[float]]:
        """The bits that a mistake saves in each group, for every way to write its backward pass."""
        saved: dict[Group, list[float]] = {}
        for unit in units:
            gains = [self._now[unit].bits - told.bits for told in self._told(mistake, unit, rough)]
            saved[unit.group] = [sum(pair) for pair in zip(saved.get(unit.group, [0.0] * len(gains)), gains, strict=True)]
        return saved

    def _told(self, mistake: Mistake, unit: Unit, rough: bool = False) -> list[Told]:
        """An output as a mistake tells it, for every way to write its backward pass."""
        if (mistake, unit, rough) not in self._known:
            expected = [each.get(unit.output.output) for each in self._expected(mistake, self._case_of[unit], rough)]
            told = {id(each): self._tell(unit, each, rough) for each in expected}
            self._known[mistake, unit, rough] = [told[id(each)] for each in expected]
        return self._known[mistake, unit, rough]

    def _tell(self, unit: Unit, made: Expected | None, rough: bool) -> Told:
        right = self._if_right[self._case_of[unit]].get(unit.output.output)
        if made is right:  # which the mistake leaves alone
            return self._right[unit]
        costly = rough and not self._costly  # whose rough intervals cost nothing
        if costly and made and right and not comes_near(made, right, unit.output.actual):
            return whole(unit.output)
        return tell(made, unit.output, self._right[unit].width, self._size[unit], any_not_finite=True)

    def _told_best(self, mistake: Mistake, units: Sequence[Unit], *, rough: bool = False) -> dict[Unit, Told]:
        """Those of some outputs that are of groups that have a mistake, as it tells them."""
        groups = self._saved(mistake, units, rough=rough)
        way = {group: int(np.argmax(saved)) for group, saved in groups.items() if max(saved) > PRICE}
        return {unit: self._told(mistake, unit, rough)[way[unit.group]] for unit in units if unit.group in way}

    def _expected(self, mistake: Mistake, asked: Asked, rough: bool = False) -> list[Outputs]:
        rough = rough and self._costly
        if (mistake, asked, rough) not in self._ways:
            self._ways[mistake, asked, rough] = if_made(mistake, asked.verdict, self._if_right[asked], self._seed, rough=rough)
        return self._ways[mistake, asked, rough]

    def _residual(self, mistake: Mistake, explained: Iterable[Unit]) -> float:
        """The largest error ratio of some outputs, each held against the way that tells it best."""
        largest = 0.0
        for unit in explained:
            ways = self._expected(mistake, self._case_of[unit])
            expected = [way[unit.output.output] for way in ways if unit.output.output in way]
            if not any(each.admits(unit.output.actual, largest).all() for each in expected):
                largest = min((error_ratio(each, unit.output.actual) for each in expected), default=np.inf)
        return largest


def _first(count: int, best: Mapping[Mistake, float], share: float) -> list[Mistake]:
    """So many of the best mistakes, and those that save this share of what the last one does, if they are not many."""
    ranked = list(best)
    least = share * best[ranked[:count][-1]] - PRICE if ranked else 0.0
    return [mistake for mistake in ranked[: TIES * count] if best[mistake] >= least]


def _is_explained(unit: Unit, told: Mapping[Unit, Told]) -> bool:
    return unit in told and told[unit].share >= MOST


def _size(right: Expected | None) -> Array | float:
    """How large the right values of an output are; zero where they are not finite."""
    return np.nan_to_num(np.abs(right.value), nan=0.0, posinf=0.0) if right else 0.0


def _less_price(saved: float) -> float:
    """What the bits saved in a group are worth: it has a price to say that the group has the mistake, or that it is exempt."""
    return max(saved - PRICE, 0.0) if saved > 0 else max(saved, -PRICE)
