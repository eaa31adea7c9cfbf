"""Where a silent rank is in its Python: what tells one that hangs from those that wait for it."""

import faulthandler
import os
import re
import select
import signal
import subprocess
import time
from contextlib import suppress
from typing import IO

from conformance.port.protocol import printable

ASKED = signal.SIGUSR1
PATIENCE = 0.2  # seconds in which a process answers that is not stopped
CHUNK = 1 << 16  # bytes that are read at a time
INNERMOST = re.compile(rb'most recent call first\):\n  File "(?:[^"]*/)?([^"/]+)", line (\d+) in (\S+)')


def tell() -> None:
    """Have this process write to stderr where it is, innermost call first, whenever it is asked; even while it waits in C."""
    faulthandler.register(ASKED, all_threads=False)


def whereabouts(child: subprocess.Popen[bytes], stderr: IO[bytes]) -> str:
    """The innermost call of a child that tells, " (in function, file:line)"; empty where it says nothing, or not in time."""
    with suppress(ProcessLookupError):
        child.send_signal(ASKED)
    said, until = b"", time.monotonic() + PATIENCE
    while (left := until - time.monotonic()) > 0:
        if select.select([stderr], [], [], left)[0]:
            said += os.read(stderr.fileno(), CHUNK)
        if found := INNERMOST.search(said):
            file, line, function = (each.decode(errors="replace") for each in found.groups())
            return printable(f" (in {function}, {file}:{line})")
    return ""
