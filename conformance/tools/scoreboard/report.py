"""A scoreboard as Markdown, as one self-contained HTML file, and as JSON, from which it can be rendered again."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conformance.numbers import json_text
from conformance.numbers.rounding import DTYPES
from conformance.ops.table import OPS
from conformance.report.html import environment
from conformance.report.machine import by_lines
from conformance.report.words import ratio
from conformance.tools.scoreboard.scoreboard import DIRECTIONS, Row, Score, Scoreboard, ScoreboardError
from conformance.tools.scoreboard.trend import Change

FORMAT = 1
INTRODUCTION = (
    "Every implementation is tested as it ships. A cell counts the cases whose numbers all lie within their intervals, of "
    "those judged, and gives the worst error, in tolerances (at most 1 passes). A known failure, with its reason, is still a "
    "failure here."
)


def as_json(board: Scoreboard) -> str:
    """The scoreboard as one JSON object, a row a line; numbers that JSON lacks become strings."""
    return by_lines({"format": FORMAT} | asdict(board))


def read_json(path: Path) -> Scoreboard:
    """The scoreboard that `as_json` wrote. Raises `ScoreboardError`."""
    try:
        data: dict[str, Any] = json_text.parse(path.read_bytes())
        if data.pop("format") != FORMAT:
            raise ScoreboardError(f"{path}: not of format {FORMAT}; run `conformance scoreboard` again")
        fields: dict[str, Any] = data | {"rows": tuple(_row(row) for row in data["rows"])}
        return Scoreboard(**fields)
    except OSError as error:
        raise ScoreboardError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ScoreboardError):
            raise
        raise ScoreboardError(f"{path}: not a scoreboard: {error}") from None


def kept(folder: Path) -> list[Scoreboard]:
    """The runs of a folder, a JSON file each, the oldest first. Raises `ScoreboardError`."""
    return sorted((read_json(path) for path in folder.glob("*.json")), key=lambda board: board.date)


def _row(data: dict[str, Any]) -> Row:
    scores = tuple(Score(**score | {"ratio": float(score["ratio"])}) for score in data["scores"])
    dialects = {op: tuple(names) for op, names in data["dialects"].items()}
    fields: dict[str, Any] = data | {"scores": scores, "dialects": dialects}
    return Row(**fields)


def as_markdown(board: Scoreboard, changes: Iterable[Change] = ()) -> str:
    """One table for all, what changed between versions, then a section for each implementation."""
    lines = [
        "# Scoreboard",
        "",
        INTRODUCTION,
        "",
        board.made,
        "",
        "Forward, then gradients; cases that conform of those judged.",
        "",
    ]
    ops = _ops(board)
    lines += _table(["", *ops], [[_link(row), *(_total(row, op) for op in ops)] for row in board.rows if not row.absent])
    lines += ["", "✓ all conform · ✗ some do not · — not asked, or it has none"]
    absent = [[_cell(row.title), _cell(row.absent)] for row in board.rows if row.absent]
    lines += ["", "**Not at hand**", "", *_table(["", "why"], absent)] if absent else []
    lines += ["", "## What changed", "", *_changed(list(changes))]
    for row in board.rows:
        lines += _section(row) if not row.absent else []
    return "\n".join(lines) + "\n"


def _changed(changes: list[Change]) -> list[str]:
    body = [[change.date, _cell(change.title), change.versions, _cell(change.summary)] for change in changes]
    if not body:
        return ["Between the runs that are kept no library's version did."]
    return _table(["run of", "", "versions", "what conforms of what was judged"], body)


def _section(row: Row) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(row.versions.items()))
    lines = ["", f"## {row.title}", "", f"`conformance run {row.argument} --mode {row.mode}` {versions}".rstrip(), ""]
    lines += [f"- {op} follows {' · '.join(names)}" for op, names in row.dialects.items()]
    lines += [""] if row.dialects else []
    found = {(score.op, score.dtype, score.direction): score for score in row.scores}
    dtypes = [dtype for dtype in DTYPES if any(score.dtype == dtype for score in row.scores)]
    body = [
        [f"{op}, {direction}", *(_short(found.get((op, dtype, direction))) for dtype in dtypes)]
        for op in OPS
        for direction in DIRECTIONS
        if any((op, dtype, direction) in found for dtype in dtypes)
    ]
    lines += _table(["", *dtypes], body)
    why = [[_where(score), _cell(_why(score))] for score in row.scores if not score.conforms]
    lines += ["", *_table(["does not conform", "why (cases)"], _merged(why))] if why else []
    reasons = "; ".join(f"{reason} ({count})" for reason, count in sorted(row.not_asked.items()))
    return lines + ([f"\nNot asked: {_cell(reasons)}."] if reasons else [])


def _merged(pairs: list[list[str]]) -> list[list[str]]:
    """The places that share a reason as one line."""
    by_why: dict[str, list[str]] = {}
    for where, why in pairs:
        by_why.setdefault(why, []).append(where)
    return [[", ".join(places), why] for why, places in by_why.items()]


def _total(row: Row, op: str) -> str:
    totals = [[score for score in row.scores if score.op == op and score.direction == direction] for direction in DIRECTIONS]
    words = []
    for scores in totals:
        passed, judged = sum(score.passed for score in scores), sum(score.judged for score in scores)
        words.append(f"{'✓' if passed == judged else '✗'} {passed}/{judged}" if judged else "—")
    return "—" if words == ["—", "—"] else " · ".join(words)


def _short(score: Score | None) -> str:
    if score is None:
        return "—"
    return f"{'✓' if score.conforms else '✗'} {score.passed}/{score.judged}, {ratio(score.ratio)}"


def _why(score: Score) -> str:
    return "; ".join(f"{reason} ({count})" for reason, count in score.reasons.items())


def _where(score: Score) -> str:
    return f"{score.op} {score.dtype} {score.direction}"


def _link(row: Row) -> str:
    kept = "".join(c for c in row.title.lower() if c.isalnum() or c in " -_")
    return f"[{_cell(row.title)}](#{kept.replace(' ', '-')})"


def _cell(text: str) -> str:
    """A text that stays in its cell and is no markup."""
    flat = " ".join(text.split())
    return "".join(f"\\{c}" if c in "|*_<>`[]" else c for c in flat)


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def as_html(board: Scoreboard, changes: Iterable[Change] = ()) -> str:
    """The page: the same tables, and a section for each implementation with every score."""
    return (
        environment()
        .get_template("scoreboard.html")
        .render(
            board=board,
            changes=list(changes),
            introduction=INTRODUCTION,
            ops=_ops(board),
            total=_total,
            short=_short,
            why=_why,
            mood=_mood,
        )
    )


def _ops(board: Scoreboard) -> list[str]:
    return [op for op in OPS if any(score.op == op for row in board.rows for score in row.scores)]


def _mood(text: str) -> str:
    """How a cell looks: good, bad, or none where nothing was judged."""
    return "bad" if "✗" in text else "good" if "✓" in text else "none"
