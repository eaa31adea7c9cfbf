"""The processes that a port has started, wherever in the tree they have gone."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

PATIENCE = 2.0  # seconds for the kernel to end what was killed


def new_mark() -> dict[str, str]:
    """What to put into a process's environment, for its descendants to be known by."""
    return {f"CONFORMANCE_PORT_{uuid4().hex}": "1"}


def end(leader: int, mark: dict[str, str]) -> None:
    """Kill the leader of a session, its group, and on Linux all that descend from it, even from a session of their own.

    Only a process that has emptied its environment, left the session, and lost its parent is not found.
    """
    until = time.monotonic() + PATIENCE
    kin = _kin(leader, mark)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    while kin and time.monotonic() < until:
        for pid in kin:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
        kin = _kin(leader, mark)


def _kin(leader: int, mark: dict[str, str]) -> set[int]:
    """Those alive in the leader's session, those with the mark, and the children of them all."""
    (name,) = mark
    parents: dict[int, int] = {}
    kin: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            state, parent, _, session = (folder / "stat").read_text(errors="replace").rpartition(") ")[2].split()[:4]
            if state in "ZX":
                continue
            parents[pid] = int(parent)
            if int(session) == leader or name.encode() in (folder / "environ").read_bytes():
                kin.add(pid)
    while children := {pid for pid, parent in parents.items() if parent in kin} - kin:
        kin |= children
    return kin
