"""The committed golden data: safetensors files, and a manifest that a program in any language can read.

`conformance/fixtures/README.md` is the format on one page, `manifest.schema.json` the manifest's schema.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Set
from contextlib import suppress
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import conformance
from conformance.numbers import json_text
from conformance.numbers.rounding import store
from conformance.numbers.tensors import TensorFileError, open_regular, parse_tensors, read_regular, write_tensors
from conformance.ops.cases import CASES
from conformance.ops.golden import golden
from conformance.question.case import Case

Array = np.ndarray

FIXTURES = Path(__file__).parents[1] / "fixtures"
FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 1 << 24  # bytes
FILE = re.compile(r"(?!\.)[\w.+-]+(/(?!\.)[\w.+-]+)*")  # a path that does not leave the folder
PAGES = ("README.md", "manifest.schema.json")  # what lies in the folder and is not generated

# Another CPU may sum in another order: golden values are compared in float64 ulps of a tensor's largest value.
GOLDEN_ULPS = 64


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


def source_folder() -> Path | None:
    """The fixtures of a source tree; None where the kit is installed, for nothing is written among installed packages."""
    return FIXTURES if (FIXTURES.parent.parent / "pyproject.toml").is_file() else None


def generate(folder: Path) -> tuple[int, int]:
    """Write all fixtures and the manifest, replacing the folder as a whole; returns the number of cases and of bytes.

    A file that is there and differs in the last bits alone, as another CPU may add up, keeps its bytes: the manifest, which
    holds its digest, is then the same on every machine. Raises `FixtureError` rather than replace a folder that holds
    something else.
    """
    folder = folder.resolve()
    if folder != FIXTURES.resolve() and folder.exists() and any(folder.iterdir()):
        try:
            read_manifest(folder)
        except FixtureError as error:
            raise FixtureError(f"{folder}: not empty, and not a fixtures folder to be replaced: {error}") from None
    stored = _stored(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        fresh, replaced = Path(scratch) / "fresh", Path(scratch) / "replaced"
        entries = []
        for case in CASES:
            if case.has_fixture:
                write_tensors(fresh / _file(case), _kept_or_new(case, folder, stored))
                entries.append(_entry(case, fresh))
        for page in PAGES:
            shutil.copyfile(FIXTURES / page, fresh / page)
        same = {entry["id"]: entry for entry in entries} == {entry["id"]: entry for entry in stored["cases"]}
        provenance = stored["provenance"] if same and "provenance" in stored else _provenance()
        (fresh / MANIFEST).write_bytes(_manifest(entries, provenance))
        if folder.exists():
            os.replace(folder, replaced)
        try:
            os.replace(fresh, folder)
        except BaseException:
            os.replace(replaced, folder)
            raise
    return len(entries), sum(entry["bytes"] for entry in entries)


def _stored(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that is to be replaced; one without cases where it has none."""
    try:
        return read_manifest(folder)
    except FixtureError:
        return {"cases": []}


def _kept_or_new(case: Case, folder: Path, stored: dict[str, Any]) -> dict[str, Array]:
    """The tensors of a case as they are stored, where those computed now agree with them; else the new ones."""
    new = fixture(case)
    for entry in stored["cases"]:
        if entry["id"] == case.id:
            with suppress(FixtureError):
                kept = read_fixture(folder, entry)
                return new if _differences(kept, new, golden(case).inputs.keys()) else kept
    return new


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


def check(folder: Path = FIXTURES) -> list[str]:
    """What is wrong with a fixtures folder, a line each; empty if it is whole and regenerates."""
    try:
        manifest = read_manifest(folder)
    except FixtureError as error:
        return [str(error)]
    cases = {case.id: case for case in CASES if case.has_fixture}
    entries = {entry["id"]: entry for entry in manifest["cases"]}
    files = {entry["file"] for entry in entries.values()}

    differences = [f"{folder / MANIFEST}: case {id_} is missing" for id_ in cases.keys() - entries.keys()]
    differences += [f"{folder / MANIFEST}: case {id_} is unknown" for id_ in entries.keys() - cases.keys()]
    fields = {"$schema": "manifest.schema.json", "format": FORMAT, "seed": 0, "count": len(manifest["cases"])}
    differences += [
        f"{folder / MANIFEST}: field {name!r} is {manifest.get(name)!r}; expected {value!r}"
        for name, value in fields.items()
        if manifest.get(name) != value
    ]
    unknown = manifest.keys() - fields.keys() - {"provenance", "cases"}
    differences += [f"{folder / MANIFEST}: field {name!r} is unknown" for name in unknown]
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    differences += [f"{folder / stray}: not in the manifest" for stray in present - files - {MANIFEST, *PAGES}]
    for page in PAGES:
        if page not in present:
            differences.append(f"{folder / page}: missing")
        elif (folder / page).read_bytes() != (FIXTURES / page).read_bytes():
            differences.append(f"{folder / page}: not the page of this version")
    for id_ in cases.keys() & entries.keys():
        if entries[id_]["file"] != _file(cases[id_]):
            differences.append(f"{folder / MANIFEST}: case {id_}: field 'file' is {entries[id_]['file']!r}")
            continue
        differences += [
            f"{folder / MANIFEST}: case {id_}: field {field!r} is {entries[id_].get(field)!r}; regenerated: {value!r}"
            for field, value in _description(cases[id_]).items()
            if entries[id_].get(field) != value
        ]
        try:
            stored = read_fixture(folder, entries[id_])
        except FixtureError as error:
            differences.append(str(error))
        else:
            fresh, inputs = fixture(cases[id_]), golden(cases[id_]).inputs.keys()
            differences += [f"{folder / entries[id_]['file']}: {text}" for text in _differences(stored, fresh, inputs)]
    if not any(difference.startswith(f"{folder / MANIFEST}: ") for difference in differences):
        differences += _differing_lines(folder / MANIFEST, manifest, cases.values())
    return sorted(differences)


