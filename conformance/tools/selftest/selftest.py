"""The judge judged: every mistake of the catalogue is rejected wherever it can be seen, and no honest arithmetic is.

A mistake is seen in an op and a dtype if some case rejects its exact numbers. How plainly is its error ratio: the largest
over the cases, or a first one that is `PLAIN`. What honest arithmetic reaches is measured by playing it in several styles.
The quotient of the two is the separation: how much room lies between the wrong and the right.

A composite op's mistakes are played, and seen by its outputs or, where a port exports them, by its intermediates: its taps.
"""

import os
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from multiprocessing import get_context

import numpy as np

from conformance.judging.compare import compare, error_ratio
from conformance.judging.simulation import STYLES, numbers, play
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import Mistake
from conformance.numbers.expected import Expected
from conformance.numbers.rounding import DTYPES, DType
from conformance.ops.block.taps import TAP
from conformance.ops.cases import CASES
from conformance.ops.golden import Golden, golden, lay_open, on_its_own
from conformance.ops.norms.cases import NORMS
from conformance.ops.table import OPS
from conformance.question.case import FIXTURE_ELEMENTS, Case

Array = np.ndarray

PLAIN, PLAIN_IN_A_BLOCK = 1e3, 10.0  # tolerances; a mistake as far off as this need not be looked at further
SEPARATION = 10.0  # the least that lies between a norm's weakest mistake and its noisiest honest implementation
OUTPUTS, TAPS = "outputs", "taps"  # what a composite op's separations are of

LARGE = ("rows_257", "width_4096")  # cases of a norm that are tried where no smaller one shows a mistake


def _is_tried(case: Case) -> bool:
    """Whether mistakes are tried on a case: not on one without a tolerance, which has no room to be measured."""
    if case.op not in NORMS:
        return True
    return (prod(case.shape) <= FIXTURE_ELEMENTS or case.name in LARGE) and not case.exact


TRIED = tuple(case for case in CASES if _is_tried(case))


@dataclass(frozen=True, slots=True)
class Kill:
    """How plainly a mistake is seen in an op and a dtype: the case and output that show it best, and the error ratio.

    Where no case rejects it, `ratio` is at most 1 and `reason` says why that must be so; empty, it is a miss. `taps` is the
    largest ratio of an intermediate, and `needs_taps` says why the outputs alone must miss it.
    """

    mistake: str
    op: str
    dtype: DType
    ratio: float
    case: str
    output: str
    reason: str
    taps: float = 0.0
    needs_taps: str = ""

    @property
    def seen(self) -> bool:
        """Whether some case rejects the mistake by its outputs."""
        return self.ratio > 1

    @property
    def right(self) -> bool:
        """Whether it is seen exactly where, and by what, the catalogue says that it can be."""
        if self.reason:
            return not self.seen and self.taps <= 1
        return self.seen != bool(self.needs_taps) and (self.seen or self.taps > 1)


@dataclass(frozen=True, slots=True)
class Separation:
    """Of one op, dtype and output: the largest ratio of honest arithmetic, and the weakest mistake that this output shows.

    A composite op's outputs are taken together, and so are its taps, of which only the mistakes count that need them.
    """

    op: str
    dtype: str
    output: str
    honest: float
    weakest: Kill | None

    @property
    def ratio(self) -> float:
        """The weakest mistake's."""
        if self.weakest is None:
            return float("inf")
        return self.weakest.taps if self.output == TAPS else self.weakest.ratio

    @property
    def factor(self) -> float:
        """The weakest mistake's ratio over the honest one, or over 1/10 where honest arithmetic makes no error at all."""
        return self.ratio / max(self.honest, 0.1)

    @property
    def wide(self) -> bool:
        """Whether there is room: in a composite op, that right and wrong lie on either side of the tolerance."""
        return self.factor >= SEPARATION if self.op in NORMS else self.honest < 1 < self.ratio


@dataclass(frozen=True, slots=True)
class SelfTest:
    """All kills and all separations, in the order of the catalogue and of the dtypes."""

    kills: tuple[Kill, ...]
    separations: tuple[Separation, ...]

    @property
    def wrong(self) -> tuple[Kill, ...]:
        """The misses; and the mistakes that are seen where the catalogue says that they cannot be."""
        return tuple(kill for kill in self.kills if not kill.right)

    @property
    def passes(self) -> bool:
        """Whether nothing is missed and every separation is large enough."""
        return not self.wrong and all(separation.wide for separation in self.separations)


def self_test(
    jobs: int = os.cpu_count() or 1, mistakes: Iterable[Mistake] = MISTAKES, on_step: Callable[[], None] = lambda: None
) -> SelfTest:
    """Make every mistake, and play every honest style, in `jobs` processes. `on_step` is called `steps` times."""
    mistakes = tuple(mistakes)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        honest = [(op, dtype, pool.submit(honest_ratios, op, dtype)) for op in _ops(mistakes) for dtype in DTYPES]
        made = [pool.submit(kills_of, mistake.id) for mistake in mistakes]
        for future in [*made, *(future for *_, future in honest)]:
            future.add_done_callback(lambda _: on_step())
        kills = tuple(kill for future in made for kill in future.result())
        separations = tuple(
            Separation(op, dtype, output, ratio, _weakest(kills, op, dtype, output))
            for op, dtype, future in honest
            for output, ratio in future.result().items()
        )
    return SelfTest(kills, separations)


