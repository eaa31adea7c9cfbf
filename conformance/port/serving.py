"""How a Python port is served: messages on stdin and stdout, tensors in files."""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from conformance.numbers.tensors import as_bytes, read_tensors
from conformance.port.base import Port, Skip
from conformance.port.naming import load
from conformance.port.protocol import PROTOCOL, decode, encode, read_call, read_repeat
from conformance.port.timing import repeated
from conformance.port.whereabouts import tell


def serve(find: Callable[[], type[Port]]) -> None:
    """Speak the protocol on stdin and stdout, until `bye` or the end of input, for the port that is found.

    A failing case is answered as an error.
    """
    requests, answers = sys.stdin, _private_stdout()
    tell()
    port: Port | None = None
    for line in requests:
        message = decode(line)
        if message["type"] == "bye":
            os._exit(0)  # at once: a framework may take seconds to tidy up
        try:
            if message["type"] == "hello":
                port = find()(message["device"], jit=message["mode"] == "jit")
                answer = greeting(port)
            else:
                assert port is not None, "the first message is hello"
                answer = answered(port, message)
        except Exception as error:
            answer = unanswered(message, error)
        answers.write(answer)
        answers.flush()


def serve_named(name: str, op: str = "") -> None:
    """Serve the Python port of this name (`naming.load`); `op` is the one that a function is."""
    sys.argv = [name]  # the kit's arguments are none of the port's, nor of a library that parses the command line
    serve(partial(load, name, op))


# CPython maps 16 KiB for frames whenever a call crosses the end of what is mapped, and unmaps them when it returns, which a
# compiler's loops do all the time (python/cpython#142183). This frame asks for so much that all below it fit beside it.
serve.__code__ = serve.__code__.replace(co_stacksize=1 << 16)


def greeting(port: Port) -> str:
    """A port's answer to hello."""
    return encode("hello", protocol=PROTOCOL, **asdict(port.hello()))


def answered(port: Port, message: dict[str, Any]) -> str:
    """A port's answer to a case, once or timed, its outputs written. Raises whatever the port raises."""
    if message["type"] == "time":
        repeat = read_repeat(message)
        told = asdict(repeated(port, repeat, read_tensors(Path(repeat.call.inputs))))
        Path(repeat.call.outputs).write_bytes(as_bytes(told.pop("outputs")))
        return encode("done", id=repeat.call.id, **told)
    call = read_call(message)
    given = port.answer(call, read_tensors(Path(call.inputs)))
    outputs: dict[str, Any] = dict(given.outputs)
    for name, output in outputs.items():
        if not isinstance(output, np.ndarray):
            raise TypeError(f"output {name!r} is a {type(output).__name__}; it must be a NumPy array")
    Path(call.outputs).write_bytes(as_bytes(outputs))
    counted = {} if given.collectives is None else {"collectives": asdict(given.collectives)}
    return encode("done", id=call.id, overwrote=given.overwrote, **counted)


def unanswered(message: dict[str, Any], error: Exception) -> str:
    """A port's answer where it raised: why it skips the case, or what went wrong."""
    if isinstance(error, Skip):
        return encode("skip", id=message.get("id"), reason=str(error))
    detail = "".join(traceback.format_exception(error))
    return encode("error", id=message.get("id"), message=summary(error), detail=detail)


def summary(error: Exception) -> str:
    """An exception as Python prints it: its type alone, where it says nothing, and no type where the kit itself says it."""
    said = str(error)
    if said and type(error).__module__.startswith("conformance."):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _private_stdout() -> TextIO:
    """Keep stdout for the protocol: whatever the port or its framework prints goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers
