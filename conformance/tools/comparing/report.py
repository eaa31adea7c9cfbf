"""Two ports compared, on a terminal and as JSON."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

import conformance
from conformance.numbers.rounding import DTYPES
from conformance.ops.table import OPS
from conformance.port.launch import Launch
from conformance.report.counting import count_of
from conformance.report.machine import finite
from conformance.report.report import CONFORMS, FAILS, NOT_RUN
from conformance.running.runner import PortRun
from conformance.tools.comparing.comparing import CasePair, OutputPair, Side, worst

FORMAT = 1
SIDES: tuple[Side, ...] = ("both", "a", "b", "neither")


@dataclass(frozen=True)
class Comparison:
    """Both ports, how they were started, and what became of every case in the two."""

    launches: tuple[Launch, Launch]
    runs: tuple[PortRun, PortRun]
    pairs: tuple[CasePair, ...]
    seed: int

    @property
    def compared(self) -> tuple[CasePair, ...]:
        """The cases for which both returned something."""
        return tuple(pair for pair in self.pairs if pair.outputs)

    @property
    def exit_status(self) -> int:
        """0 the same bits wherever both answered; 1 other bits somewhere; 3 there was nothing to compare."""
        if not self.compared:
            return NOT_RUN
        return CONFORMS if all(pair.equal for pair in self.compared) else FAILS


def as_json(comparison: Comparison) -> str:
    """Everything as one JSON object; numbers that JSON lacks become strings."""
    ports = [
        {"port": run.spec, "mode": launch.mode, "device": launch.device, "failure": run.failure}
        | {"versions": run.hello.versions if run.hello else {}}
        for launch, run in zip(comparison.launches, comparison.runs, strict=True)
    ]
    document = {
        "format": FORMAT,
        "conformance": conformance.__version__,
        "seed": comparison.seed,
        "exit_status": comparison.exit_status,
        "ports": ports,
        "cases": [asdict(pair) | {"equal": pair.equal, "sides": pair.sides} for pair in comparison.pairs],
    }
    return json.dumps(finite(document), indent=1) + "\n"


def show(comparison: Comparison, console: Console) -> None:
    """Print who was compared, a row for every op and dtype, where they are furthest apart, and the conclusion."""
    for name, launch, run in zip("ab", comparison.launches, comparison.runs, strict=True):
        said = Text.assemble((f"{name}: ", "bold"), run.spec, (f", {launch.mode}", "dim"))
        console.print(said.append(f" could not be run: {run.failure}", "red") if run.failure else said)
    if not comparison.compared:
        console.print("nothing to compare: no case was answered by both", style="red")
        for name, run in zip("ab", comparison.runs, strict=True):
            for (status, why), count in Counter((each.status, each.message) for each in run.verdicts).most_common(1):
                console.print(
                    f"{name}: {status} in {count} of {len(run.verdicts)} cases{f': {why}' if why else ''}", markup=False
                )
        return
    console.print()
    console.print(_table(comparison.compared))
    console.print(
        Text("ulps: numbers of the dtype between the two, at most. sides with: who is within the intervals, in cases", "dim")
    )
    if apart := worst(comparison.compared):
        for line in _apart(*apart):
            console.print(line, soft_wrap=True)
    console.print()
    console.print(_conclusion(comparison))


def _table(pairs: Iterable[CasePair]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("op", "dtype", "equal", "elements that differ", "ulps", *(f"sides with {side}" for side in SIDES)):
        table.add_column(name)
    groups: dict[tuple[str, str], list[CasePair]] = {}
    for pair in pairs:
        groups.setdefault((pair.op, pair.dtype), []).append(pair)
    for op in OPS:
        for dtype in DTYPES:
            if group := groups.get((op, dtype)):
                outputs = [output for pair in group for output in pair.outputs]
                equal = sum(pair.equal for pair in group)
                table.add_row(
                    op,
                    dtype,
                    Text(f"{equal}/{len(group)}", style="green" if equal == len(group) else ""),
                    f"{sum(output.differ for output in outputs)} of {sum(output.size for output in outputs)}",
                    _ulps(outputs),
                    *(str(sum(pair.sides == side for pair in group) or "-") for side in SIDES),
                )
    return table


def _ulps(outputs: Iterable[OutputPair]) -> str:
    """The largest distance in words; of a NaN to a number, and of one dtype to another, there is none."""
    told = [output.ulps for output in outputs]
    known = max((each for each in told if each is not None), default=0)
    return f"{known:.3g}" if None not in told else f"{known:.3g}, or none"


def _apart(pair: CasePair, output: OutputPair) -> list[str]:
    """Where they are furthest apart."""
    lines = ["", f"furthest apart in {pair.case}, {output.output}: the golden sides with {output.sides}"]
    if output.dtype_a != output.dtype_b:
        lines.append(f"  a is {output.dtype_a}, b is {output.dtype_b}")
    if output.furthest:
        part = output.furthest
        lines.append(f"  {list(part.index)}  a {part.a:.9g}, b {part.b:.9g}, exactly {part.exact:.9g}")
    lines.append(
        f"  of {count_of(output.differ, 'element')} that differ of {output.size}, a is nearer in {output.nearer_a},"
        f" b in {output.nearer_b}"
    )
    return lines


def _conclusion(comparison: Comparison) -> str:
    compared, equal = comparison.compared, sum(pair.equal for pair in comparison.compared)
    others = len(comparison.pairs) - len(compared)
    lacking = f"; {count_of(others, 'case')} not answered by both" if others else ""
    if equal == len(compared):
        return f"bitwise equal in {count_of(equal, 'case')}{lacking}"
    counts = {side: sum(pair.sides == side for pair in compared) for side in SIDES}
    said = ", ".join(f"{side} in {count}" for side, count in counts.items() if count)
    return f"bitwise equal in {equal} of {count_of(len(compared), 'case')}; the golden sides with {said}{lacking}"
