"""A port in the runner's own process, so that `breakpoint()` and a debugger work: no time-out, and nothing contained."""

import sys
import traceback
from bdb import BdbQuit
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any

from conformance.case import Case
from conformance.naming import load
from conformance.port import Skip, answered, greeting, summary, unanswered
from conformance.process import PortFailure
from conformance.protocol import Hello, decode, read_hello
from conformance.runner import PortRun, run_port


def run_in_process(names: Iterable[str], cases: tuple[Case, ...], *, seed: int, device: str, mode: str) -> tuple[PortRun, ...]:
    """Run every port, by its name, over all cases, one after the other; quit the debugger, and the run is interrupted."""
    starts = {name: partial(PortInProcess, name, device=device, mode=mode) for name in names}
    return tuple(run_port(name, start, cases, seed, inf, lambda verdict: None) for name, start in starts.items())


class PortInProcess:
    """What a `PortProcess` is to its users, with tensors and answers the same; a traceback goes to stderr where it happens.

    Raises `PortFailure` where the port cannot be made.
    """

    def __init__(self, name: str, *, device: str, mode: str) -> None:
        self._name = name
        try:
            with _within_a_process(name):
                self._port = load(name)(device, jit=mode == "jit")
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
