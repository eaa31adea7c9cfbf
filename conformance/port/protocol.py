"""The port protocol: JSON lines on stdin and stdout, tensors in safetensors files. docs/protocol.md is its one page.

The runner asks, the port answers, one line each way:

    {"type": "hello", "protocol": 2, "device": "cpu", "mode": "jit"}
                                            ->  {"type": "hello", "protocol": 2, "name": …, "ops": […], …}
    {"type": "case", "id": 7, "op": …, …}   ->  {"type": "done" | "skip" | "error", "id": 7, …}
    {"type": "bye"}                         ->  the port exits

A port in Python is also asked to time itself; for one in another language nothing depends on it:

    {"type": "time", "id": 8, "op": …, …}   ->  {"type": "done" | "skip" | "error", "id": 8, "seconds": […], …}
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

import numpy as np

from conformance.question.collectives import Collectives

PROTOCOL = 2
SERVED = (1, PROTOCOL)  # what a port may speak: protocol 2 adds `gradients` and `cotangents` to a case, and takes nothing away
EXCERPT = 200  # characters of what is wrong that are shown
TEXT_LIMIT = 10_000  # characters of a message that are kept

ON_RANKS = ("rank", "ranks", "split", "shape")  # what a case says where several ranks are asked

T = TypeVar("T")


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
    compiles: bool = False
    """Whether it compiles in mode `jit`; where it does not, both modes are eager."""
    overwrites: tuple[str, ...] = ()
    """The inputs that its ops overwrite on purpose."""
    orders_by: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Globs of an op and a dtype, such as `rms_norm/float16`, each with its orders; the first that fits counts."""
    may_fail: dict[str, str] = field(default_factory=dict)
    """Globs of case ids that pass or fail, as chance has it, each with the reason."""
    sums: tuple[str, ...] = ()
    """What its norms that add a residual read in half precision: the sum `rounded`, `unrounded`, or of a `float32` residual."""
    ys: tuple[str, ...] = ()
    """What its norms that quantise y quantise in half precision: y `rounded` to x's dtype first, or `unrounded`."""
    groups: bool = False
    """Whether its norms of rows take a `group_size`."""
    features: tuple[str, ...] = ()
    """What its attention, rope and blocks have that plain ones have not, of `reference.FEATURES`."""
    splits: tuple[str, ...] = ()
    """What it can be given a part of, on several ranks: `rows`, `features`."""

    def orders_of(self, op: str, dtype: str) -> tuple[str, ...]:
        """The orders of one op in one dtype: those of the first glob in `orders_by` that fits, else `orders`."""
        told = first_match(f"{op}/{dtype}", self.orders_by)
        return self.orders if told is None else told


@dataclass(frozen=True, slots=True)
class Call:
    """One case as a port is asked it.

    `inputs` and `outputs` are paths of safetensors files: the port reads x, the cotangents and the parameters from the one,
    in the dtypes they are to be used in, and writes the tensors `asked` for to the other: the op's own outputs, then the
    `gradients`. A gradient is that of ⟨y, dy⟩, summed over the outputs y of which `cotangents` has dy. `layout` says how x
    and dy are to lie in memory, or the tensor that it begins with (`layouts`). `order` and `dtype` are as in a case's id.
    `settings` are an op's other constants. With `taps` the port writes its intermediates too, each as `tap.` and its name.

    Of several `ranks` each is asked, with its own `rank` and its own files. What is there of x is then a part: of the whole
    of this `shape`, `rows` are `split`, along the first axis, or `features`, along the last.
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
    gradients: tuple[str, ...]
    cotangents: tuple[str, ...]
    inputs: str
    outputs: str
    settings: dict[str, Any] = field(default_factory=dict)
    taps: bool = False
    rank: int = 0
    ranks: int = 1
    split: str = ""
    shape: tuple[int, ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """What its message says: of ranks nothing, where there is one."""
        told = (name for name in Call.__dataclass_fields__ if self.ranks > 1 or name not in ON_RANKS)
        return {name: getattr(self, name) for name in told}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a port returns for a case: its outputs, and the inputs that are not what they were; None where it does not say.

    Of several ranks the outputs are joined; those that every rank has `whole` are there as each returned them, too.
    `collectives` are those of a rank, where it counts them.
    """

    outputs: dict[str, np.ndarray]
    overwrote: tuple[str, ...] | None = None
    whole: dict[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    collectives: Collectives | None = None


Part = Literal["forward", "backward", "both"]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A request to answer one case many times, and to say how long each call took.

    There is a call for each of `seeds`, which says in which order the rows of its inputs stand. The file of inputs has so many
    `sets` of tensors, such as `1.x`, which take turns. `part` is what is timed: the forward pass, the gradients alone, or both
    passes in one; `n_bytes` is what it has to read and write at least. The outputs of the call that is `kept` are written.
    """

    call: Call
    part: Part
    sets: int
    seeds: tuple[int, ...]
    kept: int
    n_bytes: int


@dataclass(slots=True)
class Repeated:
    """What a port says of repeated calls: for each call some seconds, and the inputs that any has overwritten.

    `copy_seconds` is what it takes to copy `n_bytes`, as fast as the device can. `read_seconds` is the first reading of the
    outputs, when a result that was put off is computed; `plain_read_seconds` that of the inputs, which are there.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    copy_seconds: list[float] = field(default_factory=list)
    read_seconds: list[float] = field(default_factory=list)
    plain_read_seconds: list[float] = field(default_factory=list)
    overwrote: list[str] = field(default_factory=list)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)


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
        raise ProtocolError(f"not a protocol message: {line.rstrip()[:EXCERPT]!r}")
    return message


