"""Outputs computed elsewhere, from the committed fixtures' inputs -> PortRun: a folder with a file for every case answered."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance.judging.compare import Verdict, compare
from conformance.numbers import json_text
from conformance.numbers.nearest import did_you_mean
from conformance.numbers.rounding import DTYPES
from conformance.numbers.tensors import TensorFileError, read_regular, read_tensors
from conformance.ops.cases import CASES
from conformance.ops.golden import golden
from conformance.ops.table import OPS
from conformance.port.protocol import PROTOCOL, Hello, ProtocolError, read_hello
from conformance.port.session import OUTPUTS_LIMIT, asked_of
from conformance.question.case import Case
from conformance.running.runner import PortRun, as_expected, unsupported
from reference import FEATURES

ABOUT = "port.json"  # what the implementation says of itself
ABOUT_LIMIT = 1 << 20  # bytes of it
SUFFIX = ".safetensors"
SEED = 0  # the fixtures'
NOTHING = "no outputs in the folder"  # why a case is skipped
STRAYS_NAMED = 3
DEFAULTS: dict[str, Any] = {
    "ops": list(OPS),
    "dtypes": list(DTYPES),
    "orders": ["cast_then_scale", "scale_then_cast"],
    "weight_offsets": [0, 1],
    "gradients": True,
    "features": list(FEATURES),
}
"""What is taken to be claimed where port.json does not say: everything."""


class OutputsError(ValueError):
    """A folder that holds no outputs, or some of no case; the message names the file and the fix."""


def answered(folder: Path) -> dict[str, Path]:
    """Case id to the file of outputs. Raises `OutputsError` where there is none, or one that belongs to no case."""
    if not folder.is_dir():
        raise OutputsError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    paths = sorted(path for path in folder.rglob(f"*{SUFFIX}") if not path.name.startswith("."))
    files = {path.relative_to(folder).as_posix().removesuffix(SUFFIX): path for path in paths}
    if not files:
        raise OutputsError(f"{folder}: no outputs in it: write those of a case to {CASES[0].id}{SUFFIX}, and so on")
    ids = {case.id for case in CASES}
    strays = [id_ for id_ in files if id_ not in ids]
    if strays:
        named = "; ".join(f"{files[id_]} belongs to no case{did_you_mean(id_, ids)}" for id_ in strays[:STRAYS_NAMED])
        raise OutputsError(named + (f"; and {len(strays) - STRAYS_NAMED} more" if len(strays) > STRAYS_NAMED else ""))
    return files


def about(folder: Path) -> Hello:
    """What the folder's port.json says of the implementation: any fields of hello. Raises `OutputsError`."""
    path, said = folder / ABOUT, dict[str, Any]()
    if path.exists():
        try:
            said = json_text.parse(read_regular(path, ABOUT_LIMIT))
        except OSError as error:
            raise OutputsError(f"{path}: {error.strerror or error}") from None
        except ValueError as error:
            raise OutputsError(f"{path}: not JSON: {error}") from None
    if not isinstance(said, dict):
        raise OutputsError(f"{path}: {json.dumps(said)[:80]} must be an object with fields of hello")
    fields = [*Hello.__dataclass_fields__, "type", "protocol"]
    for name in said:
        if name not in fields:
            raise OutputsError(f"{path}: field {name!r} is unknown{did_you_mean(name, fields)}")
    try:
        return read_hello({"type": "hello", "protocol": PROTOCOL, "name": folder.resolve().name} | DEFAULTS | said)
    except ProtocolError as error:
        raise OutputsError(f"{path}: {str(error).removeprefix('hello: ')}") from None


def judge_folder(
    folder: Path, cases: tuple[Case, ...], on_verdict: Callable[[Verdict], None] = lambda verdict: None
) -> PortRun:
    """Judge the outputs of every case that has some; the others are skipped. Raises `OutputsError`."""
    files, hello = answered(folder), about(folder)
    verdicts: list[Verdict] = []
    for case in cases:
        if case.id in files:
            verdict = as_expected(_judge(str(folder), files[case.id], case, hello), hello)
        else:
            verdict = Verdict(str(folder), case, "skip", message=unsupported(case, hello) or NOTHING)
        verdicts.append(verdict)
        on_verdict(verdict)
    return PortRun(str(folder), hello, tuple(verdicts))


def _judge(spec: str, path: Path, case: Case, hello: Hello) -> Verdict:
    try:
        outputs = read_tensors(path, OUTPUTS_LIMIT)
    except TensorFileError as error:
        return Verdict(spec, case, "error", message=str(error))
    asked = asked_of(case, hello)
    missing = [name for name in asked if name not in outputs]
    if missing:
        hint = f'; where {asked[0]} alone is computed, {ABOUT} says "gradients": false' if asked[0] in outputs else ""
        held = ", ".join(sorted(outputs)) or "nothing"
        return Verdict(spec, case, "error", message=f"{', '.join(missing)} missing: the file holds {held}{hint}")
    return compare(spec, golden(case, SEED), outputs, asked)