def _differing_lines(path: Path, manifest: dict[str, Any], cases: Iterable[Case]) -> list[str]:
    """Where a manifest that holds what it should is not written as it is generated, byte for byte: the first such line."""
    entries = {entry["id"]: entry for entry in manifest["cases"]}
    generated = _manifest(
        [_described(case, entries[case.id]["sha256"], entries[case.id]["bytes"]) for case in cases], manifest.get("provenance")
    )
    content = read_regular(path, MANIFEST_LIMIT)
    if content == generated:
        return []
    pairs = zip_longest(content.decode(errors="replace").split("\n"), generated.decode().split("\n"), fillvalue="nothing")
    number, (line, other) = next((number, pair) for number, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    return [f"{path}: line {number} is {line.strip()[:80]!r}; generated: {other.strip()[:80]!r}"]


def _differences(stored: dict[str, Array], fresh: dict[str, Array], inputs: Set[str]) -> list[str]:
    """How stored tensors differ from regenerated ones, in words."""
    found = [f"tensor {name} is missing" for name in fresh.keys() - stored.keys()]
    found += [f"tensor {name} is unknown" for name in stored.keys() - fresh.keys()]
    for name in fresh.keys() & stored.keys():
        old, new = stored[name], fresh[name]
        if old.dtype != new.dtype or old.shape != new.shape:
            found.append(f"tensor {name} is {old.dtype}{list(old.shape)}; regenerated: {new.dtype}{list(new.shape)}")
            continue
        same = (old == new) | (np.isnan(old) & np.isnan(new)) if name in inputs else _same(name, old, new, fresh)
        off = ~same
        if off.any():
            at = tuple(int(i) for i in np.argwhere(off)[0])
            found.append(
                f"tensor {name} differs in {np.count_nonzero(off)} of {off.size} elements, "
                f"first at {list(at)}: {old[at]} stored, {new[at]} regenerated"
            )
    return found


def _same(name: str, old: Array, new: Array, fresh: dict[str, Array]) -> Array:
    """Which values agree: golden ones within ulps, the ends of an interval within one step.

    A composite op's are sums of products, which a BLAS adds up in an order of its own: a quarter of what is admitted is theirs.
    """
    a, b = old.astype(np.float64), new.astype(np.float64)
    kind, _, output = name.partition(".")
    with np.errstate(invalid="ignore"):
        slack = GOLDEN_ULPS * 2.0**-53 * np.max(np.abs(b), where=np.isfinite(b), initial=0.0)
        if kind in ("lower", "upper"):
            slack = np.abs(np.nextafter(new, np.copysign(np.inf, new).astype(new.dtype)).astype(np.float64) - b)
        if kind in ("golden", "lower", "upper") and f"rms.{output}" in fresh:
            slack = np.maximum(slack, fresh[f"rms.{output}"] / 4)
        elif kind == "rms":
            slack = b / 4
        return (a == b) | (np.abs(a - b) <= slack) | (np.isnan(a) & np.isnan(b))


def _file(case: Case) -> str:
    return f"{case.id}.safetensors"


def _description(case: Case) -> dict[str, Any]:
    """What the manifest says of a case besides its file."""
    return {
        "op": case.op,
        "dialect": asdict(case.dialect),
        "dtype": case.dtype,
        "shape": list(case.shape),
        "eps": case.eps,
        "layout": case.layout,
        "settings": case.settings,
        "outputs": case.outputs,
        "exposes": case.exposes,
    }


def _entry(case: Case, folder: Path) -> dict[str, Any]:
    content = (folder / _file(case)).read_bytes()
    return _described(case, hashlib.sha256(content).hexdigest(), len(content))


def _described(case: Case, digest: str, size: int) -> dict[str, Any]:
    return {"id": case.id, "file": _file(case), "sha256": digest, "bytes": size, **_description(case)}


def _manifest(entries: list[dict[str, Any]], provenance: Any) -> bytes:
    manifest = {
        "$schema": "manifest.schema.json",
        "format": FORMAT,
        "seed": 0,
        "provenance": provenance,
        "count": len(entries),
        "cases": entries,
    }
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def _provenance() -> dict[str, str]:
    """What computed the fixtures."""
    return {
        "conformance": conformance.__version__,
        "numpy": np.__version__,
        "ml_dtypes": ml_dtypes.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
