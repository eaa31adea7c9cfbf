"""Files from strangers: read, or refused by an error of the kit's own that names the file; within bounds of memory and time."""

import json
import os
import resource
import tracemalloc
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from conformance.numbers.tensors import TensorFileError, read_dump, read_tensors, write_tensors
from conformance.ops.case_files import CaseFileError, as_json, read_cases
from conformance.ops.cases import select
from conformance.ops.golden import compute
from conformance.tools.fixtures import MANIFEST, FixtureError, check, read_fixture, read_manifest

READERS = {"tensors": (read_tensors, TensorFileError), "dump": (lambda path: read_dump(path).tensors, TensorFileError)}
SANE = 4 * 1 << 20  # bytes that reading a small file may take
quickly = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TENSORS = {"x": np.ones((2, 3), np.float32), "w": np.ones(3, ml_dtypes.bfloat16), "n": np.zeros((0, 2)), "s": np.array(1.0)}
WHOLE = save(TENSORS, {"order": json.dumps(list(TENSORS))})
CASE = json.loads(as_json(*select("layer_norm/cast_then_scale/bfloat16/random")))
ENTRY = {"id": "rms_norm/a", "file": "rms_norm/a.safetensors", "sha256": "0" * 64, "bytes": 8}
FOLDER = {"format": 1, "seed": 0, "count": 1, "cases": [ENTRY]}

odd_numbers = st.sampled_from(
    [0, 1, -1, True, 1.0, 1.5, 2**31, 2**63, 2**64, 10**30, 10**4000, 1e300, float("nan"), float("inf")]
)
odd_texts = st.sampled_from(
    ["", "F33", "F64", "I64", "../x", "/etc/passwd", "a/../b", "a\0b", "\ud800", "²", "é", "x" * 5000, "9" * 5000]
)
odd = st.recursive(
    st.none() | odd_numbers | odd_texts | st.lists(odd_numbers, max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3),
    max_leaves=6,
)


def places(document: Any) -> list[tuple]:
    """The paths of all values in a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    return [(), *((key, *rest) for key, value in items for rest in places(value))]


@st.composite
def spliced(draw: st.DrawFn, document: Any) -> Any:
    """A document with a value or a few replaced, added or taken away."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        *outer, last = draw(st.sampled_from(places(document)[1:] or [("new",)]))
        holder = document
        for key in outer:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                holder[last] = draw(odd)
            case "remove":
                del holder[last]
            case "add" if isinstance(holder, dict):
                holder[draw(odd_texts)] = draw(odd)
        if not places(document)[1:]:
            break
    return document


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Content cut short, with bytes flipped, put in, or taken out."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(damaged) - 1, 0)))
        match draw(st.sampled_from(["cut", "flip", "insert", "delete", "repeat"])):
            case "cut":
                del damaged[at:]
            case "flip" if damaged:
                damaged[at] ^= draw(st.integers(1, 255))
            case "insert":
                damaged[at:at] = draw(st.binary(max_size=9))
            case "delete":
                del damaged[at : at + draw(st.integers(1, 9))]
            case "repeat":
                damaged[at:at] = damaged[at : at + draw(st.integers(1, 40))]
    return bytes(damaged)


def packed(header: Any, data: bytes = WHOLE[-40:]) -> bytes:
    """A safetensors file with this header."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


HEADER = json.loads(WHOLE[8 : 8 + int.from_bytes(WHOLE[:8], "little")])
DATA = WHOLE[8 + int.from_bytes(WHOLE[:8], "little") :]


def attempt(read: Callable[[Path], Any], refused: type[Exception], argument: Path, path: Path) -> tuple[Any, str]:
    """What is read, or else why it is refused; the error names the path, and can be shown."""
    try:
        return read(argument), ""
    except refused as error:
        said = str(error)
    assert said.startswith(f"{path}: ")
    said.encode()
    return None, said


def read_or_refused(path: Path, content: bytes, reader: str) -> str:
    """The error's text, empty where the file is read; whatever is read is no more than the file holds."""
    path.write_bytes(content)
    tensors, refused = attempt(*READERS[reader], path, path)
    assert sum(tensor.nbytes for tensor in (tensors or {}).values()) <= len(content)
    return refused


