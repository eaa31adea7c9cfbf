"""Times on a terminal and as JSON. What does not conform is struck through, and compared with nothing."""

import json
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

import conformance
from conformance.port.launch import Launch
from conformance.report.report import CONFORMS, FAILS, NOT_RUN
from conformance.tools.speed.figures import Row, Timing

FORMAT = 1
WIDEST = 1000  # characters of a line of the table


@dataclass(frozen=True)
class SpeedReport:
    """The rows of all ports, and what they were asked with."""

    rows: tuple[Row, ...]
    launches: tuple[Launch, ...]
    seed: int
    seconds: float

    @property
    def exit_status(self) -> int:
        """Of the port, not of the one it is compared with: 0 it conforms; 1 it does not, or a figure is an error; 3 no time."""
        rows = [row for row in self.rows if row.port == self.launches[0].spec]
        if any(row.faults or (row.timing and row.timing.errors) for row in rows):
            return FAILS
        return CONFORMS if any(row.timing for row in rows) else NOT_RUN


def show(report: SpeedReport, console: Console) -> None:
    """Print the report."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    heads = ("port", "op", "dtype", "shape", "pass", "ms", "quartiles", "CPU ms", "GB/s", "of a copy")
    for head in (*heads, *(f"time / {launch.spec}" for launch in report.launches[1:])):
        table.add_column(head, no_wrap=True)
    for row in report.rows:
        if row.timing:
            table.add_row(*_cells(row, row.timing))
    # As wide as it is: a figure that is cut off is another figure.
    table.width = table.__rich_measure__(console, console.options.update(width=WIDEST)).maximum
    console.print(table, crop=False)
    for row in report.rows:
        for of, words in _remarks(row):
            console.print(Text.assemble((of, "bold"), words), soft_wrap=True)
    style, words = {
        CONFORMS: ("bold green", "conforms in all that was timed"),
        FAILS: ("bold red", "has figures that do not count: they are struck through"),
        NOT_RUN: ("bold red", "was not timed"),
    }[report.exit_status]
    console.print(Text.assemble((f"{report.launches[0].spec} {words}", style), f": {report.seconds:.1f} s, seed {report.seed}"))


def _cells(row: Row, timing: Timing) -> list[Text]:
    """A row of the table; its figures are struck through, in plain text as well, where they count for nothing."""
    seconds = timing.seconds
    figures = (
        _ms(seconds.median),
        f"{_ms(seconds.lower)}-{_ms(seconds.upper)}",
        _ms(timing.cpu_seconds.median),
        f"{timing.bytes_per_second / 1e9:.3g}",
        f"{timing.of_copy:.2f}",
    )
    ratio = f"{row.ratio.median:.2f} ({row.ratio.lower:.2f}-{row.ratio.upper:.2f})" if row.ratio else ""
    names = [Text(text) for text in (row.port, row.case.op, row.case.dtype, "x".join(map(str, row.case.shape)), row.part)]
    return [*names, *(Text(each) if row.counts else Text(f"~~{each}~~", "strike red") for each in figures), Text(ratio)]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _remarks(row: Row) -> list[tuple[str, str]]:
    """Why figures are struck through, or there are none: of which row, and why."""
    where = f"{row.port} {row.case.op} {row.case.dtype} {row.part}"
    said = [(f"{where} does not conform: ", fault) for fault in row.faults]
    if row.timing:
        said += [(f"{where}, error: ", error) for error in row.timing.errors]
    elif row.reason:
        said.append((f"{where} is not timed: ", row.reason))
    return said


def as_json(report: SpeedReport) -> str:
    """Every row, as one JSON object; times in seconds."""
    document = {
        "format": FORMAT,
        "conformance": conformance.__version__,
        "exit_status": report.exit_status,
        "seed": report.seed,
        "device": report.launches[0].device,
        "mode": report.launches[0].mode,
        "seconds": round(report.seconds, 3),
        "ports": [launch.spec for launch in report.launches],
        "rows": [
            {
                "port": row.port,
                "case": row.case.id,
                "shape": list(row.case.shape),
                "pass": row.part,
                "conforms": not row.faults,
                "faults": list(row.faults),
                "reason": row.reason,
                "timing": asdict(row.timing) if row.timing else None,
                "ratio": asdict(row.ratio) if row.ratio else None,
            }
            for row in report.rows
        ],
    }
    return json.dumps(document, indent=1) + "\n"
