"""Cases as JSON: kept in a file, sent to someone, asked again."""

import json
import re
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from conformance.numbers import json_text
from conformance.ops.answerable import why_unanswerable
from conformance.ops.cases import case_type
from conformance.ops.norms.cases import NormCase

LIMIT = 1 << 24  # bytes of a file
NAME = re.compile(r"[\w.+-]+")  # a part of a path
OPTIONAL = ("sum", "y", "group_size")  # left out where nothing is added, nothing is quantised, there are no groups


class CaseFileError(ValueError):
    """A file whose cases cannot be asked; the message names the file, the field, and what it must be."""


def as_json(*cases: Any) -> str:
    """All fields of the cases: one object, or a list of them unless there is exactly one; every case on a line."""
    fields = [asdict(case) | {"dialect": case.dialect.fields} for case in cases]
    lines = [json.dumps({name: value for name, value in each.items() if value is not None}) for each in fields]
    return lines[0] + "\n" if len(lines) == 1 else "[" + ",\n ".join(lines) + "]\n"


def read_cases(path: Path) -> tuple[NormCase, ...]:
    """The cases of a file that holds one or a list of them. Raises `CaseFileError`."""
    try:
        with path.open("rb") as file:  # which may be a pipe
            text = file.read(LIMIT + 1)
    except (OSError, ValueError) as error:  # a ValueError is a null character
        raise CaseFileError(f"{path}: {getattr(error, 'strerror', error)}") from None
    if len(text) > LIMIT:
        raise CaseFileError(f"{path}: more than {LIMIT} bytes; cases have a few hundred each")
    try:
        document = json_text.parse(text)
    except ValueError as error:
        raise CaseFileError(f"{path}: not JSON: {error}") from None
    objects = document if isinstance(document, list) else [document]
    if not objects:
        raise CaseFileError(f"{path}: an empty list; there is nothing to ask")
    cases: dict[str, NormCase] = {}
    for index, item in enumerate(objects):
        where = f"{path}: case {index}: " if isinstance(document, list) else f"{path}: "
        try:
            case = read_case(item)
        except CaseFileError as error:
            raise CaseFileError(f"{where}{error}") from None
        if case.id in cases:
            raise CaseFileError(f"{where}name: there is another {case.id}; a case is known by its id")
        cases[case.id] = case
    return tuple(cases.values())


def read_case(item: Any) -> NormCase:
    """A case from what JSON made of it. Raises `CaseFileError`, which begins with the field that is wrong."""
    case: NormCase = _read(case_type(item.get("op")) if isinstance(item, dict) else NormCase, item, "")
    if not NAME.fullmatch(case.name):
        raise CaseFileError(f"name: {case.name!r} must be letters, digits and any of _ . + -")
    if not case.exposes.isprintable():
        raise CaseFileError(f"exposes: {case.exposes!r:.80} has characters that cannot be shown")
    if reason := why_unanswerable(case):
        raise CaseFileError(reason)
    return case


def _read(type_: Any, value: Any, field: str) -> Any:
    """A value of a type that a case is made of: a dataclass, a tuple of integers, a literal, or a plain one."""
    if is_dataclass(type_):
        return _read_fields(type_, value, field)
    if get_origin(type_) is tuple:
        if not isinstance(value, list):
            raise _wrong(field, value, "a list of integers")
        return tuple(_read(get_args(type_)[0], item, f"{field}[{index}]") for index, item in enumerate(value))
    if get_origin(type_) is UnionType:  # an optional field that is there
        return _read(get_args(type_)[0], value, field)
    if get_origin(type_) is Literal:
        options = get_args(type_)
        if not any(type(value) is type(option) and value == option for option in options):
            raise _wrong(field, value, f"one of {', '.join(json.dumps(option) for option in options)}")
        return value
    names = {float: "a number", int: "an integer", bool: "true or false", str: "a string"}
    if type(value) is int and type_ is float and abs(value) < 2**53:
        return float(value)
    if type(value) is not type_:
        raise _wrong(field, value, names[type_])
    return value


def _read_fields(type_: Any, value: Any, field: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(field or "a case", value, "an object")
    types, prefix = get_type_hints(type_), f"{field}." if field else ""
    types = {name: types[name] for name in type_.__dataclass_fields__}
    for name in types:
        if name not in value and name not in OPTIONAL:
            raise CaseFileError(f"{prefix}{name}: missing")
    for name in value:
        if name not in types:
            raise CaseFileError(f"{prefix}{name}: unknown; the fields are {', '.join(types)}")
    return type_(**{name: _read(types[name], value[name], f"{prefix}{name}") for name in types if name in value})


def _wrong(field: str, value: Any, expected: str) -> CaseFileError:
    return CaseFileError(f"{field}: {json.dumps(value)[:80]} must be {expected}")
