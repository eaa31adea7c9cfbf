"""Where a planted mistake is found: at the stage where it was made, or elsewhere.

Every mistake of the catalogue that alters a stage of a block is played in every case, and looked for twice: by the taps, each
judged on what it was fed, and by `conformance locate`, which compares the activations with the golden's and knows no op.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import cast

import numpy as np

from conformance.judging.compare import compare
from conformance.judging.simulation import STYLES, play
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import Mistake
from conformance.numbers.rounding import DTYPES
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.case import CompositeCase
from conformance.ops.block.program import Program
from conformance.ops.block.taps import TAP, altered_taps, tap_names
from conformance.ops.golden import Golden, golden, lay_open
from conformance.ops.table import COMPOSITES
from conformance.tools.locating.locate import Location, locate

Array = np.ndarray
Row = dict[str, str | float]

CASES = tuple(case for op in COMPOSITES if op.taps for case in op.cases)
HONEST = "honest, parted"
LOOKED_FOR = ("taps", "locate")


def measure_stages(seeds: Sequence[int] = (0,), cases: Sequence[CompositeCase] = CASES) -> list[Row]:
    """By dtype: the pairs of a forward mistake and a case that shows it, and where each of the two finds it."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        asked = [(case, seed) for seed in seeds for case in cases]
        counts = list(pool.map(found_in, *zip(*asked, strict=True)))
    return [
        _row(dtype, [count for (case, _), count in zip(asked, counts, strict=True) if case.dtype == dtype]) for dtype in DTYPES
    ]


def _row(dtype: str, counts: Iterable[Counter[str]]) -> Row:
    total = sum(counts, Counter[str]())
    row: Row = {"dtype": dtype, "pairs": str(total["pairs"])}
    for by in LOOKED_FOR:
        row |= {f"{by}: {where}": str(total[f"{by}: {where}"]) for where in ("its stage", "another", "nowhere")}
    return row | {HONEST: str(total[HONEST])}


def found_in(case: CompositeCase, seed: int, mistakes: Sequence[Mistake] = MISTAKES) -> Counter[str]:
    """How often the mistakes that a case shows are found at their stage, at another, or nowhere."""
    made, true = golden(case, seed), cast(Composite, lay_open(case, seed)).program
    counts = Counter[str]()
    honest = play(case, seed, STYLES[0])
    counts[HONEST] += not (
        compare("played", made, honest, tuple(case.outputs)).status == "pass" and _located(made, honest, true).agrees
    )
    for mistake in mistakes:
        stages = altered_taps(true, mistake.altered(case, seed).program) if mistake.can_be_made_in(case.op) else []
        if not stages:
            continue
        played = play(case, seed, STYLES[0], mistake)
        verdict = compare("played", made, played, tuple(case.outputs))
        if verdict.status != "fail":
            continue
        location = _located(made, played, true)
        tap, activation = verdict.parts_at, location.parting or location.broken
        names = (tap.output.removeprefix(TAP) if tap else "", activation.name if activation else "")
        counts["pairs"] += 1
        for by, name in zip(LOOKED_FOR, names, strict=True):
            counts[f"{by}: {'its stage' if name in stages else 'another' if name else 'nowhere'}"] += 1
    return counts


def _located(made: Golden, played: Mapping[str, Array], program: Program) -> Location:
    """Where the played activations part from the golden's."""
    case = cast(CompositeCase, made.case)
    activations = {name.removeprefix(TAP): value for name, value in played.items() if name.startswith(TAP)}
    return locate(made.intermediates, activations, tap_names(program), case.dtype, case.position + case.past + case.s)
