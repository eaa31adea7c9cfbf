"""The manifest of the fixtures: what is stored, and what it should be."""

import hashlib
import json
import os
import platform
import re
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import conformance
from conformance.numbers import json_text
from conformance.numbers.rounding import store
from conformance.numbers.tensors import TensorFileError, open_regular, parse_tensors, read_regular
from conformance.ops.golden import golden
from conformance.question.case import Case

Array = np.ndarray
FIXTURES = Path(__file__).parents[1] / "fixtures"
FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 1 << 24  # bytes
FILE = re.compile(r"(?!\.)[\w.+-]+(/(?!\.)[\w.+-]+)*")  # a path that does not leave the folder


class FixtureError(ValueError):
    """A fixtures folder that cannot be read or must not be replaced; the message names the file and the fix."""


def fixture(case: Case) -> dict[str, Array]:
    """All tensors of one case, by their names in its file.

    Inputs in their storage dtypes; `golden.*`, `rms.*` and the intermediates in float64; `lower.*` and `upper.*` in the
    output's dtype.
    """
    expected = golden(case)
    tensors = dict(expected.inputs)
    tensors |= {name: store(value, "float64") for name, value in expected.intermediates.items()}
    for name, output in expected.outputs.items():
        tensors |= {
            f"golden.{name}": store(output.value, "float64"),
            f"lower.{name}": output.lower,
            f"upper.{name}": output.upper,
        }
        if np.isfinite(output.rms):
            tensors[f"rms.{name}"] = np.array([output.rms])
    return tensors


def read_manifest(folder: Path = FIXTURES) -> dict[str, Any]:
    """The manifest. Raises `FixtureError` where it is missing, no JSON, or of a format this version does not know."""
    path = folder / MANIFEST
    try:
        manifest = json_text.parse(read_regular(path, MANIFEST_LIMIT))
    except FileNotFoundError:
        raise FixtureError(f"{path}: no such file; `conformance fixtures generate` writes it") from None
    except OSError as error:
        raise FixtureError(f"{path}: not readable: {error}") from None
    except ValueError as error:
        raise FixtureError(f"{path}: not JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise FixtureError(f"{path}: field 'format' is {found!r:.80}; this version reads {FORMAT}")
    if not isinstance(manifest.get("cases"), list) or manifest.get("count") != len(manifest["cases"]):
        raise FixtureError(f"{path}: field 'count' is {manifest.get('count')!r:.80}, which is not the number of its cases")
    for number, entry in enumerate(manifest["cases"]):
        for field, type_ in {"id": str, "file": str, "sha256": str, "bytes": int}.items():
            value = entry.get(field) if isinstance(entry, dict) else None
            if type(value) is not type_:
                raise FixtureError(
                    f"{path}: case number {number}: field {field!r} is {value!r:.80}; it must be {type_.__name__}"
                )
        if not FILE.fullmatch(entry["file"]):
            raise FixtureError(f"{path}: case number {number}: field 'file' is {entry['file']!r:.80}; it must be a path within")
    twice = [id_ for id_, count in Counter(entry["id"] for entry in manifest["cases"]).items() if count > 1]
    if twice:
        raise FixtureError(f"{path}: case {twice[0]!r:.80} is listed more than once")
    return manifest


def read_fixture(folder: Path, entry: dict[str, Any]) -> dict[str, Array]:
    """The tensors of one entry of the manifest. Raises `FixtureError` unless the file is whole and unedited."""
    path = folder / entry["file"]
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry["bytes"]:
                raise FixtureError(f"{path}: {size} bytes, {entry['bytes']} in the manifest")
            content = file.read(size)
    except FileNotFoundError:
        raise FixtureError(f"{path}: missing") from None
    except OSError as error:
        raise FixtureError(f"{path}: not readable: {error}") from None
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise FixtureError(f"{path}: edited: its sha256 is not the one in the manifest")
    try:
        return parse_tensors(path, content)
    except TensorFileError as error:
        raise FixtureError(str(error)) from None


def file_of(case: Case) -> str:
    """Where a case is stored, below the folder."""
    return f"{case.id}.safetensors"


def description(case: Case) -> dict[str, Any]:
    """What the manifest says of a case besides its file."""
    return {
        "op": case.op,
        "dialect": case.dialect.fields,
        "dtype": case.dtype,
        "shape": list(case.shape),
        "eps": case.eps,
        "layout": case.layout,
        "settings": case.settings,
        "outputs": case.outputs,
        "exposes": case.exposes,
    }


def entry_of(case: Case, folder: Path) -> dict[str, Any]:
    """What the manifest says of a case that is stored in a folder."""
    content = (folder / file_of(case)).read_bytes()
    return described(case, hashlib.sha256(content).hexdigest(), len(content))


def described(case: Case, digest: str, size: int) -> dict[str, Any]:
    """What the manifest says of a case and of its file."""
    return {"id": case.id, "file": file_of(case), "sha256": digest, "bytes": size, **description(case)}


def as_bytes(entries: list[dict[str, Any]], provenance: Any) -> bytes:
    """The manifest as it is stored."""
    manifest = {
        "$schema": "manifest.schema.json",
        "format": FORMAT,
        "seed": 0,
        "provenance": provenance,
        "count": len(entries),
        "cases": entries,
    }
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def provenance_now() -> dict[str, str]:
    """What computed the fixtures."""
    return {
        "conformance": conformance.__version__,
        "numpy": np.__version__,
        "ml_dtypes": ml_dtypes.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
