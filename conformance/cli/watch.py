"""What a run shows while it goes on: the matrix as it fills, each cause as soon as it is found, and what takes long."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from threading import get_ident

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from conformance.cli.screen import Advance, progress
from conformance.judging.compare import Verdict
from conformance.judging.diagnosis import Diagnosis
from conformance.numbers.rounding import DTYPES
from conformance.ops.table import OPS
from conformance.question.case import Case
from conformance.report.counting import count_of
from conformance.report.diagnosing import Diagnosing
from conformance.running.shard import program

SLOW = 10.0  # seconds that a program takes which is named
SLOWEST = 3  # programs that are named

Take = Callable[[Verdict], None]
Place = tuple[str, str, str]
"""A port, an op and a dtype."""


class Watch:
    """What has become of a run so far. It is told from the threads of the ports, and from that of the diagnosis."""

    def __init__(self, ports: Sequence[str], cases: Sequence[Case], console: Console) -> None:
        self._ports, self._console = ports, console
        self._asked = Counter((case.op, case.dtype) for case in cases)
        self._judged, self._failed = Counter[Place](), Counter[Place]()
        self._last: dict[int, float] = {}  # when a thread had its last verdict
        self._took: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._began = time.monotonic()
        self.over = False

    def verdict(self, verdict: Verdict) -> None:
        """Count a verdict, and the time since the last one of its thread, which compiling is part of."""
        place = verdict.port, verdict.case.op, verdict.case.dtype
        self._judged[place] += 1
        self._failed[place] += verdict.failed
        now = time.monotonic()
        self._took[verdict.port, program(verdict.case)[0]] += now - self._last.get(get_ident(), self._began)
        self._last[get_ident()] = now

    def cause(self, port: str, op: str, diagnosis: Diagnosis) -> None:
        """Say what was found in one op; once the run is over, the report says it."""
        if port in self._ports and not self.over:
            seen = count_of(len(diagnosis.explained), "case")
            said = f"{time.monotonic() - self._began:.0f} s: {port}: {op}: {diagnosis.mistake.sentence} ({seen})"
            self._console.print(Text(said, style="red"), soft_wrap=True)

    def slowest(self) -> str:
        """The programs that took longest, in words; empty if none took long. Each is compiled once, where a port compiles."""
        slowest = sorted(self._took.items(), key=lambda item: item[1], reverse=True)[:SLOWEST]
        return ", ".join(f"{port} {name} {seconds:.0f} s" for (port, name), seconds in slowest if seconds >= SLOW)

    def __rich__(self) -> RenderableType:
        """The matrix so far: judged of asked, red where some have failed."""
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in ("port", "op", *DTYPES):
            table.add_column(column, no_wrap=True)
        for port in self._ports:
            for op in OPS:
                if any(self._asked[op, dtype] for dtype in DTYPES):
                    table.add_row(port, op, *(self._cell(port, op, dtype) for dtype in DTYPES))
        return Group(table, Text(f"judged/asked so far, after {time.monotonic() - self._began:.0f} s", style="dim"))

    def _cell(self, port: str, op: str, dtype: str) -> Text:
        asked, judged = self._asked[op, dtype], self._judged[port, op, dtype]
        if not asked:
            return Text("-", style="dim")
        style = "red" if self._failed[port, op, dtype] else "green" if judged == asked else "dim"
        return Text(f"{judged}/{asked}", style=style)


@contextmanager
def watched(ports: Sequence[str], cases: Sequence[Case], seed: int, *, quiet: bool) -> Generator[tuple[Take, Diagnosing]]:
    """What takes each verdict of a run, and the diagnosis beside it, while these ports are watched; none is, if `quiet`.

    On a terminal the matrix is drawn as it fills. Elsewhere there is a line from time to time.
    """
    ports = [] if quiet else ports
    console = Console(stderr=True)
    watch = Watch(ports, cases, console)
    diagnosing = Diagnosing(cases, seed, watch.cause)
    with _shown(watch, ports, len(cases), console) as advance:

        def take(verdict: Verdict) -> None:
            watch.verdict(verdict)
            diagnosing.add(verdict)
            advance(verdict.port, failed=verdict.failed)

        yield take, diagnosing
        watch.over = True
    if ports and (slowest := watch.slowest()):
        console.print(Text(f"took longest: {slowest}", style="dim"), soft_wrap=True)


@contextmanager
def _shown(watch: Watch, ports: Sequence[str], count: int, console: Console) -> Generator[Advance]:
    if not (ports and console.is_terminal):
        with progress(ports, count, quiet=not ports) as advance:
            yield advance
        return
    with Live(watch, console=console, transient=True):
        yield lambda name, *, failed=False: None
