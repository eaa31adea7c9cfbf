"""The stored golden data: reproducible, whole, readable by a schema, and every damage is named."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from conformance.cli import app
from conformance.numbers.rounding import round_to
from conformance.ops.cases import CASES
from conformance.ops.golden import golden
from conformance.tools import fixtures
from conformance.tools.fixtures import FIXTURES, MANIFEST, FixtureError, check, generate, read_fixture, read_manifest

Manifest = dict[str, Any]

TENSORS = ("golden", "lower", "upper")  # of every output
STORED = {case.id: case for case in CASES if case.has_fixture}
ID = "layer_norm/cast_then_scale/bfloat16/random"
FILE = f"{ID}.safetensors"


@pytest.fixture(scope="session")
def fresh(tmp_path_factory) -> Path:
    """A generated folder, to be read only."""
    folder = tmp_path_factory.mktemp("fixtures") / "fresh"
    generate(folder)
    return folder


@pytest.fixture(scope="session")
def manifest(fresh) -> Manifest:
    return read_manifest(fresh)


@pytest.fixture
def copy(fresh, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(fresh, tmp_path / "copy"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(folder: Path, change: Callable[[Manifest], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")


def entry_of(manifest: Manifest, id_: str = ID) -> dict[str, Any]:
    (entry,) = [entry for entry in manifest["cases"] if entry["id"] == id_]
    return entry


def rewrite(folder: Path, data: bytes, id_: str = ID) -> None:
    """Replace a file and what the manifest says about its bytes, as someone who means it would."""
    path = folder / f"{id_}.safetensors"
    path.write_bytes(data)
    edit(folder, lambda m: entry_of(m, id_).update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))


def test_the_committed_fixtures_are_whole():
    assert check(FIXTURES) == []


def test_a_fresh_folder_is_whole(fresh):
    assert check(fresh) == []
    assert {entry["id"] for entry in read_manifest(fresh)["cases"]} == set(STORED)


def test_generating_twice_gives_the_same_bytes(fresh, tmp_path):
    count, size = generate(tmp_path / "again")
    again = content(tmp_path / "again")
    assert again == content(fresh)
    assert count == len(STORED)
    assert size == sum(len(data) for name, data in again.items() if name.endswith(".safetensors"))


def test_replacing_leaves_nothing_of_the_old_and_nothing_beside(copy, fresh):
    (copy / "rms_norm/old.safetensors").write_bytes(b"old")
    generate(copy)
    assert content(copy) == content(fresh)
    assert os.listdir(copy.parent) == ["copy"]


def test_all_of_it_fits_into_fourteen_megabytes(fresh):
    assert sum(map(len, content(fresh).values())) <= 14e6


def test_the_manifest_satisfies_its_schema_and_the_schema_is_strict(manifest):
    schema = json.loads((FIXTURES / "manifest.schema.json").read_text("utf-8"))
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    valid = validator(schema).is_valid
    assert valid(manifest)

    first, *others = manifest["cases"]
    assert not valid(manifest | {"unknown": 1})
    assert not valid(manifest | {"cases": [first | {"unknown": 1}, *others]})
    for name in ("format", "seed", "count", "cases"):
        assert not valid({key: value for key, value in manifest.items() if key != name}), name
    for name in first:
        assert not valid(manifest | {"cases": [{key: value for key, value in first.items() if key != name}]}), name
        assert not valid(manifest | {"cases": [first | {name: None}]}), name


@pytest.mark.parametrize("id_", STORED)
def test_a_fixture_holds_what_is_computed_live(fresh, manifest, id_):
    live, stored = golden(STORED[id_]), read_fixture(fresh, entry_of(manifest, id_))
    for name, tensor in live.inputs.items():
        assert (stored[name].dtype, stored[name].shape) == (tensor.dtype, tensor.shape)
        assert stored[name].tobytes() == tensor.tobytes()
    for name, values in live.intermediates.items():
        assert np.array_equal(stored[name], values, equal_nan=True)
    for name, expected in live.outputs.items():
        assert np.array_equal(stored[f"golden.{name}"], expected.value, equal_nan=True)
        assert stored[f"lower.{name}"].tobytes() == expected.lower.tobytes()
        assert stored[f"upper.{name}"].tobytes() == expected.upper.tobytes()
        assert stored.get(f"rms.{name}", [np.inf]) == [expected.rms]
    kinds = ("golden", "lower", "upper", "rms") if np.isfinite(live.outputs[next(iter(live.outputs))].rms) else TENSORS
    assert set(stored) == {*live.inputs, *live.intermediates} | {f"{kind}.{name}" for kind in kinds for name in live.outputs}


@pytest.mark.parametrize("id_", STORED)
def test_the_one_line_rule(fresh, manifest, id_):
    """lower <= golden, rounded, <= upper: what a reader in another language checks first."""
    case, stored = STORED[id_], read_fixture(fresh, entry_of(manifest, id_))
    for name, dtype in case.outputs.items():
        if name == "y" and case.dialect.order == "cast_then_scale":
            continue  # rounded in between: another number
        value = stored[f"golden.{name}"]
        lower, upper = (stored[f"{end}.{name}"].astype(np.float64) for end in ("lower", "upper"))
        rounded = round_to(value, dtype)
        assert np.all(((lower <= rounded) & (rounded <= upper)) | np.isnan(value))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_check_names_every_damaged_file_once(copy):
    ids = iter(sorted(STORED))
    expected = {}

    def damage(file_does: Callable[[Path], object], words: str) -> None:
        path = copy / f"{next(ids)}.safetensors"
        file_does(path)
        expected[f"{path}: "] = words

    def edited(words: str, **fields: Any) -> None:
        id_ = next(ids)
        edit(copy, lambda manifest: entry_of(manifest, id_).update(fields))
        expected[f"{copy / MANIFEST}: case {id_}: "] = words

    def rewritten(data: bytes, words: str) -> None:
        id_ = next(ids)
        rewrite(copy, data, id_)
        expected[f"{copy / id_}.safetensors: "] = words

    damage(lambda path: os.truncate(path, 1000), "1000 bytes, ")
    damage(flip_a_bit, "edited: its sha256 is not the one in the manifest")
    damage(lambda path: path.unlink(), "missing")
    rewritten(b"rubbish", "not a readable safetensors file")
    rewritten((copy / FILE).read_bytes().replace(b"golden.y", b"golden.z"), "tensor golden.y is missing")
    edited("field 'eps' is 1e-05", eps=1e-5)
    edited("field 'shape' is [33, 2, 3]", shape=[33, 2, 3])
    edited("field 'outputs' is {}", outputs={})
    edited("field 'exposes' is 'nothing'", exposes="nothing")
    shutil.copy(copy / FILE, copy / "stray.safetensors")
    expected[f"{copy}/stray.safetensors: "] = "not in the manifest"

    messages = check(copy)
    for start, words in expected.items():
        assert any(message.startswith(start + words) for message in messages), (start, words)
    assert all(message.startswith(tuple(expected)) for message in messages)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sha256": "0" * 64}, f"{FILE}: edited"),
        ({"bytes": 1}, f"{FILE}: "),
        ({"file": "elsewhere.safetensors"}, f"{MANIFEST}: case {ID}: field 'file' is 'elsewhere.safetensors'"),
        ({"id": "new"}, f"{MANIFEST}: case new is unknown"),
        ({"id": "new"}, f"{MANIFEST}: case {ID} is missing"),
    ],
)
def test_check_follows_the_manifest(copy, fields, words):
    edit(copy, lambda manifest: entry_of(manifest).update(fields))
    assert any(message.startswith(f"{copy}/{words}") for message in check(copy))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file; `conformance fixtures generate` writes it"),
        ("", "not JSON: "),
        ('{"format": 1,', "not JSON: "),
        ("[]", "field 'format' is 'list'"),
        ('{"format": 99, "count": 0, "cases": []}', "field 'format' is 99; this version reads 1"),
        ('{"format": 1, "count": 3, "cases": []}', "field 'count' is 3"),
        ('{"format": 1, "cases": []}', "field 'count' is None"),
        ('{"format": 1, "count": 0}', "field 'count' is 0"),
    ],
)
def test_check_names_a_manifest_that_cannot_be_read(tmp_path, text, words):
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    (message,) = check(tmp_path)
    assert message.startswith(f"{tmp_path / MANIFEST}: {words}")


def test_check_misses_no_case(tmp_path, fresh):
    """An empty list of cases, rightly counted, is not a whole folder."""
    shutil.copy(fresh / MANIFEST, tmp_path)
    edit(tmp_path, lambda manifest: manifest.update(count=0, cases=[]))
    missing = [message for message in check(tmp_path) if message.startswith(str(tmp_path / MANIFEST))]
    assert missing == sorted(f"{tmp_path / MANIFEST}: case {id_} is missing" for id_ in STORED)


def test_an_edited_golden_is_named_by_tensor_and_element(copy):
    """Though its sum in the manifest was made to fit: the regenerated numbers disagree."""
    data = bytearray((copy / FILE).read_bytes())
    header = int.from_bytes(data[:8], "little")
    start = 8 + header + json.loads(data[8 : 8 + header])["golden.y"]["data_offsets"][0]
    data[start + 8 * 34 : start + 8 * 35] = np.float64(123).tobytes()  # the 34th element of [2, 3, 33]
    rewrite(copy, bytes(data))
    (message,) = check(copy)
    assert message.startswith(f"{copy / FILE}: tensor golden.y differs in 1 of 198 elements, first at [0, 1, 1]: 123.0 stored")


def test_golden_values_of_another_cpu_pass_and_inputs_must_not_differ(copy):
    """A few units in the last place of a float64 sum are the machine's; an input has none to spare."""
    stored = read_fixture(copy, entry_of(read_manifest(copy)))
    other = {**stored, "golden.dx": stored["golden.dx"] * (1 + 2.0**-52)}
    fixtures.write_tensors(copy / FILE, other)
    rewrite(copy, (copy / FILE).read_bytes())
    assert check(copy) == []
    fixtures.write_tensors(copy / FILE, {**other, "x": np.nextafter(stored["x"], np.full_like(stored["x"], np.inf))})
    rewrite(copy, (copy / FILE).read_bytes())
    assert [message.partition(": ")[2][:25] for message in check(copy)] == ["tensor x differs in 198 o"]


