"""The self-test on a terminal and as a page: what is seen where, and how much room lies between right and wrong."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.case import OPS
from conformance.mistakes import MISTAKES
from conformance.report.console import ratio
from conformance.rounding import DTYPES
from conformance.selftest import PLAIN, SEPARATION, Kill, SelfTest, Separation


def show_self_test(result: SelfTest, console: Console) -> None:
    """Print the kill matrix in numbers, whatever is wrong with it, and the separations."""
    console.print(_matrix(result))
    console.print(
        Text("mistakes seen / made; the rest is hidden there, each for a reason that `explain ID` gives", style="dim")
    )
    for kill in result.wrong:
        console.print(Text(f"{kill.mistake} in {kill.op} {kill.dtype}: {_wrong(kill)}", style="red"))
    console.print()
    console.print(_separations(result))
    style, verdict = ("bold green", "sound") if result.passes else ("bold red", "not sound")
    misses = sum(not kill.seen for kill in result.wrong)
    least = min(separation.factor for separation in result.separations)
    console.print()
    console.print(
        Text.assemble((verdict, style), f": {misses} misses, least separation {ratio(least)} (at least {SEPARATION:g})")
    )


def page(result: SelfTest) -> str:
    """The whole kill matrix in Markdown."""
    lines = [
        "# The kill matrix",
        "",
        "Written by `conformance selftest --page`. Every mistake of the catalogue is made exactly and judged by the suite:",
        f"the error ratio (in tolerances; at most 1 passes) where it is largest, or first at least {PLAIN:g}.",
        "",
        "## Separation",
        "",
        "Between the largest ratio of honest arithmetic (four orders of summation, every admitted placement of roundings)",
        "and the weakest mistake that an output shows more plainly than any other.",
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
                cells = " | ".join(_cell(kills[mistake.id, dtype]) for dtype in DTYPES)
                lines.append(f"| `{mistake.id}` | {cells} |")
        lines.append("")
    hidden = [kill for kill in result.kills if kill.reason]
    lines += ["## Hidden, and why", "", "| mistake | op | dtype | reason |", "|---|---|---|---|"]
    lines += [f"| `{kill.mistake}` | {kill.op} | {kill.dtype} | {kill.reason} |" for kill in hidden]
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
            cells.append(Text(f"{sum(kill.seen for kill in kills)}/{len(kills)}", style=style))
        table.add_row(op, *cells)
    return table


def _separations(result: SelfTest) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("op", "dtype", "output", "honest", "weakest mistake", "its ratio", "separation"):
        table.add_column(name)
    for separation in result.separations:
        style = "" if separation.factor >= SEPARATION else "red"
        table.add_row(*_separation(separation), style=style)
    return table


def _separation(separation: Separation) -> tuple[str, ...]:
    weakest = (separation.weakest.mistake, ratio(separation.weakest.ratio)) if separation.weakest else ("none", "-")
    return separation.op, separation.dtype, separation.output, f"{separation.honest:.2f}", *weakest, ratio(separation.factor)


def _cell(kill: Kill) -> str:
    return ratio(kill.ratio) if kill.seen else "hidden" if kill.reason else "**missed**"


def _wrong(kill: Kill) -> str:
    if kill.seen:
        return f"said to be hidden ({kill.reason}), but {kill.case} shows it: {ratio(kill.ratio)} tolerances in {kill.output}"
    return "missed: no case rejects it"
