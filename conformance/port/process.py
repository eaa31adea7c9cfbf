"""A port as a child process: start, ask, time out, end. Whatever it does costs its own cases and nothing else."""

import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Protocol

from conformance.port import kin
from conformance.port.launch import Launch
from conformance.port.protocol import EXCERPT, PROTOCOL, Hello, ProtocolError, decode, encode, printable, read_hello
from conformance.port.whereabouts import whereabouts

ANSWERS = ("done", "skip", "error")
LINE_LIMIT = 1 << 20  # bytes of one message; a port that writes more without a line break writes rubbish
CHUNK = 1 << 16  # bytes that are read at a time
STDERR_TAIL = 2_000  # bytes of a port's stderr that are kept, to be shown when it fails
HEARTBEAT = 0.2  # seconds between two looks at whether a silent port is still alive
MOMENT = 0.01  # seconds between two looks at what will soon have happened
FAREWELL = 2.0  # seconds that a port is given to end


class PortFailure(Exception):
    """The process did not answer as it should: it died, hung, or wrote rubbish. The text says which."""


class Silence(PortFailure):
    """It did not answer in time; `where` says what it was doing, if that is known."""

    def __init__(self, said: str, where: str = "") -> None:
        super().__init__(said)
        self.where = where


class Aftermath(PortFailure):
    """It failed after it had answered a request, and before it took in the next, which may be asked of another process."""


class RunningPort(Protocol):
    """A port that has said hello, and can be asked: a `PortProcess`, or one in the runner's own process."""

    @property
    def hello(self) -> Hello: ...  # noqa: D102 - what it says of itself

    def ask(self, id_: int, request: str, timeout: float) -> dict[str, Any]:
        """Send a request and return the answer with its id. Raises `PortFailure`; the port is of no use after that."""
        ...

    def close(self, *, politely: bool = True) -> None:
        """End the port; say bye first, unless it is known not to listen."""
        ...


class Member(Protocol):
    """What can be ended at once, from any thread."""

    def kill(self) -> None: ...  # noqa: D102 - with whatever it has started