def test_another_cpu_regenerates_what_is_committed(copy):
    """Its last bits are another's, and its provenance too: neither is a reason to change a file, or the manifest."""
    stored = read_fixture(copy, entry_of(read_manifest(copy)))
    fixtures.write_tensors(copy / FILE, {**stored, "golden.dx": stored["golden.dx"] * (1 + 2.0**-52)})
    rewrite(copy, (copy / FILE).read_bytes())
    edit(copy, lambda manifest: manifest["provenance"].update(machine="another"))
    before = content(copy)
    generate(copy)
    assert content(copy) == before


def test_a_file_that_is_wrong_is_generated_anew_and_so_is_the_provenance(copy, fresh):
    stored = read_fixture(copy, entry_of(read_manifest(copy)))
    fixtures.write_tensors(copy / FILE, {**stored, "golden.dx": stored["golden.dx"] * 1.001})
    rewrite(copy, (copy / FILE).read_bytes())
    edit(copy, lambda manifest: manifest["provenance"].update(machine="another"))
    generate(copy)
    assert content(copy) == content(fresh)


def test_the_manifest_is_checked_byte_for_byte(copy):
    edit(copy, lambda manifest: manifest["cases"].insert(3, manifest["cases"].pop(7)))
    generated, stored = list(STORED)[3], list(STORED)[7]
    [message] = check(copy)
    assert message.startswith(f"{copy / MANIFEST}: line ")
    assert message.endswith(f"""'"id": "{stored}",'; generated: '"id": "{generated}",'""")
    generate(copy)
    (copy / MANIFEST).write_bytes((copy / MANIFEST).read_bytes() + b"\n")
    [message] = check(copy)
    assert message.endswith("is ''; generated: 'nothing'")


