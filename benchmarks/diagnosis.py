"""How reliably a mistake is named: every one of the catalogue, made in float32 arithmetic, is put before the diagnosis."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from conformance.compare import compare
from conformance.diagnose import diagnose
from conformance.golden import golden
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import Mistake
from conformance.norms.cases import ROW_NORMS, RowNormOp
from conformance.rounding import DTYPES, DType
from conformance.selftest import TRIED
from conformance.simulation import STYLES, play

BY_ID = {mistake.id: mistake for mistake in MISTAKES}
Trial = tuple[str, RowNormOp, DType, int]
Outcome = tuple[Trial, str, str]
"""A trial; `itself`, `equivalent`, `another` or `none`; and the mistake that was named."""


def measure_diagnosis(dtypes: tuple[DType, ...] = DTYPES) -> Iterator[tuple[str, list[dict[str, str | float]]]]:
    """Tables by name: the shares named right, and every trial that was not named as itself."""
    trials = [
        (mistake.id, op, dtype, (number + DTYPES.index(dtype) + ROW_NORMS.index(op)) % len(STYLES))
        for number, mistake in enumerate(MISTAKES)
        for op in ROW_NORMS
        if op in mistake.ops
        for dtype in dtypes
        if not mistake.hidden_in(op, dtype)
    ]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        outcomes = list(pool.map(outcome, trials))
    yield "diagnosis", [_share(op, dtype, outcomes) for op in ROW_NORMS for dtype in dtypes]
    others = [
        {"made": made, "op": op, "dtype": dtype, "style": float(style), "named": named, "which is": kind}
        for (made, op, dtype, style), kind, named in outcomes
        if kind != "itself"
    ]
    if others:
        yield "diagnosis-others", others


def outcome(trial: Trial) -> Outcome:
    """What the diagnosis names first for a port that makes a mistake, in every case of an op and a dtype."""
    id_, op, dtype, style = trial
    made = BY_ID[id_]
    verdicts = [
        compare("port", golden(case), play(case, 0, STYLES[style], made), tuple(case.outputs))
        for case in TRIED
        if (case.op, case.dtype) == (op, dtype)
    ]
    named = next((diagnosis.mistake for diagnosis in diagnose(tuple(verdicts), 0)), None)
    if named is None:
        return trial, "none", ""
    kind = "itself" if named is made else "equivalent" if _equivalent(named, made, op, dtype) else "another"
    return trial, kind, named.id


def _equivalent(one: Mistake, other: Mistake, op: RowNormOp, dtype: DType) -> bool:
    """Whether the two lead to the same numbers, up to noise, in every case of an op and a dtype."""
    for case in TRIED:
        if (case.op, case.dtype) == (op, dtype):
            ours, theirs = one.outputs(case), other.outputs(case)
            for name, expected in theirs.items():
                lower, upper = expected.interval()
                nearest = ours[name].nearest.astype(np.float64)
                admitted = (lower <= nearest) & (nearest <= upper) | np.isnan(nearest) & np.isnan(expected.value)
                if ours[name].dtype != expected.dtype or not admitted.all():
                    return False
    return True


def _share(op: RowNormOp, dtype: DType, outcomes: list[Outcome]) -> dict[str, str | float]:
    kinds = Counter(kind for (_, its_op, its_dtype, _), kind, _ in outcomes if (its_op, its_dtype) == (op, dtype))
    right = kinds["itself"] + kinds["equivalent"]
    counted = {kind: str(kinds[kind]) for kind in ("itself", "equivalent", "another", "none")}
    return {"op": op, "dtype": dtype, "made": str(kinds.total()), **counted, "right": f"{right / kinds.total():.1%}"}
