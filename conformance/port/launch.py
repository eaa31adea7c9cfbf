"""What it takes to start a port."""

import shlex
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

Mode = Literal["jit", "eager"]


@dataclass(frozen=True, slots=True)
class Launch:
    """What it takes to start one port.

    spec
        Its name, by which reports call it: what the user wrote for it.
    program
        The program that speaks the protocol, with its arguments; empty where the port is a class in Python, which
        `naming.load` finds by its spec.
    exec
        Whether the spec is a command line, which the kit's own command line takes after `--exec`.
    device, mode
        Where it computes, in its framework's words, and whether compiled or operation by operation.
    timeout
        Seconds that it may take for one answer.
    ranks
        On how many processes, each of which has a part of every case.
    in_process
        Whether it is run in this very process, for a debugger. A class in Python alone can be, and no timeout holds.
    op
        Which op it is, where it is a function whose name may not say so.
    made
        The class itself, where it is at hand and not to be found by its spec; in this very process alone.
    """

    spec: str
    program: tuple[str, ...] = ()
    exec: bool = False
    device: str = "cpu"
    mode: Mode = "jit"
    timeout: float = 120.0
    ranks: int = 1
    in_process: bool = False
    op: str = ""
    made: Any = field(default=None, repr=False, compare=False)

    @property
    def is_python(self) -> bool:
        """Whether it is a class in Python, and no program."""
        return not self.program

    @property
    def command(self) -> list[str]:
        """What starts it as a process; for a class `conformance.port` speaks the protocol."""
        return list(self.program) or [sys.executable, "-m", "conformance.port", self.spec, *([self.op] if self.op else [])]

    @property
    def argument(self) -> str:
        """What names it on the kit's command line."""
        return "--exec " * self.exec + shlex.quote(self.spec)
