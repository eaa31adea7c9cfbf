"""JSON from strangers: parsed, or refused in words."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

DEEPEST = 50  # levels: more than anything needs, and few enough for whatever shows or compares it


def parse(text: bytes) -> Any:
    """What a UTF-8 text of JSON says. Raises `ValueError`, and no other, where it says nothing, or one thing twice."""
    try:
        document = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_refused)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level, depth = [document], 0
    while level := [inner for each in level for inner in _inner(each)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
    return document


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _inner(value: Any) -> Iterable[Any]:
    """What a value holds. Raises `ValueError` where it is a text that is no Unicode: half of a surrogate pair."""
    if isinstance(value, str):
        value.encode()
    return [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields. Raises `ValueError` where a name comes twice, or cannot be shown."""
    fields = dict(pairs)
    if odd := [name for name in fields if not name.isprintable()]:
        raise ValueError(f"field {odd[0]!r:.80} has characters that cannot be shown")
    if len(fields) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"field {twice!r:.80} is given twice")
    return fields