@pytest.mark.parametrize("reader", READERS)
def test_a_whole_file_is_read(tmp_path, reader):
    assert read_or_refused(tmp_path / "whole", WHOLE, reader) == ""


def test_tensors_come_in_the_order_of_their_names(tmp_path):
    """The file's own deserialiser shuffles them, and a compiler that is given a dict in another order starts anew."""
    names = [f"layer_{number:02}" for number in range(20)]
    write_tensors(tmp_path / "many", {name: np.zeros(2, np.float32) for name in reversed(names)})
    assert list(read_tensors(tmp_path / "many")) == names


@pytest.mark.parametrize("reader", READERS)
@quickly
@given(content=damaged(WHOLE) | spliced(HEADER).map(lambda header: packed(header, DATA)) | st.binary(max_size=64))
@example(content=packed({"²": HEADER["x"] | {"data_offsets": [0, 24]}}, DATA[:24]))
@example(content=packed({"9" * 5000: HEADER["x"] | {"data_offsets": [0, 24]}}, DATA[:24]))
@example(content=packed({"__metadata__": {"order": "[" * 100_000}}, b""))
@example(content=packed({"__metadata__": {"order": "\\ud800"}}, b""))
@example(content=packed({"__metadata__": {"order": "{}"}}, b""))
def test_a_damaged_file_is_read_or_refused(tmp_path, content, reader):
    read_or_refused(tmp_path / "damaged", content, reader)


