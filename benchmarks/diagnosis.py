"""How reliably a mistake is named.

Every mistake of the catalogue, made in float32 arithmetic, is put before the diagnosis; and faults as people write them.
The tables of docs/diagnosis.md are made of the figures that were kept last. All trials take hours: each is a line of a file
as soon as it is done, and one that the file has is not run again.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.equivalence import equivalent
from conformance.judging.compare import compare
from conformance.judging.diagnose import diagnose
from conformance.judging.simulation import STYLES, play
from conformance.mistakes import MISTAKES
from conformance.numbers.rounding import DTYPES, DType
from conformance.ops.golden import golden
from conformance.ops.norms.cases import ROW_NORMS, RowNormOp
from conformance.tools.selftest.selftest import TRIED

RESULTS = Path(__file__).parent.parent / "results"
BY_ID = {mistake.id: mistake for mistake in MISTAKES}
Row = dict[str, str | float]
Trial = tuple[str, RowNormOp, DType, int]
"""A mistake, an op, a dtype, and the style in which it is made."""
T = TypeVar("T")
Outcome = tuple[Trial, str, str]
"""A trial; `itself`, `equivalent`, `another` or `none`; and the mistake that was named."""
WrittenOutcome = tuple[str, str, DType, str, str]
"""A set of written faults, a fault, a dtype, what became of it, and the mistake that was named first."""


def measure_diagnosis(
    dtypes: tuple[DType, ...] = DTYPES, every: int = 1, done: Path | None = None
) -> Iterator[tuple[str, list[Row]]]:
    """Tables by name: the shares named right of the catalogue and of written faults, and every trial that was not.

    `every` takes one trial in so many, by lot. `done` is the file of those that are done; it is made if there is none.
    """
    trials = [
        (mistake.id, op, dtype, (number + DTYPES.index(dtype) + ROW_NORMS.index(op)) % len(STYLES))
        for number, mistake in enumerate(MISTAKES)
        for op in ROW_NORMS
        if op in mistake.ops
        for dtype in dtypes
        if not mistake.hidden_in(op, dtype)
    ]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        outcomes = outcomes_of(pool, outcome, _drawn(trials, every), done)
        written = outcomes_of(pool, written_outcome, _drawn(_written(dtypes), every), done)
    yield "diagnosis", [_share(op, dtype, outcomes) for op in ROW_NORMS for dtype in dtypes]
    yield "diagnosis-written", list(_shares(written))
    others = [
        {"made": made, "op": op, "dtype": dtype, "style": float(style), "named": named, "which is": kind}
        for (made, op, dtype, style), kind, named in outcomes
        if kind != "itself"
    ]
    others += [
        {"made": made, "op": set_, "dtype": dtype, "style": "written", "named": named, "which is": kind}
        for set_, made, dtype, kind, named in written
        if kind in ("misnamed", "unnamed")
    ]
    if others:
        yield "diagnosis-others", others


def _drawn(trials: list[T], every: int) -> list[T]:
    """One trial in so many, drawn by lot, so that no order of theirs chooses; always the same ones."""
    return trials if every == 1 else random.Random(every).sample(trials, max(1, len(trials) // every))


def outcomes_of(pool: Executor, ask: Callable[..., T], trials: Sequence[tuple[Any, ...]], done: Path | None) -> list[T]:
    """What becomes of every trial, in their order; those of the file as they stand there."""
    lines = done.read_text().splitlines() if done and done.exists() else []
    known = {tuple(trial): outcome for trial, outcome in map(json.loads, lines)}
    running = {pool.submit(ask, *trial): trial for trial in trials if trial not in known}
    for ended in as_completed(running):
        known[running[ended]] = ended.result()
        if done:
            with done.open("a") as file:
                file.write(json.dumps([running[ended], ended.result()]) + "\n")
    return [known[trial] for trial in trials]


def outcome(id_: str, op: RowNormOp, dtype: DType, style: int) -> Outcome:
    """What the diagnosis names first for a port that makes a mistake, in every case of an op and a dtype."""
    trial = id_, op, dtype, style
    made = BY_ID[id_]
    verdicts = [
        compare("port", golden(case), play(case, 0, STYLES[style], made), tuple(case.outputs))
        for case in TRIED
        if (case.op, case.dtype) == (op, dtype)
    ]
    named = next((diagnosis.mistake for diagnosis in diagnose(tuple(verdicts), 0)), None)
    if named is None:
        return trial, "none", ""
    kind = "itself" if named is made else "equivalent" if equivalent(named, made, op, dtype) else "another"
    return trial, kind, named.id


def _written(dtypes: Iterable[DType]) -> list[tuple[str, str, DType]]:
    """Every written fault as its set and its id, in every dtype; what it imports, other processes import again."""
    from tests.judge.written import SETS, faults_of

    return [(set_, fault.id, dtype) for set_ in SETS for fault in faults_of(set_) for dtype in dtypes if dtype in fault.dtypes]


def written_outcome(set_: str, id_: str, dtype: DType) -> WrittenOutcome:
    """What the diagnosis names first for a written fault."""
    from tests.judge.written import faults_of
    from tests.judge.written.scoring import scored

    fault = next(fault for fault in faults_of(set_) if fault.id == id_)
    kind, diagnoses = scored(fault, dtype)
    return set_, id_, dtype, kind, diagnoses[0].mistake.id if diagnoses else ""


def page_tables(folder: Path = RESULTS) -> str:
    """The tables of docs/diagnosis.md, from the figures in a folder: of the catalogue by op, of written faults by set."""
    catalogue = _rows(folder / "diagnosis.json")
    written = _rows(folder / "diagnosis-written.json")
    ops, sets = (dict.fromkeys(row[key] for row in rows) for key, rows in (("op", catalogue), ("set", written)))
    made = ("made", "itself", "equivalent", "another", "none")
    seen = ("seen", "right", "equivalent", "unnamed", "misnamed", "without a name")
    return "\n\n".join(
        [
            _table(("of the catalogue", *made), [(str(op), [row for row in catalogue if row["op"] == op]) for op in ops]),
            _table(
                ("as people write them", *seen), [(str(set_), [row for row in written if row["set"] == set_]) for set_ in sets]
            ),
        ]
    )


def _rows(file: Path) -> list[Row]:
    return json.loads(file.read_text())["rows"]


def _table(head: tuple[str, ...], groups: list[tuple[str, list[Row]]]) -> str:
    """A row for every group, with its figures added up, and one for all."""
    groups = [*groups, ("all", [row for _, rows in groups for row in rows])]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name, rows in groups:
        totals = [str(sum(int(row[column]) for row in rows)) for column in head[1:]]
        lines.append("| " + " | ".join([name.replace("_", " "), *totals]) + " |")
    return "\n".join(lines)


def _share(op: RowNormOp, dtype: DType, outcomes: list[Outcome]) -> Row:
    kinds = Counter(kind for (_, its_op, its_dtype, _), kind, _ in outcomes if (its_op, its_dtype) == (op, dtype))
    right = kinds["itself"] + kinds["equivalent"]
    counted = {kind: str(kinds[kind]) for kind in ("itself", "equivalent", "another", "none")}
    return {"op": op, "dtype": dtype, "made": str(kinds.total()), **counted, "right": f"{right / max(1, kinds.total()):.1%}"}


def _shares(written: Iterable[WrittenOutcome]) -> Iterator[Row]:
    """A row for every set and dtype; faults that no case of a dtype shows are left out."""
    kinds: dict[tuple[str, DType], Counter[str]] = {}
    for set_, _, dtype, kind, _ in written:
        kinds.setdefault((set_, dtype), Counter())[kind] += kind != "not seen"
    for (set_, dtype), counted in kinds.items():
        right, known = counted["right"] + counted["equivalent"], counted.total() - counted["without a name"]
        yield (
            {"set": set_, "dtype": dtype, "seen": str(counted.total())}
            | {kind: str(counted[kind]) for kind in ("right", "equivalent", "unnamed", "misnamed", "without a name")}
            | {"right of those known": f"{right / max(1, known):.1%}"}
        )