class Family:
    """The ports of one run: an interrupt ends them all, and no more are started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: set[Member] = set()
        self._over = False

    def adopt(self, member: Member) -> None:
        """Take a port in, or end it at once where the run is over."""
        with self._lock:
            self._members.add(member)
            if self._over:
                member.kill()

    def release(self, member: Member) -> None:
        """Let go of a port that has ended."""
        with self._lock:
            self._members.discard(member)

    def end(self) -> None:
        """End every port, with whatever it has started."""
        with self._lock:
            self._over = True
            for member in self._members:
                member.kill()


class PortProcess:
    """One running child. It is started by the constructor and answers `ask` until it fails or is closed.

    `environment` is added to the kit's own.

    Raises `PortFailure` where it cannot be started or does not answer hello in time.
    """

    def __init__(
        self, launch: Launch, family: Family | None = None, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        command = launch.command
        self._family = family or Family()
        self._mark = kin.new_mark()
        try:
            self._child = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | environment | self._mark,
                start_new_session=True,  # so that a signal to its group is none to ours
            )
        except OSError as error:
            raise PortFailure(f"could not be started: {command[0]}: {error.strerror}") from None
        except ValueError as error:  # a null character
            raise PortFailure(f"could not be started: {command[0]!r}: {error}") from None
        pipes: list[Any] = [self._child.stdin, self._child.stdout, self._child.stderr]
        self._stdin, self._stdout, self._stderr = pipes
        os.set_blocking(self._stdin.fileno(), False)
        self._ears = select.poll()
        self._open = {pipe.fileno() for pipe in (self._stdout, self._stderr)}
        for descriptor in self._open:
            self._ears.register(descriptor, select.POLLIN)
        self._said, self._complaints = b"", b""  # on stdout, and not yet read; on stderr, the end of it
        self._answered: set[int] = set()
        self._on_ranks = launch.ranks > 1
        self._family.adopt(self)
        greeting = encode("hello", protocol=PROTOCOL, device=launch.device, mode=launch.mode)
        try:
            self.hello: Hello = read_hello(self._exchange(greeting, launch.timeout))
        except ProtocolError as error:
            self.close(politely=False)
            raise PortFailure(str(error)) from None
        except BaseException:
            self.close(politely=False)
            raise

    def ask(self, id_: int, request: str, timeout: float) -> dict[str, Any]:
        """Send a request and return its answer: done, skip or error.

        Raises `PortFailure`, and `Aftermath` where an earlier request is to blame; the process is of no use after either.
        """
        answer = self._exchange(request, timeout)
        answered = answer.get("id")
        if type(answered) is not int or answered != id_:
            again = type(answered) is int and answered in self._answered
            raise (Aftermath if again else PortFailure)(f"answered request {id_} with id {repr(answered)[:EXCERPT]}")
        if answer["type"] not in ANSWERS:
            raise PortFailure(f"answered a case with {answer['type'][:EXCERPT]!r}")
        self._answered.add(id_)
        return answer

    def close(self, *, politely: bool = True) -> None:
        """End the process and its children; say bye first, unless it is known not to listen."""
        known = kin.find(self._child.pid, self._mark)
        if politely:
            with suppress(OSError):
                os.write(self._stdin.fileno(), encode("bye").encode())
            self._stdin.close()
            self._wait()
        kin.end(self._child.pid, self._mark, known)
        self._wait()  # but for what may not be killed
        self._family.release(self)
        for pipe in (self._stdin, self._stdout, self._stderr):
            pipe.close()

    def kill(self) -> None:
        """End it at once, with whatever it has started."""
        kin.end(self._child.pid, self._mark)

    def _exchange(self, request: str, timeout: float) -> dict[str, Any]:
        """Write a line and read one, which must be all that there is to read."""
        deadline = time.monotonic() + timeout
        self._listen(0.0)
        if self._said:
            raise self._before(f"wrote to stdout what nobody had asked for: {self._excerpt()}")
        self._write(request.encode(), deadline)
        line = self._next_line(deadline)
        if not line:
            untaken = self._unread() >= len(request)
            if line is not None:
                raise (self._before if untaken else PortFailure)(self._obituary("closed its stdout"))
            silence = f"did not answer within {timeout:g} s{self._last_words()}"
            where = whereabouts(self._child, self._stderr) if self._on_ranks else ""
            raise self._before(silence) if untaken else Silence(silence, where)
        try:
            message = decode(line.decode(errors="replace"))
        except ProtocolError as error:
            raise PortFailure(f"wrote to stdout what is {error}; print to stderr instead") from None
        if self._said:
            raise PortFailure(f"wrote to stdout more than its answer: {self._excerpt()}; print to stderr instead")
        return message

    def _write(self, request: bytes, deadline: float) -> None:
        while request:
            try:
                request = request[os.write(self._stdin.fileno(), request) :]
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise self._before("did not read its stdin") from None
                self._listen(MOMENT)
            except OSError:
                raise self._before(self._obituary("closed its stdin")) from None

    def _next_line(self, deadline: float) -> bytes | None:
        """The next line of stdout; empty at its end or once the process is gone; None after the deadline."""
        while True:
            line, end, rest = self._said.partition(b"\n")
            if end or len(line) >= LINE_LIMIT:
                self._said = rest
                return line + end
            gone = self._child.poll() is not None  # a child of its own may hold stdout open
            left = deadline - time.monotonic()
            heard = self._listen(min(HEARTBEAT, max(left, 0.0)))
            if self._stdout.fileno() not in (heard if gone else self._open):
                return b""
            if left <= 0:
                return None

    def _listen(self, seconds: float) -> set[int]:
        """Wait for the port to say something, take in some of it, and return where it was said."""
        heard = {descriptor for descriptor, _ in self._ears.poll(1e3 * seconds)}
        for descriptor in heard:
            chunk = os.read(descriptor, CHUNK)
            if not chunk:
                self._ears.unregister(descriptor)
                self._open.discard(descriptor)
            elif descriptor == self._stdout.fileno():
                self._said += chunk
            else:
                self._complaints = (self._complaints + chunk)[-STDERR_TAIL:]
        return heard & self._open

    def _unread(self) -> int:
        """The bytes written to the port's stdin that still lie there."""
        return int.from_bytes(fcntl.ioctl(self._stdin, termios.FIONREAD, bytes(4)), sys.byteorder)

    def _before(self, words: str) -> PortFailure:
        """A failure that came before the port took a request in."""
        return Aftermath(words) if self._answered else PortFailure(words)

    def _wait(self) -> int | None:
        """The status that the process ends with, if it ends soon; what it says is taken in, lest it waits for a reader."""
        until = time.monotonic() + FAREWELL
        while (status := self._child.poll()) is None and time.monotonic() < until:
            self._listen(MOMENT)
            self._said = b""
        return status

    def _obituary(self, alive: str) -> str:
        """How the process ended, or what else is wrong with it, with the last words on its stderr."""
        status = self._wait()
        if status is None:
            how = alive
        elif status >= 0:
            how = f"exited with status {status}"
        else:
            how = f"was killed by {_signal_name(-status)}"
            how += ", as happens where memory runs out" if status == -signal.SIGKILL else ""
        return how + self._last_words()

    def _last_words(self) -> str:
        """The end of what the port wrote to stderr, after a colon; empty if it wrote nothing."""
        until = time.monotonic() + HEARTBEAT
        while time.monotonic() < until and self._listen(0.0):
            continue
        last_words = printable(self._complaints.decode(errors="replace")).strip()
        return f": {last_words}" if last_words else ""

    def _excerpt(self) -> str:
        return repr(self._said[:EXCERPT].decode(errors="replace"))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
