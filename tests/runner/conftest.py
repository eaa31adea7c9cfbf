"""What every test of the runner needs: the right folder to start ports from, and a way to find those that outlive it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from conformance.port import session
from conformance.port.session import start

ROOT = Path(__file__).parents[2]
PROC = Path("/proc/self/environ")


def count_marked(mark: str, *, kill: bool = False) -> int:
    """The processes with a mark in the environment they were started with: children, and children of those."""
    count = 0
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environ.read_bytes():
                count += 1
                if kill:
                    os.kill(int(environ.parent.name), signal.SIGKILL)
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return count


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """What this test's processes are known by."""
    mark = f"started-by-{uuid4()}"
    monkeypatch.setenv("CONFORMANCE_TEST", mark)
    return mark


@pytest.fixture
def wait_for_processes(mark: str) -> Iterator[Callable[..., bool]]:
    """Whether, within some seconds, this test has exactly so many processes running. They end with the test."""
    if not PROC.exists():
        pytest.skip("processes are found in /proc")

    def wait(count: int, seconds: float = 10.0) -> bool:
        until = time.monotonic() + seconds
        while count_marked(mark) != count and time.monotonic() < until:
            time.sleep(0.01)
        return count_marked(mark) == count

    yield wait
    count_marked(mark, kill=True)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(mark: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run every test at the repository's root, and fail it if a process that it started outlives it."""
    monkeypatch.chdir(ROOT)
    yield
    until = time.monotonic() + 2.0
    while PROC.exists() and (left := count_marked(mark)):  # a process killed just now may take a moment
        assert time.monotonic() < until, f"{left} processes are still running"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong usage is said in one line, however long the names of temporary folders are."""
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture
def slow_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port may take a minute to start, however little time it is given for an answer."""
    monkeypatch.setattr(session, "start", lambda launch, family: start(replace(launch, timeout=60.0), family))
