"""Planted faults are found at random, made small, and kept; an honest port is not accused."""

import json
import os
import shlex
import subprocess
import sys
import time
from functools import cache
from math import prod
from pathlib import Path

import pytest

from conformance.numbers.rounding import DTYPES
from conformance.ops.case_files import as_json, read_case
from conformance.ops.golden import golden
from conformance.ops.norms.cases import ROW_NORMS
from conformance.port.launch import Launch
from conformance.report.report import Settings
from conformance.tools.fuzzing.fuzz import Found, Search, fuzz
from conformance.tools.fuzzing.report import report_on
from tests.runner.test_cli import CONFORMS, FAILS, HONEST, NO_LAYER_NORM, NOT_RUN, WRONG, WRONG_USAGE, conformance


def faulty(name: str) -> str:
    return f"tests.runner.faulty_ports:{name}"


@cache
def search(port: str, seconds: float, timeout: float = 60.0, **options) -> Search:
    return fuzz(Launch(port, timeout=timeout), seconds=seconds, **options)


def first(port: str, seconds: float = 60.0, **options) -> Found:
    """The first failure that is found."""
    [found] = search(port, seconds, most=1, **options).found
    return found


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("port", "elements", "plain"),
    [
        (WRONG, 1, {"layout": "contiguous", "weight": "absent", "op": "rms_norm"}),
        (faulty("LosesLastRow"), 1, {"layout": "contiguous", "weight": "signed", "op": "rms_norm"}),
        (faulty("IgnoresStrides"), 4, {"layout": "permuted", "weight": "absent", "op": "rms_norm"}),
        (faulty("OnePassVariance"), 4, {"layout": "contiguous", "weight": "absent", "op": "layer_norm"}),
    ],
    ids=lambda value: value.rpartition(":")[2] if isinstance(value, str) else "",
)
def test_a_fault_is_found_and_made_small(port, elements, plain):
    found = first(port)
    assert found.verdict.status == "fail"
    assert found.again
    case = found.verdict.case
    assert 0 < prod(case.shape) <= elements
    assert case.dtype == "float32"
    assert {name: getattr(case, name) for name in plain} == plain
    assert case.dy == "random"
    assert case.x.rows == "dense"


def test_a_port_that_hangs_costs_no_more_than_it_is_given(slow_start):
    began = time.monotonic()
    found = first(faulty("HangsOnEmptyBatches"), 4.0, timeout=1.0)
    assert found.verdict.message == "the port did not answer within 1 s"
    assert 0 in found.verdict.case.shape
    assert time.monotonic() - began < 30  # 4 to find it, 4 to make it smaller, and some to ask again, to start and to end


def test_a_port_that_fails_once_is_said_to():
    found = first(faulty("FailsOnce"))
    assert found.verdict.message.startswith("y has shape [0")
    assert not found.again


def test_an_honest_port_is_not_accused_and_nothing_is_remembered():
    before = golden.cache_info().currsize
    result = search(HONEST, 4.0, seed=3)
    assert result.found == ()
    assert result.judged.total() > 20
    assert {op for op, _ in result.judged} == set(ROW_NORMS)
    assert {dtype for _, dtype in result.judged} == set(DTYPES)
    assert golden.cache_info().currsize == before


def test_a_mistake_is_named_only_if_all_witnesses_bear_it_out():
    made, not_made = first(WRONG), first(faulty("LosesLastRow"))
    [told], [untold] = (report_on(each, Settings(0, "cpu", "jit"), "port").causes for each in (made, not_made))
    assert told.what == "eps is added to the root, not under it"
    assert untold.what.endswith("no known mistake explains it")  # though in a single row dweight looks left out
    assert told.cases == (made.verdict.case.id,)


def test_a_search_goes_on_after_a_failure_and_keeps_those_that_are_unlike():
    """eps outside the root in every dtype is one; a lost row and a crash at one width, in either op, are more."""
    result = search(faulty("ThreeFaults"), 120.0, most=3)
    kinds = [(each.verdict.status, each.diagnosis.mistake.id if each.diagnosis else "") for each in result.found]
    assert sorted(kinds) == [("error", ""), ("fail", ""), ("fail", "eps_outside_root")]
    assert len({each.verdict.case.id for each in result.found}) == 3
    assert all(each.again for each in result.found)
    [crash] = [each.verdict for each in result.found if each.verdict.status == "error"]
    assert (crash.message, crash.case.shape) == ("the port exited with status 3", (17,))


