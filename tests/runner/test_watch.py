"""What a run shows while it goes on, and the diagnosis beside it."""

import os
import pty
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from conformance.cli import watch as shown
from conformance.cli.watch import watched
from conformance.judging.compare import Verdict
from conformance.judging.diagnose import diagnose
from conformance.ops.cases import select
from conformance.port.naming import by_name
from conformance.report import diagnosing
from conformance.report.diagnosing import Diagnosing
from conformance.running.runner import run_port

WRONG = "tests.runner.bad_ports:EpsOutsideRoot"
CASES = select("rms_norm/either_order/float32/r*", exclude="*rows_8192")
SAID = f"{WRONG}: rms_norm: eps is added to the root, not under it"


@pytest.fixture(scope="module")
def verdicts() -> tuple[Verdict, ...]:
    return run_port(by_name(WRONG), CASES).verdicts


def waited(written, words: str, seconds: float = 30.0) -> bool:
    until, said = time.monotonic() + seconds, ""
    while words not in said and time.monotonic() < until:
        time.sleep(0.01)
        said += written()
    return words in said


def test_a_cause_is_told_when_the_last_case_of_its_op_is_judged(verdicts, capsys):
    asked = CASES + select("layer_norm/either_order/float32/random")
    with watched([WRONG], asked, 0, quiet=False) as (take, _):
        for verdict in verdicts[:-1]:
            take(verdict)
        time.sleep(0.2)
        assert SAID not in capsys.readouterr().err
        take(verdicts[-1])
        assert waited(lambda: capsys.readouterr().err, SAID)


def test_what_is_found_when_the_run_is_over_is_left_to_the_report(verdicts, capsys):
    with watched([WRONG], CASES, 0, quiet=False) as (take, diagnose_beside):
        for verdict in verdicts[:-1]:
            take(verdict)
    take(verdicts[-1])
    assert diagnose_beside(verdicts, 0)
    assert "eps" not in capsys.readouterr().err


def test_a_quiet_run_tells_no_cause(verdicts, capsys):
    with watched([WRONG], CASES, 0, quiet=True) as (take, diagnose_beside):
        for verdict in verdicts:
            take(verdict)
        assert diagnose_beside(verdicts, 0)
    assert capsys.readouterr().err == ""


def test_what_takes_long_is_named_with_its_program(verdicts, capsys, monkeypatch):
    monkeypatch.setattr(shown, "SLOW", 0.2)
    with watched([WRONG], CASES, 0, quiet=False) as (take, _):
        for verdict in verdicts[:-1]:
            take(verdict)
        time.sleep(0.3)
        take(verdicts[-1])
    assert f"took longest: {WRONG} rms_norm/either_order/float32 0 s" in capsys.readouterr().err


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """How many verdicts every diagnosis was given."""
    given: list[int] = []

    def counting(verdicts, seed):
        given.append(len(verdicts))
        return diagnose(verdicts, seed)

    monkeypatch.setattr(diagnosing, "diagnose", counting)
    return given


def test_what_was_diagnosed_beside_the_run_is_not_diagnosed_again(verdicts, counted):
    beside = Diagnosing(CASES, 0)
    for verdict in reversed(verdicts):  # processes that share the cases end in any order
        beside.add(verdict)
    assert beside(verdicts, 0) == diagnose(verdicts, 0)
    assert counted == [len(verdicts)]


def test_what_has_changed_since_is_diagnosed_again(verdicts, counted):
    beside = Diagnosing(CASES, 0)
    for verdict in verdicts:
        beside.add(verdict)
    spoilt = (replace(verdicts[0], status="error", outputs=()), *verdicts[1:])
    assert beside(spoilt, 0) == diagnose(spoilt, 0)
    assert beside(verdicts, 0) == diagnose(verdicts, 0)
    assert counted == [len(verdicts)] * 2


def test_what_the_diagnosis_raises_is_raised_where_it_is_asked_for(verdicts, monkeypatch):
    def broken(verdicts, seed):
        raise ZeroDivisionError

    monkeypatch.setattr(diagnosing, "diagnose", broken)
    beside = Diagnosing(CASES, 0)
    for verdict in verdicts:
        beside.add(verdict)
    with pytest.raises(ZeroDivisionError):
        beside(verdicts, 0)


def test_on_a_terminal_the_matrix_fills():
    ours, theirs = pty.openpty()
    ask = [sys.executable, "-m", "conformance", "run", WRONG, "--case", CASES[0].id]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    subprocess.run(ask, stdout=subprocess.DEVNULL, stderr=theirs, env=environment, timeout=60, check=False)
    os.close(theirs)
    said = b""
    with suppress(OSError):  # at the end, on Linux
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    assert "judged/asked so far" in said.decode()
    assert "0/1" in said.decode()