def test_a_damaged_file_is_not_read(copy):
    flip_a_bit(copy / FILE)
    with pytest.raises(FixtureError, match="edited"):
        read_fixture(copy, entry_of(read_manifest(copy)))


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    (tmp_path / MANIFEST).write_text('{"name": "a web app", "icons": []}')
    before = content(tmp_path)
    with pytest.raises(FixtureError, match=rf"{tmp_path}: not empty, and not a fixtures folder"):
        generate(tmp_path)
    assert content(tmp_path) == before


def test_a_failure_between_the_two_renames_leaves_the_old_folder(copy, monkeypatch):
    before, replace = content(copy), os.replace

    def fail_once(source, target):
        if Path(source).name == "fresh":
            raise OSError("no space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    monkeypatch.setattr(
        "conformance.tools.fixtures.write_tensors",
        lambda path, tensors: (path.parent.mkdir(parents=True, exist_ok=True), path.write_bytes(b"x")),
    )
    with pytest.raises(OSError, match="no space left"):
        generate(copy)
    assert content(copy) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda manifest: manifest["cases"][3].pop("sha256"), "case number 3: field 'sha256' is None"),
        (lambda manifest: manifest["cases"].__setitem__(0, "a string"), "case number 0: field 'id' is None"),
        (lambda manifest: manifest["cases"].__setitem__(1, manifest["cases"][0]), "is listed more than once"),
        (lambda manifest: manifest.update(seed=7), "field 'seed' is 7; expected 0"),
        (lambda manifest: manifest.update(note="hello"), "field 'note' is unknown"),
    ],
)
def test_a_damaged_manifest_is_a_clear_message(copy, change, words):
    edit(copy, change)
    assert any(str(copy / MANIFEST) in message and words in message for message in check(copy))


