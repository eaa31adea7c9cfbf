"""The report as one HTML file that needs nothing else: no network, no other file."""

import base64
import hashlib
import math

from jinja2 import Environment, PackageLoader, StrictUndefined

from conformance.port.session import NOT_ASKED
from conformance.report import figures, words
from conformance.report.report import CONFORMS, NOT_RUN, Cell, Report

DRAWN = 40  # causes that are drawn; of the others the words are enough
OTHERS = 12  # failing outputs of an example that are drawn beside the worst


def environment() -> Environment:
    """Where the pages' templates are; everything that goes into one is escaped."""
    loader = PackageLoader("conformance.report")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"ratio": words.ratio, "source": _source, "signed": signed}
    return made


def as_html(report: Report) -> str:
    """The page: the matrix, every cause with what it looks like, and what repeats it all."""
    return (
        environment()
        .get_template("report.html")
        .render(
            report=report,
            words=words,
            figures=figures,
            conclusion=words.conclusion(report),
            standing=_standing(report.exit_status),
            rows=words.rows(report),
            dtypes=words.columns(report),
            mood=mood,
            not_asked=NOT_ASKED,
            drawn=DRAWN,
            others=OTHERS,
        )
    )


def _standing(status: int) -> str:
    return {CONFORMS: "good", NOT_RUN: "none"}.get(status, "bad")


def mood(cell: Cell | None) -> str:
    """How a cell of the matrix looks: good, fair (some do as expected), bad, none (not judged)."""
    if cell is None or not cell.judged:
        return "none"
    return ("fair" if cell.count("expected") else "good") if cell.conforms else "bad"


def signed(value: float) -> str:
    """A number as a person reads it; words where it is none."""
    return "NaN" if math.isnan(value) else f"{value:.9g}"


def _source(text: str) -> str:
    """What a content security policy calls a script or a style by: its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()}'"