def test_a_known_failure_is_not_found_twice():
    [found] = search(WRONG, 5.0, op="rms_norm", dtype="float32").found
    assert found.diagnosis.mistake.id == "eps_outside_root"
    assert found.count > 1


def test_the_same_seed_asks_the_same_and_leaves_nothing_behind(tmp_path):
    def asked(seed: int, name: str) -> list[str]:
        command = [sys.executable, "-m", "conformance", "fuzz", faulty("TakesNotes"), "--seconds", "2", "--seed", str(seed)]
        environment = os.environ | {"NOTES": str(tmp_path / name), "PYTHONPATH": str(Path.cwd())}
        empty = tmp_path / f"{name}_cwd"
        empty.mkdir()
        result = subprocess.run(command, env=environment, cwd=empty, capture_output=True, text=True, timeout=60, check=True)
        assert result.stderr == ""
        assert list(empty.iterdir()) == []  # nothing is left in the user's folder
        return (tmp_path / name).read_text().splitlines()

    one, again, other = asked(1, "one"), asked(1, "again"), asked(2, "other")
    count = min(map(len, (one, again, other)))
    assert count > 10
    assert one[:count] == again[:count]
    assert one[:count] != other[:count]


def test_what_is_kept_can_be_run(tmp_path):
    kept = tmp_path / "kept.json"
    status, said = conformance("fuzz", WRONG, "--dtype", "float64", "--op", "layer_norm", "--most", 1, "--keep", kept)
    assert status == FAILS
    assert "does not conform" in said
    assert "float64" in said
    assert "seed 0" in said
    case = read_case(json.loads(kept.read_text()))
    assert (case.op, case.dtype) == ("layer_norm", "float64")
    assert as_json(case).strip() in said
    command = f"conformance run {WRONG} --cases {kept} --case '{case.id}'"
    assert f"reproduce {command}" in said

    status, said = conformance("run", WRONG, "--cases", kept)
    assert status == FAILS
    assert "1 failed" in said
    assert f"reproduce {command}" in said
    assert conformance("run", HONEST, "--cases", kept, "--case", case.id)[0] == CONFORMS
    assert conformance("run", HONEST, "--cases", kept, "--dtype", "float32")[0] == WRONG_USAGE


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((HONEST, "--seconds", 1), CONFORMS, "found nothing: "),
        (("--exec", shlex.join(Launch(WRONG).command), "--most", 1), FAILS, "conformance run --exec '"),
        (("no_such_module", "--seconds", 1), NOT_RUN, "no_such_module could not be run: ModuleNotFoundError"),
        ((NO_LAYER_NORM, "--op", "layer_norm"), NOT_RUN, "not judged: the port claims nothing of what was asked for"),
        ((faulty("SkipsAll"), "--seconds", 1), NOT_RUN, "not judged: the port skipped every case"),
        ((), WRONG_USAGE, "name one port"),
        ((HONEST, "--exec", "true"), WRONG_USAGE, "name one port"),
        ((HONEST, "--keep", "/no/such/folder/kept.json"), WRONG_USAGE, "there is no folder /no/such/folder"),
    ],
    ids=["honest", "wrong", "no port", "no op", "skips all", "none", "two", "no folder"],
)
def test_what_became_of_it_is_the_exit_status(arguments, status, words):
    result = conformance("fuzz", *arguments)
    assert result[0] == status
    assert words in result[1]


def test_all_that_is_found_is_kept_in_one_file(tmp_path):
    kept = tmp_path / "kept.json"
    status, said = conformance("fuzz", faulty("TwoFaults"), "--dtype", "float32", "--most", 2, "--keep", kept)
    assert status == FAILS
    assert "2 failures unlike one another" in said
    cases = [read_case(each) for each in json.loads(kept.read_text())]
    assert len(cases) == 2
    status, said = conformance("run", faulty("TwoFaults"), "--cases", kept)
    assert status == FAILS
    assert "does not conform: 2 failed in" in said


def test_without_hypothesis_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, said = conformance("fuzz", HONEST)
    assert status == WRONG_USAGE
    assert "norm-conformance[fuzz]" in said


def test_a_file_that_holds_no_cases_is_wrong_usage(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("[]")
    status, said = conformance("run", HONEST, "--cases", broken)
    assert status == WRONG_USAGE
    assert "an empty list" in said
