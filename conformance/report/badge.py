"""The conclusion as a badge, in the format that shields.io reads: https://shields.io/badges/endpoint-badge."""

import json

from conformance.report import words
from conformance.report.report import CONFORMS, FAILS, Report

COLOURS = {CONFORMS: "brightgreen", FAILS: "red"}


def as_badge(report: Report) -> str:
    """One JSON object: a label, the conclusion, and a colour, which is grey where nothing was judged."""
    message, _ = words.conclusion(report)
    colour = COLOURS.get(report.exit_status, "lightgrey")
    return json.dumps({"schemaVersion": 1, "label": "norm-conformance", "message": message, "color": colour}) + "\n"