@pytest.mark.parametrize("page", ["README.md", "manifest.schema.json"])
def test_the_pages_beside_the_fixtures_are_checked_too(copy, page):
    (copy / page).write_text("edited")
    assert check(copy) == [f"{copy / page}: not the page of this version"]
    (copy / page).unlink()
    assert check(copy) == [f"{copy / page}: missing"]


def test_an_empty_folder_is_filled(tmp_path, fresh):
    generate(tmp_path)
    assert content(tmp_path) == content(fresh)


def test_an_installed_kit_writes_only_where_it_is_told(tmp_path, monkeypatch):
    assert fixtures.source_folder() == FIXTURES
    installed = tmp_path / "site-packages/conformance/fixtures"
    monkeypatch.setattr(fixtures, "FIXTURES", installed)
    assert fixtures.source_folder() is None
    result = CliRunner().invoke(app, ["fixtures", "generate"], env={"COLUMNS": "500"})
    assert result.exit_code == 2
    assert "say where to write: conformance fixtures generate FOLDER" in result.output
    assert not installed.exists()


def test_a_folder_that_is_refused_is_wrong_usage(tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    result = CliRunner().invoke(app, ["fixtures", "generate", str(tmp_path)], env={"COLUMNS": "500"})
    assert result.exit_code == 2
    assert "not empty, and not a fixtures folder" in result.output
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("at", [1, 100, len(STORED)])
def test_a_crash_on_the_way_leaves_the_old_folder_as_it_was(copy, monkeypatch, at):
    (copy / FILE).write_bytes(b"old")
    before, written = content(copy), []

    def write(path, tensors):
        written.append(path)
        if len(written) == at:
            raise OSError("no space left on device")
        write_tensors(path, tensors)

    write_tensors = fixtures.write_tensors
    monkeypatch.setattr(fixtures, "write_tensors", write)
    with pytest.raises(OSError, match="no space left"):
        generate(copy)
    assert content(copy) == before
    assert os.listdir(copy.parent) == ["copy"]