F64 = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}
LIES = {
    "a huge shape": packed({"x": F64 | {"shape": [2**31, 2**31]}}, bytes(8)),
    "a large shape": packed({"x": F64 | {"shape": [2**27]}}, bytes(8)),
    "a huge shape of nothing": packed({"x": F64 | {"shape": [0, 2**63], "data_offsets": [0, 0]}}, b""),
    "a rank of 100": packed({"x": F64 | {"shape": [1] * 100}}, bytes(8)),
    "a negative shape": packed({"x": F64 | {"shape": [-1]}}, bytes(8)),
    "a Boolean shape": packed({"x": F64 | {"shape": [True]}}, bytes(8)),
    "a fractional shape": packed({"x": F64 | {"shape": [1.0]}}, bytes(8)),
    "offsets beyond the end": packed({"x": F64 | {"data_offsets": [0, 2**40], "shape": [2**37]}}, bytes(8)),
    "offsets that overlap": packed({"x": F64, "y": F64}, bytes(8)),
    "offsets backwards": packed({"x": F64 | {"data_offsets": [8, 0]}}, bytes(8)),
    "bytes of no tensor": packed({"x": F64}, bytes(16)),
    "a tensor twice": packed(b'{"x": %s, "x": %s}' % ((json.dumps(F64).encode(),) * 2), bytes(16)),
    "an unknown dtype": packed({"x": F64 | {"dtype": "F33"}}, bytes(8)),
    "a name that steers a terminal": packed({"\x1b[2J": F64}, bytes(8)),
    "no UTF-8": packed(b'{"\xff": {}}', b""),
    "a deep header": packed(b"[" * 100_000, b""),
    "a header of 2^63": (2**63).to_bytes(8, "little") + b"{}",
    "a header of 100 MB": (10**8).to_bytes(8, "little") + b"{}",
    "nothing": b"",
    "half a length": b"\0\0\0",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_and_costs_no_memory(tmp_path, lie, reader):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        assert read_or_refused(tmp_path / "lie", LIES[lie], reader)
        assert tracemalloc.get_traced_memory()[1] < SANE
    finally:
        tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes, of which the machine has many


@pytest.mark.parametrize("reader", READERS)
def test_a_large_file_costs_little_more_than_its_size(tmp_path, reader):
    path, large = tmp_path / "large", np.ones(1 << 22, np.float32)
    path.write_bytes(save({"x": large}))
    tracemalloc.start()
    try:
        tensors = READERS[reader][0](path)
        assert tracemalloc.get_traced_memory()[1] < 2.1 * large.nbytes
    finally:
        tracemalloc.stop()
    assert np.array_equal(tensors["x"], large)


def odd_files(path: Path) -> dict[str, Any]:
    """What may stand where a file is expected, and what puts it there."""
    return {
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a device": lambda: path.symlink_to("/dev/zero"),
        "a link to itself": lambda: path.symlink_to(path),
        "a link to nothing": lambda: path.symlink_to(path.with_name("nothing")),
    }


ODD_FILES = tuple(odd_files(Path()))


@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / MANIFEST
    odd_files(path)[kind]()
    for read, refused in READERS.values():
        with pytest.raises(refused, match=f"^{path}: "):
            read(path)
    with pytest.raises(FixtureError, match=f"^{path}: "):
        read_manifest(tmp_path)
    with pytest.raises(FixtureError, match=f"^{path}: "):
        read_fixture(tmp_path, ENTRY | {"file": MANIFEST})
    assert len(check(tmp_path)) == 1
    if kind != "a pipe":  # which cases may come from
        with pytest.raises(CaseFileError, match=f"^{path}: "):
            read_cases(path)


def test_cases_may_come_from_a_pipe():
    reading, writing = os.pipe()
    os.write(writing, json.dumps(CASE).encode())
    os.close(writing)
    assert len(read_cases(Path(f"/dev/fd/{reading}"))) == 1
    os.close(reading)


def refusal_of_manifest(folder: Path, text: bytes) -> str:
    """The error's text, empty where the manifest is read and all its files can be asked for."""
    (folder / MANIFEST).write_bytes(text)
    manifest, refused = attempt(read_manifest, FixtureError, folder, folder / MANIFEST)
    for entry in (manifest or {"cases": []})["cases"]:
        with pytest.raises(FixtureError, match=f"^{folder}/"):  # there are none
            read_fixture(folder, entry)
    return refused


@quickly
@given(text=damaged(json.dumps(FOLDER).encode()) | spliced(FOLDER).map(lambda document: json.dumps(document).encode()))
@example(text=b"[" * 100_000)
@example(text=b'{"format": ' + b"[" * 900 + b"]" * 900 + b"}")
@example(text=b'{"format": 1, "format": 1, "count": 0, "cases": []}')
@example(text=b"9" * 100_000)
def test_a_damaged_manifest_is_read_or_refused(tmp_path, text):
    refused = refusal_of_manifest(tmp_path, text)
    if refused:
        assert [refused] == check(tmp_path)
    else:
        "\n".join(check(tmp_path)).encode()


@pytest.mark.parametrize("file", ["../a", "/etc/passwd", "a/../../b", "a//b", "", ".", "a/.hidden", "a\0b", "a\nb"])
def test_no_fixture_lies_outside_its_folder(tmp_path, file):
    text = json.dumps(FOLDER | {"cases": [ENTRY | {"file": file}]}).encode()
    assert "case number 0: field 'file' is " in refusal_of_manifest(tmp_path, text)


@pytest.mark.parametrize("value", [True, 8.0, "8", None])
def test_a_size_is_an_integer(tmp_path, value):
    text = json.dumps(FOLDER | {"cases": [ENTRY | {"bytes": value}]}).encode()
    assert "field 'bytes' is " in refusal_of_manifest(tmp_path, text)


@quickly
@given(
    text=damaged(json.dumps(CASE).encode())
    | (spliced(CASE) | spliced([CASE])).map(lambda document: json.dumps(document).encode())
)
@example(text=json.dumps(CASE | {"shape": [10**4000, 10**4000]}).encode())
@example(text=json.dumps(CASE | {"shape": [1] * 100_000}).encode())
@example(text=json.dumps(CASE | {"eps": 1e300}).encode())
@example(text=b'{"name": ' + b"[" * 980 + b"]" * 980 + b"}")
@example(text=b"[" * 100_000)
@example(text=b'{"op": "rms_norm", "op": "rms_norm"}')
@example(text=json.dumps(CASE | {"\ud800": None}).encode())
@example(text=json.dumps(CASE | {"exposes": "\ud800\x1b[2J"}).encode())
def test_a_damaged_case_is_read_or_refused(tmp_path, text):
    """And what is read has a golden."""
    path = tmp_path / "cases.json"
    path.write_bytes(text)
    cases, _ = attempt(read_cases, CaseFileError, path, path)
    for case in cases or ():
        if prod(case.shape) < 1000:
            compute(case, 0)
