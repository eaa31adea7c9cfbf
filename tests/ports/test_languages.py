"""Ports in other languages: they conform, are told what is wrong with them, and stand malformed input."""

import json
import re
import shutil
import subprocess
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from conformance.judging.diagnose import diagnose
from conformance.numbers.tensors import read_tensors, write_tensors
from conformance.ops.cases import CASES, select
from conformance.ops.golden import golden
from conformance.ops.table import OPS
from conformance.port.launch import Launch
from conformance.port.protocol import decode
from conformance.running.runner import run_ports

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")
LANGUAGES = ("c", "javascript")
HELLO = {"type": "hello", "protocol": 2, "device": "cpu", "mode": "jit"}


def needed(program: str) -> str:
    """Where a program is; skips where it is not."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"no {program}")
    return found


def make(folder: Path, *arguments: str) -> str:
    """What `make` says."""
    needed("cc")
    made = subprocess.run([needed("make"), "-C", folder, *arguments], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout + made.stderr


def sources(language: str, folder: Path) -> Path:
    """A copy of a port's sources, without what may have been built of them."""
    return shutil.copytree(ROOT / "ports" / language, folder, ignore=shutil.ignore_patterns("*.o", "port"))


def command(language: str, folder: Path) -> tuple[str, ...]:
    """What starts a port that is ready."""
    return (str(folder / "port"),) if language == "c" else (needed("node"), str(folder / "port.js"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = sources("c", tmp_path_factory.mktemp("c") / "c")
    assert make(folder, "-s") == ""
    return folder


@pytest.fixture(params=LANGUAGES)
def port(request):
    folder = request.getfixturevalue("built") if request.param == "c" else ROOT / "ports" / request.param
    return command(request.param, folder)


def converse(port: tuple[str, ...], *messages: dict[str, Any] | str) -> list[dict[str, Any]]:
    """The answers to messages that are sent all at once, and bye after them."""
    lines = [message if isinstance(message, str) else json.dumps(message) for message in (*messages, {"type": "bye"})]
    process = subprocess.run(port, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False, timeout=60)
    assert (process.returncode, process.stderr) == (0, "")
    return [decode(line) for line in process.stdout.splitlines()]


def test_the_c_port_is_built_without_a_warning(built):
    """The fixture saw none; here, that they were asked for."""
    compiled = [line for line in make(built, "-n", "-B").splitlines() if " -c " in line]
    assert len(compiled) == 6 + 2 * 9
    for flag in ("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-ffp-contract=off"):
        assert all(f" {flag} " in line for line in compiled), flag


def test_it_conforms(port):
    """Every case, gradients and intermediates included; neither language's arrays have strides."""
    [run] = run_ports([Launch("port", port)], CASES, seed=1)
    assert run.hello is not None, run.failure
    assert [verdict for verdict in run.verdicts if verdict.status in ("fail", "error")] == []
    skipped = {verdict.case: verdict.message for verdict in run.verdicts if verdict.status == "skip"}
    assert skipped == {case: "no layout but contiguous" for case in CASES if case.layout != "contiguous"}
    assert all(verdict.taps for verdict in run.verdicts if verdict.case.op in ("pre_ln_block", "pre_ln_stack"))


ROOT_OF_C = "sqrt(dot(how.group, x_hat, 1, x_hat, 1) / n + how.eps)"
# Language, file, what stands there, what it is made; the cases asked, and the mistake that is found.
MISTAKEN = [
    (
        "c",
        "norms.c",
        ROOT_OF_C,
        f"({ROOT_OF_C.replace(' + how.eps', '')} + how.eps)",
        "rms_norm/*/float32/rows_*",
        "eps_outside_root",
    ),
    (
        "c",
        "attention.c",
        "how.causal ? own + 1",
        "how.causal ? i + 1",
        "attention/*/float32/cached",
        "causal_mask_without_cache",
    ),
    (
        "javascript",
        "batch_norm.js",
        "correction * variance[i]",
        "variance[i]",
        "batch_norm/training/float32/*",
        "running_var_biased",
    ),
    ("javascript", "norms.js", " - xHat[i] * projection", "", "layer_norm/*/float32/width_*", "projection_missing"),
]


@pytest.mark.parametrize(
    ("language", "file", "right", "wrong", "cases", "mistake"), MISTAKEN, ids=[row[-1] for row in MISTAKEN]
)
def test_a_mistake_is_named(language, file, right, wrong, cases, mistake, tmp_path):
    folder = sources(language, tmp_path / language)
    text = (folder / file).read_text()
    assert text.count(right) == 1
    (folder / file).write_text(text.replace(right, wrong))
    if language == "c":
        make(folder, "-s", "OPTIMISE=-O0")
    [run] = run_ports([Launch("port", command(language, folder))], select(cases))
    [diagnosis] = diagnose(run.verdicts, seed=0)
    assert diagnosis.mistake.id == mistake


# Half precision: every float that stands next to a tie, and a lot of others.
def floats() -> np.ndarray:
    halves = np.arange(1 << 16, dtype=np.uint32)
    ties = [halves << 16 | 0x8000, (halves & 0x7FFF) << 13 | 0x1000]  # of bfloat16, and, with other exponents, of float16
    ties.append((ties[1] + (112 << 23)) | (halves & 0x8000) << 16)
    near = np.concatenate([tie + np.uint32(step) for tie in ties for step in (-1 & 0xFFFFFFFF, 0, 1)])
    subnormal = (np.arange(-4100, 4100) * 2.0**-26).astype(np.float32).view(np.uint32)
    drawn = np.random.Generator(np.random.Philox(0)).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    return np.concatenate([halves << 16, near, subnormal, drawn]).view(np.float32)


HALVES_IN_C = """
#include <stdio.h>
#include "half.h"
int main(void) {
    float x;
    while (fread(&x, sizeof x, 1, stdin)) {
        uint16_t bits[2] = {bfloat16_of(x), float16_of(x)};
        float back[2] = {from_bfloat16(bits[0]), from_float16(bits[1])};
        fwrite(bits, sizeof bits, 1, stdout), fwrite(back, sizeof back, 1, stdout);
    }
}
"""
HALVES_IN_JAVASCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
import { bfloat16Of, float16Of, fromBfloat16, fromFloat16 } from "./half.js";
const bytes = readFileSync(0);
const xs = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
const out = new DataView(new ArrayBuffer(3 * bytes.length));
xs.forEach((x, i) => {
  const bits = [bfloat16Of(x), float16Of(x)];
  [0, 1].forEach((k) => out.setUint16(12 * i + 2 * k, bits[k], true));
  [fromBfloat16(bits[0]), fromFloat16(bits[1])].forEach((y, k) => out.setFloat32(12 * i + 4 + 4 * k, y, true));
});
writeFileSync(1, out);
"""


@pytest.mark.parametrize("language", LANGUAGES)
def test_half_precision_is_rounded_to_nearest_even(language, tmp_path):
    folder = sources(language, tmp_path / language)
    if language == "c":
        (folder / "halves.c").write_text(HALVES_IN_C)
        subprocess.run([needed("cc"), "-O1", folder / "halves.c", folder / "half.c", "-o", folder / "halves"], check=True)
        program = [folder / "halves"]
    else:
        (folder / "halves.js").write_text(HALVES_IN_JAVASCRIPT)
        program = [needed("node"), folder / "halves.js"]
    x = floats()
    out = subprocess.run(program, input=x.tobytes(), capture_output=True, check=True).stdout
    made = np.frombuffer(out, dtype=[("bits", "<u2", 2), ("back", "<f4", 2)])
    with np.errstate(over="ignore", invalid="ignore"):
        for i, dtype in enumerate((ml_dtypes.bfloat16, np.float16)):
            nearest = x.astype(dtype)
            number = ~np.isnan(x)
            np.testing.assert_array_equal(made["bits"][number, i], nearest.view(np.uint16)[number])
            assert np.isnan(made["bits"][~number, i].copy().view(dtype)).all()
            np.testing.assert_array_equal(made["back"][:, i], nearest.astype(np.float32))


def test_the_worked_exchange_of_the_page(port, tmp_path):
    """What docs/protocol.md shows is what happens: its messages, and its two files to the byte."""
    given, made = (as_bytes(block) for block in re.findall(r"((?:    .*\n)+)", PAGE[PAGE.index("## A worked exchange") :])[:2])
    inputs, outputs = tmp_path / "inputs.safetensors", tmp_path / "outputs.safetensors"
    inputs.write_bytes(given)
    write_tensors(tmp_path / "written", read_tensors(inputs))
    assert (tmp_path / "written").read_bytes() == given
    messages = re.findall(r"-> (\{.*?\})(?=\n\n|\n    <-)", PAGE, re.DOTALL)
    hello, case, bye = (json.loads(message) for message in messages if ", …," not in message)  # what is left out
    assert bye == {"type": "bye"}
    _, done = converse(port, hello, case | {"inputs": str(inputs), "outputs": str(outputs)})
    assert done["type"] == "done"
    assert done["id"] == case["id"]
    (tmp_path / "page").write_bytes(made)
    assert_same(read_tensors(outputs), read_tensors(tmp_path / "page"))


def as_bytes(block: str) -> bytes:
    """A file as the page shows it: lines of hexadecimal bytes or of the header's text, each with a comment."""
    lines = [line.strip().split("  ")[0] for line in block.splitlines()]
    header = "".join(line for line in lines if re.match(r'[{"]', line)).encode()
    length, *data = (bytes.fromhex(line) for line in lines if re.fullmatch(r"[0-9a-f]{2}( [0-9a-f]{2})*", line))
    return length + header.ljust(int.from_bytes(length, "little")) + b"".join(data)


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
    ("message", "type_"),
    [
        ("not JSON", "error"),
        ("null", "error"),
        ("", "error"),
        (HELLO | {"device": "cuda"}, "error"),
        ({"type": "case", "id": 5, "layout": "permuted"}, "skip"),
        ({"type": "case", "id": 5, "op": "rms_norm", "layout": "contiguous", "inputs": "/nowhere", "asked": ["y"]}, "error"),
    ],
    ids=["not_json", "null", "empty", "another_device", "strides", "no_file"],
)
def test_what_it_cannot_answer_it_says_and_goes_on(port, message, type_):
    answer, hello = converse(port, message, HELLO)
    assert answer["type"] == type_
    assert answer.get("reason") or answer.get("message")
    assert hello["type"] == "hello"
    if isinstance(message, dict) and "id" in message:
        assert answer["id"] == message["id"]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The C port, stopped by its compiler's sanitizers at any access out of bounds and any undefined behaviour."""
    folder = sources("c", tmp_path_factory.mktemp("sanitized") / "c")
    make(folder, "-s", "sanitized")
    environment = {"ASAN_OPTIONS": "allocator_may_return_null=1"}  # as malloc does: the port then says that memory is short
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([folder / "port"], env=environment, **pipes) as process:

        def ask(line: bytes) -> dict[str, Any]:
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: PT018
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline().decode(errors="replace")
            assert answer, process.stderr.read().decode()
            return decode(answer)

        yield ask, folder
        assert process.communicate(b'{"type": "bye"}\n', timeout=10) == (b"", b"")
        assert process.returncode == 0


FUZZED = (
    "rms_norm/*/bfloat16/random",
    "add_layer_norm/*/float16/y_unread",
    "rope/*/float32/random",
    "attention/*/float64/random",
    "pre_ln_block/llama/float32/cached",
)
ASKED = [case for pattern in FUZZED for case in select(pattern)]
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
odd = st.integers(0, 99) | st.sampled_from([2**31, 2**32, 2**52, 2**63, 2**64, -1, 0.5, 1e308, None, "x", [], {}])


def question(case, folder: Path) -> dict[str, Any]:
    """A case as it is asked; its file of inputs is there."""
    write_tensors(folder / "inputs.safetensors", golden(case).inputs)
    fields = {"op": case.op, "dtype": case.dtype, "order": case.dialect.order, "weight_offset": 0, "eps": case.eps}
    fields |= {"layout": "contiguous", "asked": list(case.outputs), "settings": case.settings, "taps": True}
    fields |= {"gradients": [name for name in case.outputs if name not in case.made]}
    fields |= {"cotangents": [name for name in OPS[case.op].cotangents if name in golden(case).inputs]}
    return {"type": "case", "id": 1} | fields | {name: str(folder / f"{name}.safetensors") for name in ("inputs", "outputs")}


def paths(value, path=()):
    """Where the parts of a JSON value stand, the whole first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in items:
        yield from paths(part, (*path, name))


@st.composite
def altered(draw, value):
    """A JSON value with one of its parts replaced, or left out."""
    changed = json.loads(json.dumps(value))
    *path, name = draw(st.sampled_from([path for path in paths(value) if path]))
    parent = reduce(getitem, path, changed)
    if draw(st.integers(0, 5)) == 0:
        del parent[name]
    else:
        parent[name] = draw(odd)
    return changed


@st.composite
def reshaped(draw, tensors):
    """Tensors, one of them of another shape, or missing."""
    name = draw(st.sampled_from(sorted(tensors)))
    others = {other: tensor for other, tensor in tensors.items() if other != name}
    shape = draw(st.lists(st.integers(0, 9), max_size=10))
    return others if draw(st.integers(0, 9)) == 0 else others | {name: np.zeros(shape, tensors[name].dtype)}


@SETTINGS
@given(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")))
def test_no_line_harms_the_c_port(sanitized, line):
    ask, _ = sanitized
    assert ask(b'{"type": ' + line)["type"] == "error"
    assert ask(line)["type"] == "error"


@SETTINGS
@given(st.data())
def test_no_message_harms_the_c_port(sanitized, data):
    ask, folder = sanitized
    message = question(data.draw(st.sampled_from(ASKED)), folder)
    kept = {name: message[name] for name in ("type", "outputs")}
    answer = ask(json.dumps(data.draw(altered(message)) | kept).encode())
    assert answer["type"] in ("done", "skip", "error")


@pytest.mark.parametrize("what", ["header", "bytes", "tensors"])
@SETTINGS
@given(data=st.data())
def test_no_file_harms_the_c_port(sanitized, what, data):
    ask, folder = sanitized
    asked = data.draw(st.sampled_from(ASKED))
    message = question(asked, folder)
    inputs = Path(message["inputs"])
    content = inputs.read_bytes()
    length = int.from_bytes(content[:8], "little")
    match what:
        case "header":
            header = json.dumps(data.draw(altered(json.loads(content[8 : 8 + length])))).encode()
            inputs.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
        case "bytes":
            start = data.draw(st.integers(0, 8 + length))
            content = content[:start] + data.draw(st.binary(max_size=9)) + content[start + data.draw(st.integers(0, 9)) :]
            inputs.write_bytes(content[: data.draw(st.sampled_from([len(content), 8 + length, start, 7, 0]))])
        case "tensors":
            write_tensors(inputs, data.draw(reshaped(golden(asked).inputs)))
    assert ask(json.dumps(message).encode())["type"] in ("done", "error")


def test_the_c_port_conforms_under_the_sanitizers(sanitized):
    _, folder = sanitized
    [run] = run_ports([Launch("port", (str(folder / "port"),))], ASKED)
    assert {verdict.status for verdict in run.verdicts} == {"pass"}
