"""The judge: cases, exact intervals, the port protocol, verdicts and their report. It imports no framework."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conformance.tools.checking import check

__all__ = ["check"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`check`, which is imported when it is asked for: a port that imports the kit need not load the judge."""
    if name == "check":
        from conformance.tools.checking import check

        return check
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
