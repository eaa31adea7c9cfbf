"""The committed golden data: safetensors files, and a manifest that a program in any language can read.

`conformance/fixtures/README.md` is the format on one page, `manifest.schema.json` the manifest's schema.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Set
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from conformance.numbers.tensors import read_regular, write_tensors
from conformance.ops.cases import CASES
from conformance.ops.golden import golden
from conformance.question.case import Case
from conformance.tools.manifest import (
    FIXTURES,
    FORMAT,
    MANIFEST,
    MANIFEST_LIMIT,
    FixtureError,
    as_bytes,
    described,
    description,
    entry_of,
    file_of,
    fixture,
    provenance_now,
    read_fixture,
    read_manifest,
)

Array = np.ndarray

PAGES = ("README.md", "manifest.schema.json")  # what lies in the folder and is not generated
# Another CPU may sum in another order: golden values are compared in float64 ulps of a tensor's largest value.
GOLDEN_ULPS = 64


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
                write_tensors(fresh / file_of(case), _kept_or_new(case, folder, stored))
                entries.append(entry_of(case, fresh))
        for page in PAGES:
            shutil.copyfile(FIXTURES / page, fresh / page)
        same = {entry["id"]: entry for entry in entries} == {entry["id"]: entry for entry in stored["cases"]}
        provenance = stored["provenance"] if same and "provenance" in stored else provenance_now()
        (fresh / MANIFEST).write_bytes(as_bytes(entries, provenance))
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
        if entries[id_]["file"] != file_of(cases[id_]):
            differences.append(f"{folder / MANIFEST}: case {id_}: field 'file' is {entries[id_]['file']!r}")
            continue
        differences += [
            f"{folder / MANIFEST}: case {id_}: field {field!r} is {entries[id_].get(field)!r}; regenerated: {value!r}"
            for field, value in description(cases[id_]).items()
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
    generated = as_bytes(
        [described(case, entries[case.id]["sha256"], entries[case.id]["bytes"]) for case in cases], manifest.get("provenance")
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
