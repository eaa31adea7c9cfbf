"""Where two runs part, on a terminal and as JSON: a table of the activations in order, then what is to be said of them."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import conformance
from conformance.numbers.rounding import FORMATS
from conformance.report.counting import count_of
from conformance.report.machine import finite
from conformance.tools.locating.locate import Finding, Location, Statistics

FORMAT = 1
AGREE, PART, NOT_COMPARED = 0, 1, 2


@dataclass(frozen=True)
class LocationReport:
    """What was found, and in which files: two, or one; `ordered` where the order is one that a file records."""

    location: Location
    files: tuple[str, ...]
    ordered: bool

    @property
    def exit_status(self) -> int:
        """0 they agree; 1 they part, or something is NaN or infinite; 2 they have nothing that could be compared."""
        if len(self.files) == 2 and not self.location.compared:
            return NOT_COMPARED
        return AGREE if self.location.agrees else PART


def show(report: LocationReport, console: Console) -> None:
    """Print the table, then the verdict."""
    location = report.location
    for letter, file in zip("ab", report.files, strict=False):
        console.print(Text.assemble((letter, "bold"), f"  {file}"), soft_wrap=True)
    console.print(_table(report))
    if not report.ordered:
        console.print(Text("the order is a guess, by place in the file or by name: no metadata records it", style="dim"))
    for note in _notes(location) if len(report.files) == 2 else ():
        console.print(Text(note), soft_wrap=True)
    for line in _verdict(report):
        console.print(line, soft_wrap=True)


def _table(report: LocationReport) -> Table:
    two = len(report.files) == 2
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("activation", overflow="fold")
    for column in ("", "dtype", "shape") if two else ("dtype", "shape"):
        table.add_column(column, no_wrap=True)
    for column in ("mean", "std", "min", "max", "not finite", *(("apart", "scale", "step") if two else ())):
        table.add_column(column, no_wrap=True, justify="right")
    for finding in report.location.findings:
        first = finding is report.location.parting or finding is report.location.broken
        style = "bold red" if first else ""
        rows = [(letter, run) for letter, run in (("a", finding.a), ("b", finding.b)) if run]
        for index, (letter, run) in enumerate(rows):
            name, ends = ("", ("", "", "")) if index else (finding.name, _ends(finding))
            cells = (name, *([letter] if two else []), *_cells(run), *(ends if two else ()))
            table.add_row(*(Text(cell) for cell in cells), style=style)
    return table


def _cells(run: Statistics) -> tuple[str, ...]:
    numbers = (f"{value:.3g}" for value in (run.mean, run.std, run.min, run.max))
    return run.dtype, str(list(run.shape)), *numbers, f"{run.non_finite:.2%}" if run.non_finite else ""


def _ends(finding: Finding) -> tuple[str, str, str]:
    """How far apart, b's scale, and in how many times what is explained."""
    if finding.apart is None:
        return "shapes differ" if finding.a and finding.b else "in one only", "", ""
    if finding.step is None or finding.scale is None:
        return f"{finding.apart:.2%} differ" if finding.apart else "equal", "", ""
    if not finding.apart:
        return "equal", "", ""
    return f"{finding.apart:.1e}", f"{finding.scale:.4f}", f"{finding.step:.2g}"


def _notes(location: Location) -> Iterator[str]:
    for letter, missing in (("a", "b"), ("b", "a")):
        alone = [each.name for each in location.findings if getattr(each, letter) and not getattr(each, missing)]
        if alone:
            yield f"only in {letter}: {_some(alone)}"
    unlike = [each.name for each in location.findings if each.a and each.b and each.apart is None]
    if unlike:
        yield f"not compared, since their shapes differ: {_some(unlike)}"
    if location.coarser:
        name, unit = location.coarser.name, location.coarser.unit
        yield f"from {name} on, one of them is stored in {unit}: what {unit} rounds away is not told apart there"


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _verdict(report: LocationReport) -> Iterator[Text]:
    location = report.location
    two = len(report.files) == 2
    if report.exit_status == NOT_COMPARED:
        yield Text.assemble(("not compared", "bold red"), ": the files have no name in common with the same shape")
    if location.parting:
        yield Text.assemble((f"they part at {location.parting.name}", "bold red"), f": {_why(location.parting)}")
        if location.parting is next(each for each in location.findings if each.apart is not None):
            yield Text("it is the first that could be compared: were both given the same weights and inputs?")
    elif location.drifted:
        yield Text.assemble(
            ("they drift apart", "bold red"),
            f": no bit is left at {location.drifted.name}, and no single step explains it; {_largest_step(location)}",
        )
    if location.broken:
        of = [letter for letter, run in zip("ab", (location.broken.a, location.broken.b), strict=True) if run and run.broken]
        whose = f" in {' and '.join(of)}" if two else ""
        yield Text.assemble((f"the first NaN or infinity is at {location.broken.name}", "bold red"), whose)
    if report.exit_status == AGREE:
        count = count_of(location.compared if two else len(location.findings), "activation")
        yield (
            Text.assemble(("they agree", "bold green"), f": {count}, {_largest_step(location)}")
            if two
            else Text.assemble(("finite", "bold green"), f": {count}")
        )


def _why(finding: Finding) -> str:
    match finding.fault:
        case "values":
            return f"{finding.apart:.2%} of its integers differ"
        case "non-finite":
            return "one of them is NaN or infinite where the other is not"
        case _:
            hint = f"; {finding.hint}" if finding.hint else ""
            return f"{_units(finding)}, {_figure(finding.step or 0.0)} times what is explained{hint}"


def _largest_step(location: Location) -> str:
    compared = [each for each in location.findings if each.unit]
    if not any(each.apart for each in compared):
        return "equal to the bit"
    largest, last = max(compared, key=lambda each: each.step or 0.0), max(compared, key=lambda each: each.apart or 0.0)
    return (
        f"at most {_units(last)} ({last.name}), in steps of at most {largest.step:.2g} times what is explained ({largest.name})"
    )


def _units(finding: Finding) -> str:
    """How far apart, in roundings."""
    if finding.apart is None or finding.unit is None:
        return ""
    roundings = _figure(finding.apart / FORMATS[finding.unit].unit_roundoff)
    return f"{roundings} rounding{'s' * (roundings != '1')} of {finding.unit} apart"


def _figure(number: float) -> str:
    return f"{number:.2g}" if number < 100 else f"{number:.0f}" if number < 1e4 else f"{number:.0e}".replace("e+0", "e")


def as_json(report: LocationReport) -> str:
    """Every finding, as one JSON object; numbers that JSON lacks become the strings "nan", "inf", "-inf"."""
    location = report.location
    named: dict[str, Finding | None] = {"parts": location.parting, "broken": location.broken, "drifted": location.drifted}
    document: dict[str, Any] = {
        "format": FORMAT,
        "conformance": conformance.__version__,
        "exit_status": report.exit_status,
        "files": list(report.files),
        "ordered": report.ordered,
        **{key: finding.name if finding else None for key, finding in named.items()},
        "activations": [asdict(finding) for finding in location.findings],
    }
    return json.dumps(finite(document), indent=1) + "\n"
