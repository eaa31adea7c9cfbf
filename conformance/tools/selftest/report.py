"""The self-test on a terminal and as a page: what is seen where, and how much room lies between right and wrong."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.mistakes import MISTAKES
from conformance.numbers.rounding import DTYPES
from conformance.ops.norms.cases import NORMS
from conformance.ops.table import OPS
from conformance.report.counting import count_of
from conformance.report.words import ratio
from conformance.tools.selftest.selftest import PLAIN, PLAIN_IN_A_BLOCK, SEPARATION, Kill, SelfTest, Separation


def show_self_test(result: SelfTest, console: Console) -> None:
    """Print the kill matrix in numbers, whatever is wrong with it, and the separations."""
    console.print(_matrix(result))
    console.print(
        Text(
            "mistakes seen, and seen by taps alone / made; the rest is hidden there, for a reason that `explain ID` gives",
            style="dim",
        )
    )
    for kill in result.wrong:
        console.print(Text(f"{kill.mistake} in {kill.op} {kill.dtype}: {_wrong(kill)}", style="red"))
    console.print()
    console.print(_separations(result))
    style, verdict = ("bold green", "sound") if result.passes else ("bold red", "not sound")
    misses = sum(not kill.seen and not kill.reason for kill in result.wrong)
    least = min((separation.factor for separation in result.separations if separation.op in NORMS), default=float("inf"))
    console.print()
    console.print(
        Text.assemble(
            (verdict, style),
            f": {count_of(misses, 'miss', 'misses')}, least separation of a norm {ratio(least)} (at least {SEPARATION:g})",
        )
    )


def page(result: SelfTest) -> str:
    """The whole kill matrix in Markdown."""
    lines = [
        "# The kill matrix",
        "",
        "Written by `conformance selftest --page`. Every mistake of the catalogue is made exactly and judged by the suite:",
        f"the error ratio (in tolerances; at most 1 passes) where it is largest, or first at least {PLAIN:g}.",
        "",
        f"Of a composite op {PLAIN_IN_A_BLOCK:g} is plain. A block has two ratios, that of its outputs and that of its",
        "intermediates where a port exports them, each judged on what the port itself fed to it; `-` is at most 1.",
        "",
        "## Separation",
        "",
        "Between the largest ratio of honest arithmetic (four orders of summation, every admitted placement of roundings)",
        "and the weakest mistake that an output shows more plainly than any other. The outputs of a composite op are taken",
        "together; of its taps, the mistakes count that only they show.",
        "",
        "| op | dtype | output | honest | weakest mistake | its ratio | separation |",
        "|---|---|---|---:|---|---:|---:|",
        *(f"| {' | '.join(_separation(separation))} |" for separation in result.separations),
        "",
    ]
    for op in OPS:
        kills = {(kill.mistake, kill.dtype): kill for kill in result.kills if kill.op == op}
        lines += [f"## {op}", "", f"| mistake | {' | '.join(DTYPES)} |", f"|---|{'---:|' * len(DTYPES)}"]
        for mistake in MISTAKES:
            if op in mistake.ops:
                cell = _cell_of_block if OPS[op].taps else _cell
                cells = " | ".join(cell(kills[mistake.id, dtype]) if (mistake.id, dtype) in kills else "" for dtype in DTYPES)
                lines.append(f"| `{mistake.id}` | {cells} |")
        lines.append("")
    hidden = [kill for kill in result.kills if kill.reason]
    lines += ["## Hidden, and why", "", "| mistake | op | dtype | reason |", "|---|---|---|---|"]
    lines += [f"| `{kill.mistake}` | {kill.op} | {kill.dtype} | {kill.reason} |" for kill in hidden]
    alone = [kill for kill in result.kills if kill.needs_taps]
    lines += ["", "## Seen by taps alone, and why", "", "| mistake | op | dtype | reason |", "|---|---|---|---|"]
    lines += [f"| `{kill.mistake}` | {kill.op} | {kill.dtype} | {kill.needs_taps} |" for kill in alone]
    return "\n".join(lines) + "\n"


def _matrix(result: SelfTest) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("op")
    for dtype in DTYPES:
        table.add_column(dtype)
    for op in OPS:
        cells: list[Text] = []
        for dtype in DTYPES:
            kills = [kill for kill in result.kills if (kill.op, kill.dtype) == (op, dtype)]
            style = "green" if all(kill.right for kill in kills) else "red"
            seen, alone = sum(kill.seen for kill in kills), sum(not kill.seen and kill.taps > 1 for kill in kills)
            cells.append(Text(f"{seen} + {alone}/{len(kills)}" if alone else f"{seen}/{len(kills)}", style=style))
        table.add_row(op, *cells)
    return table


def _separations(result: SelfTest) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("op", "dtype", "output", "honest", "weakest mistake", "its ratio", "separation"):
        table.add_column(name)
    for separation in result.separations:
        style = "" if separation.wide else "red"
        table.add_row(*_separation(separation), style=style)
    return table


def _separation(separation: Separation) -> tuple[str, ...]:
    weakest = (separation.weakest.mistake, ratio(separation.ratio)) if separation.weakest else ("none", "-")
    return separation.op, separation.dtype, separation.output, f"{separation.honest:.2f}", *weakest, ratio(separation.factor)


def _cell(kill: Kill) -> str:
    return ratio(kill.ratio) if kill.seen else "hidden" if kill.reason else "**missed**"


def _cell_of_block(kill: Kill) -> str:
    if not kill.right or kill.reason:
        return "hidden" if kill.right else "**missed**" if not kill.seen else "**seen**"
    return f"{ratio(kill.ratio) if kill.seen else '-'} / {ratio(kill.taps) if kill.taps > 1 else '-'}"


def _wrong(kill: Kill) -> str:
    if kill.seen and kill.needs_taps:
        return (
            f"said to need taps ({kill.needs_taps}), but {kill.case} shows it: {ratio(kill.ratio)} tolerances in {kill.output}"
        )
    if kill.taps > 1 and kill.reason:
        return f"said to be hidden ({kill.reason}), but a tap shows it: {ratio(kill.taps)} tolerances"
    if kill.taps > 1:
        return f"missed by all outputs, though a tap shows it: {ratio(kill.taps)} tolerances"
    if kill.seen:
        return f"said to be hidden ({kill.reason}), but {kill.case} shows it: {ratio(kill.ratio)} tolerances in {kill.output}"
    return "missed: no case rejects it"
