"""A port as a child process: start, ask, time out, restart. Whatever it does costs its own cases and nothing else."""

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import Any

from conformance.protocol import PROTOCOL, Hello, ProtocolError, decode, encode, read_hello

LINE_LIMIT = 1 << 20  # bytes of one message; a port that writes more without a line break writes rubbish
STDERR_TAIL = 2_000  # characters of a dead port's stderr that are worth showing
HEARTBEAT = 0.2  # seconds between two looks at whether a silent port is still alive


class PortFailure(Exception):
    """The process did not answer as it should: it died, hung, or wrote rubbish. The text says which."""


class Family:
    """The children of one run: an interrupt ends them all, and no more are started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._over = False

    def adopt(self, child: subprocess.Popen[bytes]) -> None:
        """Take a child in, or end it at once where the run is over."""
        with self._lock:
            self._children.add(child)
            if self._over:
                kill(child)

    def release(self, child: subprocess.Popen[bytes]) -> None:
        """Let go of a child that has ended."""
        with self._lock:
            self._children.discard(child)

    def end(self) -> None:
        """End every child, with whatever it has started."""
        with self._lock:
            self._over = True
            for child in self._children:
                kill(child)


class PortProcess:
    """One running child. It is started by the constructor and answers `ask` until it fails or is closed.

    Raises `PortFailure` where it cannot be started or does not answer hello within `timeout` seconds.
    """

    def __init__(self, command: list[str], *, device: str, mode: str, timeout: float, family: Family | None = None) -> None:
        self._family = family or Family()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process; close() closes it
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,  # so that its own children end with it
            )
        except OSError as error:
            self._stderr.close()
            raise PortFailure(f"could not be started: {command[0]}: {error.strerror}") from None
        self._family.adopt(self._child)
        self._lines: queue.Queue[bytes] = queue.Queue(maxsize=4)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        greeting = encode("hello", protocol=PROTOCOL, device=device, mode=mode)
        try:
            self.hello: Hello = read_hello(self._exchange(greeting, timeout))
        except ProtocolError as error:
            self.close(politely=False)
            raise PortFailure(str(error)) from None
        except BaseException:
            self.close(politely=False)
            raise

    def ask(self, id_: int, request: str, timeout: float) -> dict[str, Any]:
        """Send a request and return the answer with its id. Raises `PortFailure`; the process is of no use after that."""
        try:
            answer = self._exchange(request, timeout)
        except ProtocolError as error:
            raise PortFailure(f"wrote to stdout what is {error}; print to stderr instead") from None
        if answer.get("id") != id_:
            raise PortFailure(f"answered request {id_} with id {answer.get('id')!r}")
        return answer

    def close(self, *, politely: bool = True) -> None:
        """End the process and its children; say bye first, unless it is known not to listen."""
        assert self._child.stdin is not None
        if politely:
            with suppress(OSError, subprocess.TimeoutExpired):
                self._child.stdin.write(encode("bye").encode())
                self._child.stdin.close()
                self._child.wait(timeout=2.0)
        kill(self._child)
        with suppress(subprocess.TimeoutExpired):  # what may not be killed is not waited for
            self._child.wait(timeout=2.0)
        self._family.release(self._child)
        with suppress(OSError):
            self._child.stdin.close()
        deadline = time.monotonic() + 2.0
        while self._reader.is_alive() and time.monotonic() < deadline:
            with suppress(queue.Empty):  # make room: the reader may have more to say
                self._lines.get(timeout=0.01)
        self._stderr.close()

    def _exchange(self, request: str, timeout: float) -> dict[str, Any]:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(request.encode())
            self._child.stdin.flush()
        except OSError:
            raise PortFailure(self._obituary()) from None
        line = self._next_line(time.monotonic() + timeout)
        if line is None:
            raise PortFailure(f"did not answer within {timeout:g} s{self._last_words()}")
        if not line:
            raise PortFailure(self._obituary())
        return decode(line.decode(errors="replace"))

    def _next_line(self, deadline: float) -> bytes | None:
        """The next line of stdout; empty at its end or once the process is gone; None after the deadline."""
        while True:
            gone = self._child.poll() is not None  # a child of its own may hold stdout open
            try:
                return self._lines.get(timeout=max(0.0, min(HEARTBEAT, deadline - time.monotonic())))
            except queue.Empty:
                if gone:
                    return b""
                if time.monotonic() >= deadline:
                    return None

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as lines:
            while line := lines.readline(LINE_LIMIT):
                self._lines.put(line)
        self._lines.put(b"")

    def _obituary(self) -> str:
        """How the process ended, with the last words on its stderr."""
        try:
            status = self._child.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            return f"closed its stdout{self._last_words()}"
        how = f"exited with status {status}" if status >= 0 else f"was killed by {_signal_name(-status)}"
        return how + self._last_words()

    def _last_words(self) -> str:
        """The end of what the port wrote to stderr, after a colon; empty if it wrote nothing."""
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - STDERR_TAIL))
        last_words = self._stderr.read().decode(errors="replace").strip()
        return f": {last_words}" if last_words else ""


def kill(child: subprocess.Popen[bytes]) -> None:
    """End a child and whatever it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def serve_command(spec: str) -> list[str]:
    """The command that serves a Python port."""
    return [sys.executable, "-m", "conformance", "serve", spec]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
