"""The dialect that a port follows, printed."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.tools.scoreboard.identify import Finding, Identified


def show_findings(port: str, found: Mapping[Identified, tuple[Finding, ...]], console: Console) -> None:
    """Print what an implementation follows, op by op, with what says so."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in (port, "dtype", "asked", "follows", "because"):
        table.add_column(Text(name), overflow="fold")
    for op, findings in found.items():
        for finding in findings:
            found_ = Text(finding.found, style="bold" if finding.told else "red")
            table.add_row(op, finding.dtype, Text(finding.asked), found_, Text(finding.evidence))
    console.print(table)
