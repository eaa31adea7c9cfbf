"""The report as JSON, written and read: `docs/report.schema.json`."""

import json
import math
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from conformance.numbers import json_text
from conformance.report.counting import count_of
from conformance.report.report import FORMAT, Report
from conformance.report.spread import LETTERS

NOT_FINITE = ("nan", "inf", "-inf")  # numbers that JSON lacks


class ReportFileError(ValueError):
    """A file that holds no report of this format; the message names the file and the field."""


def as_json(report: Report) -> str:
    """Everything a report holds, as one JSON object."""
    return by_lines(asdict(report))


def by_lines(document: dict[str, Any]) -> str:
    """A JSON object, an entry of its lists a line; numbers that JSON lacks become strings."""
    document = finite(document)
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {_laid_out(value)}" for name, value in document.items()) + "\n}\n"


def _laid_out(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
    return json.dumps(value)


def finite(value: Any) -> Any:
    """The same value with every number that JSON lacks as a string."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {key: finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
        case _:
            return value


def read(path: Path) -> Report:
    """The report that a file holds. Raises `ReportFileError`."""
    try:
        document = json_text.parse(path.read_bytes())
    except FileNotFoundError:
        raise ReportFileError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ReportFileError(f"{path}: not readable as JSON: {error}") from None
    try:
        return parse(document)
    except ReportFileError as error:
        raise ReportFileError(f"{path}: {error}") from None


def parse(document: Any) -> Report:
    """A report from what JSON makes of it. Raises `ReportFileError`, which names the field."""
    if not isinstance(document, dict) or "format" not in document:
        raise ReportFileError("not a report of `conformance run --json`: it has no field 'format'")
    if document["format"] != FORMAT:
        raise ReportFileError(f"format is {document['format']!r}; this kit reads {FORMAT}: write it again with the same kit")
    try:
        report = _parsed(document, Report, "")
    except OverflowError:
        raise ReportFileError("it holds a whole number that is too large for a float") from None
    _check(report)
    return report


def _parsed(value: Any, kind: Any, at: str) -> Any:
    """A value of JSON as what the report's fields are declared to be."""
    origin, options = get_origin(kind), get_args(kind)
    if origin is Literal and isinstance(value, str) and value in options:
        return value
    if origin in (UnionType, Union):
        (other,) = (option for option in options if option is not NoneType)
        return None if value is None else _parsed(value, other, at)
    if origin is tuple and isinstance(value, list):
        if options[-1] is not Ellipsis and len(value) != len(options):
            raise ReportFileError(f"{at} has {count_of(len(value), 'item')}; expected {len(options)}")
        return tuple(_parsed(item, options[0], f"{at}[{place}]") for place, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {_parsed(key, options[0], at): _parsed(item, options[1], f"{at}.{key}") for key, item in value.items()}
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        names = [each.name for each in fields(kind)]
        for name in (*names, *value):
            if (name in names) != (name in value):
                raise ReportFileError(f"{_under(at, name)} is {'missing' if name in names else 'not a field'}")
        return kind(**{name: _parsed(value[name], hints[name], _under(at, name)) for name in names})
    if kind is float and (value in NOT_FINITE or _is(value, int | float)):
        return float(value)
    if kind in (str, bool, int) and _is(value, kind):
        return value
    raise ReportFileError(f"{at or 'it'} is {_shortened(value)}; expected {_named(kind)}")


def _under(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _is(value: Any, kind: Any) -> bool:
    """Whether a value has a type; a bool is no int."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _named(kind: Any) -> str:
    match get_origin(kind) or kind:
        case origin if origin is Literal:
            return f"one of {', '.join(get_args(kind))}"
        case origin if origin is tuple:
            return "a list"
        case origin if origin is dict or is_dataclass(origin):
            return "an object"
        case origin:
            return {str: "a string", bool: "true or false", int: "a whole number"}.get(origin, "a number")


def _check(report: Report) -> None:
    """Whether what entries say of one another is so. Raises `ReportFileError`."""
    if report.settings.shards < 1 or not 1 <= report.settings.shard <= report.settings.shards:
        raise ReportFileError(f"settings.shard is {report.settings.shard} of {report.settings.shards}")
    ports = {port.port for port in report.ports}
    for place, verdict in enumerate(report.verdicts):
        if verdict.port not in ports:
            raise ReportFileError(f"verdicts[{place}].port is {verdict.port!r}; ports has no such port")
        for output in verdict.judged:
            errors = output.errors
            if errors and not all(set(row) <= set(LETTERS) and len(row) == len(errors.map[0]) for row in errors.map):
                raise ReportFileError(f"verdicts[{place}]: the map of {output.output} has a row of another length or letters")
            if errors and (len(errors.counts) > len(LETTERS) or min(errors.pooled) < 1):
                raise ReportFileError(f"verdicts[{place}]: {output.output} has more classes than there are, or an empty pool")
    for place, cell in enumerate(report.matrix):
        if cell.port not in ports:
            raise ReportFileError(f"matrix[{place}].port is {cell.port!r}; ports has no such port")
    for place, cause in enumerate(report.causes):
        for case in (cause.example, *cause.cases):
            if (cause.port, case) not in report.entries:
                raise ReportFileError(f"causes[{place}]: verdicts has no {case!r} of {cause.port!r}")
    if report.exit_status not in (0, 1, 3):
        raise ReportFileError(f"exit_status is {report.exit_status}; expected 0, 1 or 3")
