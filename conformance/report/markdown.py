"""The report as Markdown, for a job's page in continuous integration."""

import re

from conformance.port.session import NOT_ASKED
from conformance.report import words
from conformance.report.counting import count_of
from conformance.report.remarks import collectives, overwriting
from conformance.report.report import CONFORMS, Cell, Report

LIMIT = 900_000  # bytes; GitHub takes a summary of at most 1 MiB: https://docs.github.com/actions/reference/workflow-commands
LONGEST = 20_000  # characters of one cause, or of all that is skipped
SPECIAL = re.compile(r"[&<>|*_`~\[\]\\#@:]")  # what Markdown, its HTML or GitHub's links might read as something else


def as_markdown(report: Report) -> str:
    """The conclusion, the matrix, then every cause with the command that repeats it, as many as there is room for."""
    verdict, because = words.conclusion(report)
    mark = "✅" if report.exit_status == CONFORMS else "❌"
    lines = [f"## {mark} {verdict[0].upper()}{verdict[1:]}", "", _escaped(because), ""]
    for port in report.ports:
        if port.failure:
            lines += [f"**{_escaped(port.port)}** could not be run: {_escaped(port.failure[:LONGEST])}", ""]
    lines += [*_matrix(report), *_reasons(report)]
    blocks = ["\n".join(lines), *(_cause(report, place) for place in range(len(report.causes)))]
    size, shown = 0, list[str]()
    for block in blocks:
        size += len(block.encode()) + 1
        if size > LIMIT:
            shown.append(f"… and {count_of(len(blocks) - len(shown), 'more cause')}.")
            break
        shown.append(block)
    return "\n".join(shown).rstrip() + "\n"


def _matrix(report: Report) -> list[str]:
    if not report.matrix:
        return []
    dtypes = words.columns(report)
    lines = [f"| port | op | {' | '.join(dtypes)} |", f"|---|---|{'---:|' * len(dtypes)}"]
    for (port, op), cells in words.rows(report).items():
        lines.append(f"| {_escaped(port)} | {_escaped(op)} | {' | '.join(_cell(cells.get(dtype)) for dtype in dtypes)} |")
    return [*lines, "", f"{_escaped(words.CAPTION)}", ""]


def _cell(cell: Cell | None) -> str:
    """A cell in bold where something in it is wrong."""
    if cell is None:
        return "-"
    return words.cell(cell) if cell.conforms else f"**{words.cell(cell)}**"


def _reasons(report: Report) -> list[str]:
    lines: list[str] = []
    for what, ports in (("skipped", report.reasons("skip")), ("as expected", report.reasons("expected"))):
        for port, reasons in ports.items():
            counted = ", ".join(f"{reason} ({count})" for reason, count in words.in_short(reasons))
            lines += [f"{_escaped(port)} {what} {sum(reasons.values())}: {_escaped(counted[:LONGEST])}", ""]
    for port, names in overwriting(report):
        lines += [f"{_escaped(port)} overwrites {_escaped(names)}, by declaration", ""]
    for remark in collectives(report):
        lines += [_escaped(remark), ""]
    return lines


def _cause(report: Report, place: int) -> str:
    cause = report.causes[place]
    said = [f"{label:<11} {text}" for label, text in words.details(report, cause) if label != "reproduce"]
    lines = [f"### {_escaped(cause.port)}: {_escaped(cause.what[:LONGEST])}", "", _escaped(words.extent(cause)), ""]
    lines += [_fenced("\n".join(said)[:LONGEST], "text"), ""]
    language = "" if cause.reproduces is False else "sh"
    lines += [_fenced(words.reproduction(cause), language), ""] if cause.what != NOT_ASKED else []
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text that is read as it stands, on one line."""
    return SPECIAL.sub(lambda match: f"&#{ord(match[0])};", " ".join(text.split()))


def _fenced(text: str, language: str) -> str:
    """Text as it stands, between fences that are longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
