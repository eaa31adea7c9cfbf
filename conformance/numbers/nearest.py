"""Names that somebody got almost right."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, among: Iterable[str]) -> str:
    """The end of a message that says there is no such name: which one comes near; empty where none does."""
    close = get_close_matches(name, list(among), n=1)
    return f"; did you mean {close[0]}?" if close else ""
