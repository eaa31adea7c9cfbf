"""Times on a terminal and as JSON. What does not conform is struck through, and compared with nothing."""

import json
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

import conformance
from conformance.port.launch import Launch
from conformance.report.report import CONFORMS, FAILS, NOT_RUN
from conformance.tools.speed.figures import Row, Spread

FORMAT = 1


@dataclass(frozen=True)
class SpeedReport:
    """The rows of all ports, and what they were asked with."""

    rows: tuple[Row, ...]
    launches: tuple[Launch, ...]
    seed: int
    seconds: float

    @property
    def exit_status(self) -> int:
        """0 all that was timed conforms; 1 something does not, or a figure is an error; 3 nothing was timed."""
        if not any(row.timing for row in self.rows):
            return NOT_RUN
        return FAILS if any(row.timing and not row.ranks for row in self.rows) else CONFORMS


def show(report: SpeedReport, console: Console) -> None:
    """Print the report."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    ports = list(dict.fromkeys(row.port for row in report.rows))
    heads = ("port", "op", "dtype", "shape", "pass", "ms", "quartiles", "CPU ms", "GB/s", "of a copy")
    for head in (*heads, *([f"time / {ports[1]}"] if len(ports) > 1 else [])):
        table.add_column(head, no_wrap=True)
    for row in report.rows:
        if row.timing:
            table.add_row(*_cells(row))
    console.print(table, soft_wrap=True)
    for line in dict.fromkeys(_remarks(report.rows)):
        console.print(line, soft_wrap=True)
    console.print(_conclusion(report))


def _cells(row: Row) -> list[Text]:
    """A row of the table; its figures are struck through, in signs as well, where they count for nothing."""
    timing = row.timing
    assert timing is not None
    shape = "x".join(map(str, row.case.shape))
    seconds, cpu = timing.seconds, timing.cpu_seconds
    quartiles = f"{_ms(seconds.lower)}-{_ms(seconds.upper)}"
    rate, share = f"{timing.gigabytes_per_second:.3g}", f"{timing.of_copy:.2f}"
    shown = [Text(text) for text in (row.port, row.case.op, row.case.dtype, shape, row.part)]
    for text in (_ms(seconds.median), quartiles, _ms(cpu.median), rate, share):
        shown.append(Text(text) if row.ranks else Text(f"~~{text}~~", style="strike red"))
    return [*shown, Text(_ratio(row.ratio))] if row.ratio else shown


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _ratio(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.lower:.2f}-{ratio.upper:.2f})"


def _remarks(rows: tuple[Row, ...]) -> list[Text]:
    """Why figures are struck through, or there are none."""
    said = list[Text]()
    for row in rows:
        where = f"{row.port} {row.case.op}/{row.case.dtype}"
        said += [Text.assemble((f"{where} does not conform: ", "bold"), (fault, "red")) for fault in row.faults]
        if row.timing:
            of = f"{where}, {row.part}, error: "
            said += [Text.assemble((of, "bold"), (error, "red")) for error in row.timing.errors]
        elif row.reason:
            said.append(Text.assemble((f"{where}, {row.part}: ", "bold"), f"not timed: {row.reason}"))
    return said


def _conclusion(report: SpeedReport) -> Text:
    style, words = {
        CONFORMS: ("bold green", "all that was timed conforms"),
        FAILS: ("bold red", "what is struck through does not count"),
        NOT_RUN: ("bold red", "nothing was timed"),
    }[report.exit_status]
    return Text.assemble((words, style), f": {sum(row.ranks for row in report.rows)} figures in {report.seconds:.1f} s")


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
