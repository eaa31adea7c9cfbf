"""The judge: cases, exact intervals, the port protocol, verdicts and their report. It imports no framework."""

__version__ = "0.1.0"
