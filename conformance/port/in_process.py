"""A port in the runner's own process, so that `breakpoint()` and a debugger work: no time-out, and nothing contained."""

import sys
import traceback
from bdb import BdbQuit
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from conformance.port.base import Skip
from conformance.port.launch import Launch
from conformance.port.naming import load
from conformance.port.process import PortFailure
from conformance.port.protocol import Hello, decode, read_hello
from conformance.port.serving import answered, greeting, summary, unanswered


class PortInProcess:
    """What a `PortProcess` is to its users, with tensors and answers the same; a traceback goes to stderr where it happens.

    Raises `PortFailure` where the port cannot be made.
    """

    def __init__(self, launch: Launch) -> None:
        self._name = launch.spec
        try:
            with _within_a_process(self._name):
                port = launch.made or load(self._name, launch.op)
                self._port = port(launch.device, jit=launch.mode == "jit")
                self.hello: Hello = read_hello(decode(greeting(self._port)))
        except PortFailure:
            raise
        except Exception as error:
            traceback.print_exc()
            raise PortFailure(summary(error)) from None

    def ask(self, id_: int, request: str, timeout: float) -> dict[str, Any]:
        """The answer to a request, however long it takes. Raises `PortFailure` where the port would have ended its process."""
        message = decode(request)
        try:
            with _within_a_process(self._name):
                return decode(answered(self._port, message))
        except PortFailure:
            raise
        except Exception as error:
            if not isinstance(error, Skip):
                print(f"{message['case']}:", file=sys.stderr)
                traceback.print_exc()
            return decode(unanswered(message, error))

    def close(self, *, politely: bool = True) -> None:
        """Nothing to end."""


@contextmanager
def _within_a_process(name: str) -> Generator[None]:
    """As if it were one: to exit is to fail, and to quit the debugger is to interrupt the run.

    Nor does the port see the kit's arguments, which a library that parses the command line (absl, argparse) would refuse.
    """
    arguments = sys.argv
    sys.argv = [name]
    try:
        yield
    except BdbQuit:
        raise KeyboardInterrupt from None
    except SystemExit as end:
        raise PortFailure(f"exited with status {end.code or 0}") from None
    finally:
        sys.argv = arguments
