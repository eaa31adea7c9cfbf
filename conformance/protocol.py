"""The port protocol: JSON lines on stdin and stdout, tensors in safetensors files. docs/protocol.md is its one page.

The runner asks, the port answers, one line each way:

    {"type": "hello", "protocol": 1, "device": "cpu", "mode": "jit"}
                                            ->  {"type": "hello", "protocol": 1, "name": …, "ops": […], …}
    {"type": "case", "id": 7, "op": …, …}   ->  {"type": "done" | "skip" | "error", "id": 7, …}
    {"type": "bye"}                         ->  the port exits
"""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PROTOCOL = 1


class ProtocolError(ValueError):
    """A line that is not the message it should be; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a port says of itself. Cases outside of it are skipped, with the reason in words."""

    name: str
    ops: tuple[str, ...]
    dtypes: tuple[str, ...]
    orders: tuple[str, ...]
    weight_offsets: tuple[int, ...]
    gradients: bool
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)
    """Globs of case ids that are known to fail, each with the reason."""
    taps: bool = False
    """Whether it exports a block's intermediates."""


@dataclass(frozen=True, slots=True)
class Call:
    """One case as a port is asked it.

    `inputs` and `outputs` are paths of safetensors files: the port reads x, dy and the parameters from the one, in the
    dtypes they are to be used in, and writes the tensors `asked` for to the other. `layout` says how x and dy are to lie
    in memory. `order` and `dtype` are as in a case's id. `settings` are the constants of an op that is no norm. With `taps` the
    port writes its intermediates as well, each as `tap.` and its name.
    """

    id: int
    case: str
    op: str
    dtype: str
    order: str
    weight_offset: int
    eps: float
    layout: str
    asked: tuple[str, ...]
    inputs: str
    outputs: str
    settings: dict[str, Any] = field(default_factory=dict)
    taps: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What a port returns for a case: its outputs, and the inputs that are not what they were; None where it does not say."""

    outputs: dict[str, np.ndarray]
    overwrote: tuple[str, ...] | None = None


def encode(type_: str, **fields: Any) -> str:
    """A message as one line of JSON."""
    return json.dumps({"type": type_, **fields}) + "\n"


def decode(line: str) -> dict[str, Any]:
    """A line to a message. Raises `ProtocolError` unless it is a JSON object with a `type`."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError(f"not a protocol message: {line.rstrip()[:200]!r}")
    return message


def read_hello(message: dict[str, Any]) -> Hello:
    """The port's answer to hello. Raises `ProtocolError` naming the field that is missing or wrong."""
    if message["type"] == "error":
        raise ProtocolError(str(message.get("message", "the port answered hello with an error")))
    if message["type"] != "hello":
        raise ProtocolError(f"the port answered hello with {message['type']!r}")
    if message.get("protocol") != PROTOCOL:
        raise ProtocolError(f"the port speaks protocol {message.get('protocol')!r}; this kit speaks {PROTOCOL}")
    for name in ("ops", "dtypes", "orders"):
        value = message.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ProtocolError(f"hello: field {name!r} is {value!r}; it must be a list of strings")
    weight_offsets = message.get("weight_offsets", [0])
    if not isinstance(weight_offsets, list) or any(offset not in (0, 1) for offset in weight_offsets):
        raise ProtocolError(f"hello: field 'weight_offsets' is {weight_offsets!r}; it must be a list of 0 and 1")
    if not isinstance(message.get("gradients"), bool):
        raise ProtocolError(f"hello: field 'gradients' is {message.get('gradients')!r}; it must be true or false")
    if not isinstance(message.get("taps", False), bool):
        raise ProtocolError(f"hello: field 'taps' is {message['taps']!r}; it must be true or false")
    for name in ("versions", "expected"):
        if not isinstance(message.get(name, {}), dict):
            raise ProtocolError(f"hello: field {name!r} is {message[name]!r}; it must be an object of strings")
    return Hello(
        name=str(message.get("name", "port")),
        ops=tuple(message["ops"]),
        dtypes=tuple(message["dtypes"]),
        orders=tuple(message["orders"]),
        weight_offsets=tuple(weight_offsets),
        gradients=message["gradients"],
        device=str(message.get("device", "")),
        versions={str(key): str(value) for key, value in message.get("versions", {}).items()},
        expected={str(glob): str(reason) for glob, reason in message.get("expected", {}).items()},
        taps=message.get("taps", False),
    )


def read_overwrote(message: dict[str, Any]) -> tuple[str, ...] | None:
    """The inputs that a port says it has overwritten, if it says. Raises `ProtocolError` unless they are a list of strings."""
    value = message.get("overwrote")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ProtocolError(f"field 'overwrote' is {value!r}; it must be a list of strings")
    return tuple(value)


def read_call(message: dict[str, Any]) -> Call:
    """The runner's question, on the port's side; fields that this version does not know are ignored."""
    optional = {"settings", "taps"} - message.keys()
    fields: dict[str, Any] = {name: message[name] for name in Call.__dataclass_fields__ if name not in optional}
    fields["asked"] = tuple(fields["asked"])
    return Call(**fields)