def steps(mistakes: Iterable[Mistake] = MISTAKES) -> int:
    """The number of steps of a self-test."""
    return len(tuple(mistakes)) + len(_ops(mistakes)) * len(DTYPES)


def _ops(mistakes: Iterable[Mistake]) -> list[str]:
    """The ops that some mistake is made in."""
    return [op for op in OPS if any(op in mistake.ops for mistake in mistakes)]


def kills_of(id_: str) -> list[Kill]:
    """One mistake in every op and dtype that there is a case of."""
    (mistake,) = (mistake for mistake in MISTAKES if mistake.id == id_)
    telling: list[str] = []  # the cases that showed it elsewhere are tried first
    kills: list[Kill] = []
    for op, dtype in tried_in(mistake):
        kills.append(kill(mistake, op, dtype, telling))
        telling.append(kills[-1].case.rpartition("/")[2])
    return kills


def tried_in(mistake: Mistake) -> list[tuple[str, DType]]:
    """The ops and dtypes that a mistake is made in and that there is a case of."""
    asked = {(case.op, case.dtype) for case in TRIED}
    return [(op, dtype) for op in mistake.ops for dtype in DTYPES if (op, dtype) in asked]


def kill(mistake: Mistake, op: str, dtype: DType, first: Collection[str] = ()) -> Kill:
    """One mistake in one op and dtype, tried on the cases of some names `first`."""
    cases = [case for case in TRIED if (case.op, case.dtype) == (op, dtype)]
    cases.sort(key=lambda case: (case.name in LARGE, case.name not in first))
    return (_kill if op in NORMS else _kill_in_a_block)(mistake, op, dtype, cases)


def _kill(mistake: Mistake, op: str, dtype: DType, cases: list[Case]) -> Kill:
    best = Kill(mistake.id, op, dtype, 0.0, "", "", mistake.hidden_in(op, dtype))
    for case in cases:
        if best.ratio >= PLAIN or (best.seen and case.name in LARGE):
            break
        made = numbers(mistake, case)
        expected = on_its_own(case, golden(case).outputs, made)
        for output in case.outputs:
            ratio = _larger_ratio(expected[output], made[output], best.ratio)
            if ratio > best.ratio:
                best = Kill(mistake.id, op, dtype, ratio, case.id, output, best.reason)
    return best


def _larger_ratio(expected: Expected, made: Array, ratio: float) -> float:
    """The error ratio, or this one where it is no larger, which is sooner seen than by how much."""
    if made.dtype.name != expected.dtype:
        return float("inf")
    actual = made.astype(np.float64)
    return ratio if np.all(expected.admits(actual, ratio)) else error_ratio(expected, actual)


def _kill_in_a_block(mistake: Mistake, op: str, dtype: DType, cases: list[Case]) -> Kill:
    best, taps = Kill(mistake.id, op, dtype, 0.0, "", "", mistake.hidden_in(op, dtype)), 0.0
    for case in cases:
        expected, made = golden(case), numbers(mistake, case)
        for output in case.outputs:
            ratio = _larger_ratio(expected.outputs[output], made[output], best.ratio)
            if ratio > best.ratio:
                best = replace(best, ratio=ratio, case=case.id, output=output)
            if ratio >= PLAIN_IN_A_BLOCK:
                break
        if OPS[op].taps and taps < PLAIN_IN_A_BLOCK:
            taps = _taps_ratio(mistake, expected, made, taps)
        if best.ratio >= PLAIN_IN_A_BLOCK:
            break
    return replace(best, taps=taps, needs_taps=mistake.needs_taps_in(op, dtype))


def _taps_ratio(mistake: Mistake, golden: Golden, made: dict[str, Array], ratio: float) -> float:
    """The largest error ratio of the intermediates that the mistake alters, or this one, if it is larger than all.

    The others are judged on what they were fed.
    """
    case, seed = golden.case, golden.seed
    taps = {name.removeprefix(TAP): tap for name, tap in made.items() if name.startswith(TAP)}
    expected = lay_open(case, seed).expected_taps(mistake.altered(case, seed), taps)
    for name, each in expected.items():
        ratio = _larger_ratio(each, taps[name], ratio)
    return ratio


def honest_ratios(op: str, dtype: DType) -> dict[str, float]:
    """The largest error ratio of every output, over the cases and styles of honest arithmetic.

    A composite op is played in one style; its outputs are taken together, and so are its taps.
    """
    ratios: dict[str, float] = {}
    for case in TRIED:
        if (case.op, case.dtype) == (op, dtype):
            for style in STYLES if op in NORMS else STYLES[:1]:
                for judged in compare("honest", golden(case), play(case, 0, style), tuple(case.outputs)).judged:
                    taken = judged.output if op in NORMS else TAPS if judged.output.startswith(TAP) else OUTPUTS
                    ratios[taken] = max(judged.ratio, ratios.get(taken, 0.0))
    return ratios


def _weakest(kills: tuple[Kill, ...], op: str, dtype: str, output: str) -> Kill | None:
    """Of the mistakes that this output shows more plainly than any other, the one it shows least."""
    of_op = [kill for kill in kills if (kill.op, kill.dtype) == (op, dtype)]
    if output == TAPS:
        return min((kill for kill in of_op if kill.needs_taps), key=lambda kill: kill.taps, default=None)
    shown = [kill for kill in of_op if output in (kill.output, OUTPUTS) and kill.seen]
    return min(shown, key=lambda kill: kill.ratio, default=None)