def read_hello(message: dict[str, Any]) -> Hello:
    """The port's answer to hello. Raises `ProtocolError` naming the field that is missing or wrong."""
    if message["type"] == "error":
        raise ProtocolError(read_text(message, "message") or "the port answered hello with an error")
    if message["type"] != "hello":
        raise ProtocolError(f"the port answered hello with {message['type'][:EXCERPT]!r}")
    if type(message.get("protocol")) is not int or message["protocol"] not in SERVED:
        spoken = " and ".join(map(str, SERVED))
        raise ProtocolError(f"the port speaks protocol {excerpt(message.get('protocol'))}; this kit speaks {spoken}")
    fields = {name: message.get(name, default) for name, (default, _, _) in HELLO_FIELDS.items()}
    for name, (_, is_valid, words) in HELLO_FIELDS.items():
        if not is_valid(fields[name]):
            raise ProtocolError(f"hello: field {name!r} is {excerpt(fields[name])}; it must be {words}")
    return Hello(**{name: _own(value) for name, value in fields.items()})


def first_match(name: str, globs: Mapping[str, T]) -> T | None:
    """What the first glob that a name matches stands for; None where it matches none."""
    return next((value for glob, value in globs.items() if fnmatchcase(name, glob)), None)


def _own(value: Any) -> Any:
    """A valid field as `Hello` has it: lists are tuples, and texts may be shown."""
    match value:
        case str():
            return printable(value)
        case list():
            return tuple(_own(item) for item in value)
        case dict():
            return {printable(key): _own(item) for key, item in value.items()}
        case _:
            return value


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_list_of_offsets(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item in (0, 1) for item in value)


def _is_object_of_strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_object_of_lists(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_list_of_strings(item) for item in value.values())


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


HELLO_FIELDS: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "name": ("port", _is_string, "a string"),
    "ops": (None, _is_list_of_strings, "a list of strings"),
    "dtypes": (None, _is_list_of_strings, "a list of strings"),
    "orders": (None, _is_list_of_strings, "a list of strings"),
    "weight_offsets": ([0], _is_list_of_offsets, "a list of 0 and 1"),
    "gradients": (None, _is_bool, "true or false"),
    "device": ("", _is_string, "a string"),
    "versions": ({}, _is_object_of_strings, "an object of strings"),
    "expected": ({}, _is_object_of_strings, "an object of strings"),
    "taps": (False, _is_bool, "true or false"),
    "compiles": (False, _is_bool, "true or false"),
    "overwrites": ([], _is_list_of_strings, "a list of strings"),
    "orders_by": ({}, _is_object_of_lists, "an object of lists of strings"),
    "may_fail": ({}, _is_object_of_strings, "an object of strings"),
    "sums": ([], _is_list_of_strings, "a list of strings"),
    "ys": ([], _is_list_of_strings, "a list of strings"),
    "groups": (False, _is_bool, "true or false"),
    "features": ([], _is_list_of_strings, "a list of strings"),
    "splits": ([], _is_list_of_strings, "a list of strings"),
}
"""Of every field of hello: its default (none is valid where it must be given), how it is checked, and what it must be."""


def printable(text: str) -> str:
    """A port's text as it may be shown: what would move a terminal's cursor, or is no Unicode, is escaped."""
    return "".join(char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text)


def excerpt(value: Any) -> str:
    """As much of a value as a message shows."""
    return repr(value)[:EXCERPT]


def read_text(message: dict[str, Any], field: str) -> str:
    """A field of an answer that is for people; empty where it is missing."""
    value = message.get(field, "")
    return printable(value if isinstance(value, str) else repr(value))[:TEXT_LIMIT]


def read_call(message: dict[str, Any]) -> Call:
    """The runner's question, on the port's side; fields that this version does not know are ignored."""
    optional = {"settings", "taps", *ON_RANKS} - message.keys()
    fields: dict[str, Any] = {name: message[name] for name in Call.__dataclass_fields__ if name not in optional}
    fields |= {name: tuple(fields[name]) for name in ("asked", "gradients", "cotangents", "shape") if name in fields}
    return Call(**fields)


def read_repeat(message: dict[str, Any]) -> Repeat:
    """A request to time a case, on the port's side."""
    return Repeat(read_call(message), **{name: message[name] for name in Repeat.__dataclass_fields__ if name != "call"})
