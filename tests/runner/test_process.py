"""One child process: how it may fail to start, fail to answer, and end."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from conformance.port.launch import Launch
from conformance.port.process import STDERR_TAIL, PortFailure, PortProcess
from conformance.port.protocol import PROTOCOL, encode

HOSTILE = Path(__file__).with_name("hostile_ports.py")
VICTIM = encode("case", id=1, case="rms_norm/either_order/float32/zero_rows", outputs="/dev/null")


def start(launch: Launch, timeout: float = 60.0) -> PortProcess:
    return PortProcess(replace(launch, device="mars", timeout=timeout))


def program(*words: str) -> Launch:
    return Launch(words[0], words)


def hostile(*way: str) -> Launch:
    return program(sys.executable, str(HOSTILE), *way)


def bad_port(name: str) -> Launch:
    return Launch(f"tests.runner.bad_ports:{name}")


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        (program("/no/such/program", "--fast"), "could not be started: /no/such/program: No such file or directory"),
        (program(str(HOSTILE)), f"could not be started: {HOSTILE}: Permission denied"),
        (program("false"), "exited with status 1"),
        (bad_port("DiesAtBirth"), "exited with status 5: stillborn"),
        (bad_port("RaisesAtBirth"), "RuntimeError: no mars here, compiled or not"),
        (bad_port("NoPort"), "tests.runner.bad_ports:NoPort is neither a function nor a subclass of conformance.port.Port"),
        (bad_port("NoSuchPort"), "module tests.runner.bad_ports has nothing named 'NoSuchPort'"),
        (Launch("no_such_module"), "No module named 'no_such_module'"),
        (hostile("greets"), "not a protocol message: 'Welcome!'"),
        (hostile("other_protocol"), "the port speaks protocol 3; this kit speaks 1 and 2"),
        (hostile("no_licence"), "no licence found"),
        (hostile("no_hello"), "the port answered hello with 'done'"),
        (hostile("hello_and_more"), r"wrote to stdout more than its answer: 'loading ...\n'; print to stderr instead"),
        (program("\0"), "could not be started: '\\x00': embedded null byte"),
    ],
    ids=lambda value: "_".join(value.command[-2:])[-40:] if isinstance(value, Launch) else "",
)
def test_a_port_that_cannot_be_run_says_why(launch, words):
    with pytest.raises(PortFailure) as failure:
        start(launch)
    assert words in str(failure.value)


def test_a_port_that_does_not_answer_hello_is_not_waited_for():
    began = time.monotonic()
    with pytest.raises(PortFailure, match=r"^did not answer within 0\.3 s$"):
        start(hostile("sleeps"), timeout=0.3)
    assert time.monotonic() - began < 10


def test_a_hung_port_is_given_its_time_and_ends_with_its_children(wait_for_processes):
    process = start(hostile("hangs"))
    began = time.monotonic()
    with pytest.raises(PortFailure, match=r"^did not answer within 0\.5 s$"):
        process.ask(1, VICTIM, timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 5
    assert wait_for_processes(2)
    process.close()
    assert wait_for_processes(0)


def test_a_port_that_ignores_bye_ends_with_its_children(wait_for_processes):
    process = start(hostile("ignores_bye"))
    process.close()
    assert wait_for_processes(0)


def test_a_port_is_asked_to_leave_before_it_is_made_to(tmp_path):
    process = start(hostile("tidies_up", str(tmp_path / "note")))
    process.close()
    assert (tmp_path / "note").read_text() == "tidy"


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("closes_stdout", "closed its stdout"),
        ("shouts", "exited with status 1: !"),
        ("real_time_signal", "was killed by "),
    ],
)
def test_a_port_that_ends_says_how(way, words):
    process = start(hostile(way))
    try:
        with pytest.raises(PortFailure) as failure:
            process.ask(1, VICTIM, timeout=3.0)
    finally:
        process.close()
    assert str(failure.value).startswith(words)


def test_only_the_last_words_are_kept():
    process = start(hostile("shouts"))
    with pytest.raises(PortFailure) as failure:
        process.ask(1, VICTIM, timeout=60.0)
    process.close()
    assert str(failure.value).endswith("! last words")
    assert len(str(failure.value)) < STDERR_TAIL + 100


def test_serve_keeps_stdout_for_the_protocol(monkeypatch):
    """A port may print as it likes: what a program reads is one JSON object a line, and the rest is not lost."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    requests = encode("hello", device="mars", mode="jit") + encode("case", id=5, case="no more fields") + encode("bye")
    result = subprocess.run(bad_port("Talks").command, input=requests, capture_output=True, text=True, timeout=60, check=True)
    hello, error = map(json.loads, result.stdout.splitlines())
    assert (hello["type"], hello["protocol"], hello["name"], hello["device"]) == ("hello", PROTOCOL, "numpy", "mars")
    assert (error["type"], error["id"], error["message"]) == ("error", 5, "KeyError: 'op'")
    assert "read_call" in error["detail"]
    assert result.stderr == "from Python\nfrom C\nfrom a child\n"
