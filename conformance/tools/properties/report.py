"""The properties of ports on a terminal and as JSON: a table, then every violation once, in words."""

import json
import shlex
from collections import Counter
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

import conformance
from conformance.numbers.rounding import DTYPES
from conformance.port.session import NOT_ASKED
from conformance.report.report import CONFORMS, FAILS, NOT_RUN
from conformance.tools.properties.inquiry import Inquiry
from conformance.tools.properties.properties import PROPERTIES, Finding, Property, Status

FORMAT = 1
WORST_FIRST: tuple[Status, ...] = ("violated", "error", "rounding", "declared", "holds", "not asked")
STYLES = {"violated": "red", "error": "red", "rounding": "yellow", "declared": "yellow", "holds": "green", "not asked": "dim"}


@dataclass(frozen=True)
class PropertiesReport:
    """All ports' findings, which their launches and these settings repeat."""

    inquiries: tuple[Inquiry, ...]
    seed: int
    seconds: float
    bitwise: bool = False

    @property
    def exit_status(self) -> int:
        """0 all that is required holds; 1 it does not; 3 a port could not be run, or was asked nothing it could answer."""
        if any(all(each.status == "not asked" for each in inquiry.findings) for inquiry in self.inquiries):
            return NOT_RUN
        statuses = {finding.status for inquiry in self.inquiries for finding in inquiry.findings}
        return FAILS if statuses & {"violated", "error"} else CONFORMS

    def command(self, inquiry: Inquiry, finding: Finding) -> str:
        """The command that repeats one finding."""
        launch, case = inquiry.launch, finding.case
        options = [f"--property {finding.property.id} --op {case.op} --dtype {case.dtype}"]
        options += ["--bitwise"] if self.bitwise else []
        options += [f"--seed {self.seed}"] if self.seed else []
        options += [f"--device {shlex.quote(launch.device)}"] if launch.device != "cpu" else []
        options += [f"--mode {launch.mode}"] if launch.mode != "jit" else []
        return " ".join(["conformance properties", launch.argument, *options])


def worst(findings: list[Finding]) -> Finding:
    """The finding that a table's cell shows and a paragraph tells."""
    return min(findings, key=lambda finding: (WORST_FIRST.index(finding.status), -finding.figure))


def show(report: PropertiesReport, console: Console) -> None:
    """Print the report."""
    for inquiry in report.inquiries:
        if inquiry.failure:
            console.print(Text.assemble((inquiry.launch.spec, "bold"), " could not be run: ", (inquiry.failure, "red")))
            continue
        console.print(_table(inquiry))
        for property_ in PROPERTIES:
            for status in ("violated", "error", "rounding"):
                group = [each for each in inquiry.findings if each.property == property_ and each.status == status]
                for line in _paragraph(report, inquiry, property_, group) if group else []:
                    console.print(line, soft_wrap=True)  # a command broken into lines cannot be copied
        console.print()
    console.print(_conclusion(report))


def _table(inquiry: Inquiry) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(Text(inquiry.launch.spec), no_wrap=True, overflow="fold")
    for dtype in DTYPES:
        table.add_column(dtype, no_wrap=True)
    for property_ in PROPERTIES:
        of_property = [finding for finding in inquiry.findings if finding.property == property_]
        if of_property:
            cells = ([each for each in of_property if each.case.dtype == dtype] for dtype in DTYPES)
            table.add_row(property_.id, *(_cell(cell) for cell in cells))
    return table


def _cell(findings: list[Finding]) -> Text:
    if not findings:
        return Text("-", style="dim")
    finding = worst(findings)
    return Text(f"{finding.status} {finding.shown}".rstrip(), style=STYLES[finding.status])


def _paragraph(report: PropertiesReport, inquiry: Inquiry, property_: Property, group: list[Finding]) -> list[Text]:
    example = worst(group)
    count = len({finding.case.id for finding in group})
    dtypes = ", ".join(dict.fromkeys(finding.case.dtype for finding in group))
    cases = f"  ({count} case{'s' * (count != 1)}: {dtypes})"
    words, style = {
        "violated": (f"violated: {property_.sentence}", "red"),
        "error": (example.words, "red"),
        "rounding": ("holds but for rounding", "yellow"),
    }[example.status]
    details = [f"means       {property_.consequence}"] if example.status == "violated" else []
    details += [f"seen        {example.words}"] if example.status != "error" else []
    details += [f"case        {example.case.id}  {list(example.case.shape)}"]
    if NOT_ASKED not in example.words:
        details += [f"reproduce   {report.command(inquiry, example)}"]
    title = Text.assemble((f"\n{inquiry.launch.spec} {property_.id} ", "bold"), (words, style), cases)
    return [title, *(Text(f"  {detail}") for detail in details)]


def _conclusion(report: PropertiesReport) -> Text:
    counts = Counter(finding.status for inquiry in report.inquiries for finding in inquiry.findings)
    words = {
        "violated": "violated",
        "error": "error" if counts["error"] == 1 else "errors",
        "rounding": "but for rounding",
        "declared": "declared",
        "holds": "to the bit",
        "not asked": "not asked",
    }
    counted = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status])
    style, verdict = {
        CONFORMS: ("bold green", "all that is required holds"),
        FAILS: ("bold red", "something required does not hold"),
        NOT_RUN: ("bold red", "a port was not judged"),
    }[report.exit_status]
    return Text.assemble((verdict, style), f": {counted or 'nothing was asked'} in {report.seconds:.1f} s")


def as_json(report: PropertiesReport) -> str:
    """Every finding, as one JSON object."""
    document = {
        "format": FORMAT,
        "conformance": conformance.__version__,
        "exit_status": report.exit_status,
        "seed": report.seed,
        "device": report.inquiries[0].launch.device,
        "mode": report.inquiries[0].launch.mode,
        "bitwise": report.bitwise,
        "seconds": round(report.seconds, 3),
        "ports": [
            {
                "port": inquiry.launch.spec,
                "failure": inquiry.failure,
                "findings": [
                    {
                        "property": finding.property.id,
                        "case": finding.case.id,
                        "status": finding.status,
                        "words": finding.words,
                        "command": report.command(inquiry, finding),
                    }
                    for finding in inquiry.findings
                ],
            }
            for inquiry in report.inquiries
        ],
    }
    return json.dumps(document, indent=1) + "\n"
