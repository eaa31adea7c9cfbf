"""The processes that a port has started, wherever in the tree they have gone."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

STATE, PARENT, SESSION, STARTED = 0, 1, 3, 19  # proc(5), counted from the state
PATIENCE = 2.0  # seconds for the kernel to end what was killed


def _stat(pid: int) -> list[str]:
    """The fields of a process's `stat` from the third on: the state, the parent, the group, the session, and so on."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()


class Process(NamedTuple):
    """A process, and when it started: its number may be another's by now."""

    pid: int
    started: str

    def kill(self) -> None:
        """End it, if it is still alive."""
        with suppress(OSError):
            if _stat(self.pid)[STARTED] == self.started:
                os.kill(self.pid, signal.SIGKILL)


def new_mark() -> dict[str, str]:
    """What to put into a process's environment, for its descendants to be known by."""
    return {f"CONFORMANCE_PORT_{uuid4().hex}": "1"}


def find(leader: int, mark: dict[str, str]) -> frozenset[Process]:
    """The processes alive of the leader's session and those with the mark, on Linux, and the children of them all.

    Only one that has left the session, emptied its environment and lost its parent is not found.
    """
    (name,) = mark
    alive: dict[int, Process] = {}
    parents: dict[int, int] = {}
    kin: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            fields = _stat(pid)
            if fields[STATE] in "ZX":
                continue
            alive[pid], parents[pid] = Process(pid, fields[STARTED]), int(fields[PARENT])
            if int(fields[SESSION]) == leader or name.encode() in (folder / "environ").read_bytes():
                kin.add(pid)
    while children := {pid for pid, parent in parents.items() if parent in kin} - kin:
        kin |= children
    return frozenset(alive[pid] for pid in kin)


def end(leader: int, mark: dict[str, str], known: frozenset[Process] = frozenset()) -> None:
    """Kill the leader's group, all of its kin, and those known from before."""
    until = time.monotonic() + PATIENCE
    kin = find(leader, mark) | known
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    while kin and time.monotonic() < until:
        for process in kin:
            process.kill()
        time.sleep(0.005)
        kin = find(leader, mark)
