"""Outputs computed elsewhere: read from the fixtures, written by someone else's program, judged as a port's are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conformance.numbers.tensors import write_tensors
from conformance.ops.cases import CASES, select
from conformance.ops.golden import golden
from conformance.running.offline import OutputsError, about, answered, judge_folder
from conformance.tools.fixtures import FIXTURES
from tests.runner.test_cli import CONFORMS, FAILS, NOT_RUN, ROOT, WRONG_USAGE, conformance, read_report

[RANDOM] = select("rms_norm/either_order/float32/random")
[NEAR_EPS] = select("rms_norm/either_order/float32/rows_near_eps")
[BLOCK] = select("pre_ln_block/llama/float32/random")


def exact(case, *names):
    outputs = golden(case).outputs
    return {name: outputs[name].nearest for name in names or outputs}


def write(folder: Path, case, tensors) -> Path:
    path = folder / f"{case.id}.safetensors"
    write_tensors(path, tensors)
    return path


def verdict(folder: Path, case=RANDOM):
    [found] = judge_folder(folder, (case,)).verdicts
    return found


def test_the_whole_journey_with_numpy_alone(tmp_path):
    """As on a machine without the kit: isolated from the path on which it is found."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = "import runpy, sys; sys.modules['conformance'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-c", program, ROOT / "examples/offline.py", FIXTURES, tmp_path / "out"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=60)
    stored = [case for case in CASES if case.has_fixture and (case.op, case.dtype) == ("rms_norm", "float32")]
    status, output = conformance("judge", tmp_path / "out", "--json", tmp_path / "report.json")
    assert status == CONFORMS
    assert f"conforms: {len(stored)} passed" in output
    report = read_report(tmp_path / "report.json")
    [port] = report["ports"]
    assert (port["hello"]["name"], report["settings"]["mode"], report["settings"]["seed"]) == ("offline", "offline", 0)
    assert {each["case"] for each in report["verdicts"] if each["status"] == "pass"} == {case.id for case in stored}


def test_a_mistake_is_named_and_the_command_repeats_it(tmp_path):
    x, weight = (golden(NEAR_EPS).inputs[name] for name in ("x", "weight"))
    rstd = 1 / (np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + np.float32(NEAR_EPS.eps))
    write(tmp_path / "out", NEAR_EPS, {"y": weight * x * rstd})
    (tmp_path / "out/port.json").write_text('{"gradients": false}')
    status, output = conformance("judge", tmp_path / "out", "--op", "rms_norm")
    assert status == FAILS
    assert "eps is added to the root, not under it (1 case: float32)" in output
    command = f"judge {tmp_path / 'out'} --case '{NEAR_EPS.id}'"
    assert f"reproduce conformance {command}" in output
    assert conformance(*command.replace("'", "").split())[0] == FAILS


def test_what_is_absent_is_skipped_and_what_is_there_judged(tmp_path):
    write(tmp_path, RANDOM, exact(RANDOM))
    first, second = judge_folder(tmp_path, (RANDOM, NEAR_EPS)).verdicts
    assert (first.status, second.status, second.message) == ("pass", "skip", "no outputs in the folder")
    assert conformance("judge", tmp_path, "--case", NEAR_EPS.id)[0] == NOT_RUN


def test_inputs_left_beside_the_outputs_are_no_matter(tmp_path):
    write(tmp_path, RANDOM, golden(RANDOM).inputs | exact(RANDOM))
    assert verdict(tmp_path).status == "pass"


def test_taps_are_judged(tmp_path):
    taps = {"tap.attention_norm": golden(BLOCK).intermediates["attention_norm"].astype(np.float32)}
    write(tmp_path, BLOCK, exact(BLOCK) | taps)
    passes = verdict(tmp_path, BLOCK)
    assert (passes.status, [tap.output for tap in passes.taps]) == ("pass", ["tap.attention_norm"])
    write(tmp_path, BLOCK, exact(BLOCK) | {name: tap * np.float32(1.5) for name, tap in taps.items()})
    assert verdict(tmp_path, BLOCK).parts_at.output == "tap.attention_norm"


def test_a_failure_on_record_is_expected(tmp_path):
    write(tmp_path, RANDOM, {name: output * np.float32(2) for name, output in exact(RANDOM).items()})
    (tmp_path / "port.json").write_text(json.dumps({"expected": {"*/random": "twice too large"}}))
    assert (verdict(tmp_path).status, verdict(tmp_path).message) == ("expected", "twice too large")


def test_gradients_may_be_left_out_only_if_it_is_said(tmp_path):
    write(tmp_path, RANDOM, exact(RANDOM, "y"))
    assert verdict(tmp_path).status == "error"
    assert verdict(tmp_path).message.startswith("dx, dweight missing: the file holds y; where y alone is computed")
    (tmp_path / "port.json").write_text('{"gradients": false}')
    assert verdict(tmp_path).status == "pass"


def damaged(path: Path, how: str) -> str:
    """Damage a file; returns what is to be said of it."""
    match how:
        case "cut short":
            path.write_bytes(path.read_bytes()[:-9])
            return "not a readable safetensors file"
        case "empty":
            path.write_bytes(b"")
            return "not a readable safetensors file"
        case "folder":
            path.unlink()
            path.mkdir()
            return f"{path}"
        case "shape":
            write_tensors(path, exact(RANDOM) | {"y": np.zeros((3, 2, 33), np.float32)})
            return "y has shape [3, 2, 33]; expected [2, 3, 33]"
        case _:
            write_tensors(path, exact(RANDOM) | {"y": np.zeros((2, 3, 33), np.int32)})
            return "tensor 'y' is I32"


@pytest.mark.parametrize("how", ["cut short", "empty", "folder", "shape", "integers"])
def test_a_bad_file_costs_its_own_case(how, tmp_path):
    words = damaged(write(tmp_path, RANDOM, exact(RANDOM)), how)
    write(tmp_path, NEAR_EPS, exact(NEAR_EPS))
    bad, good = judge_folder(tmp_path, (RANDOM, NEAR_EPS)).verdicts
    assert (bad.status, good.status) == ("error", "pass")
    assert words in bad.message


def test_a_wrong_dtype_fails(tmp_path):
    write(tmp_path, RANDOM, exact(RANDOM) | {"dx": exact(RANDOM)["dx"].astype(np.float64)})
    assert (verdict(tmp_path).status, verdict(tmp_path).message) == ("fail", "dx is float64; expected float32")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "missing: no such folder"),
        ("file", "file: not a folder"),
        ("empty", "empty: no outputs in it: write those of a case to rms_norm/either_order/float64/random.safetensors"),
        ("stray", f"randon.safetensors belongs to no case; did you mean {RANDOM.id}?"),
    ],
)
def test_a_folder_without_outputs_is_wrong_usage(name, words, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    stray = write(tmp_path / "stray", RANDOM, exact(RANDOM))
    stray.rename(stray.with_name("randon.safetensors"))
    status, output = conformance("judge", tmp_path / name)
    assert status == WRONG_USAGE
    assert words in output
    with pytest.raises(OutputsError):
        answered(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "must be an object"),
        ('{"gradient": false}', "field 'gradient' is unknown; did you mean gradients?"),
        ('{"gradients": 1}', "field 'gradients' is 1; it must be true or false"),
        ('{"protocol": 9}', "protocol 9"),
    ],
    ids=["cut", "deep", "list", "typo", "type", "protocol"],
)
def test_a_port_json_that_is_not_one_is_named(text, words, tmp_path):
    (tmp_path / "port.json").write_text(text)
    with pytest.raises(OutputsError) as caught:
        about(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'port.json'}: ")
    assert words in str(caught.value)


def test_an_answer_to_hello_is_a_port_json(tmp_path):
    said = {"type": "hello", "protocol": 2, "name": "phone", "ops": ["rms_norm"], "dtypes": ["float32"], "orders": []}
    (tmp_path / "port.json").write_text(json.dumps(said | {"gradients": False, "versions": {"os": "9"}}))
    hello = about(tmp_path)
    assert (hello.name, hello.ops, hello.gradients, hello.versions) == ("phone", ("rms_norm",), False, {"os": "9"})
