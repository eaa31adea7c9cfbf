"""Counts in words."""


def count_of(count: int, noun: str, plural: str = "") -> str:
    """A count and its noun, which is singular after one: `1 case`, `2 cases`, `0 misses`."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"
