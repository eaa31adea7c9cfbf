"""Tensors in safetensors files, bfloat16 included, written atomically."""

import json
import os
import re
import stat
import tempfile
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save

from conformance.numbers import json_text
from conformance.numbers.rounding import DTYPES, FORMATS, QUANTISED_DTYPES

Array = np.ndarray
NUMBER = re.compile("([0-9]{1,18})")

STORED_DTYPES = {FORMATS[dtype].safetensors: FORMATS[dtype].storage for dtype in (*DTYPES, *QUANTISED_DTYPES)}
DUMPED_DTYPES = {
    **{each.safetensors: each.storage for each in FORMATS.values()},
    "BOOL": np.dtype(bool),
    **{f"{kind.upper()}{bits}": np.dtype(f"{kind}{bits // 8}") for kind in "iu" for bits in (8, 16, 32, 64)},
}


class TensorFileError(ValueError):
    """A safetensors file that is missing, broken, or holds what it should not; the message names the file."""


class Dump(NamedTuple):
    """Named tensors in order, mapped from their file; `ordered` where the file says so itself, else the order is a guess."""

    tensors: dict[str, Array]
    ordered: bool


def write_tensors(path: Path, tensors: dict[str, Array], *, ordered: bool = False) -> None:
    """Write a safetensors file, whole or not at all; the same tensors give the same bytes.

    The format sorts tensors by dtype and name: `ordered` writes their order into the metadata, where `read_dump` looks for it.
    """
    write_atomically(path, as_bytes(tensors, ordered=ordered))


def as_bytes(tensors: dict[str, Array], *, ordered: bool = False) -> bytes:
    """What `write_tensors` writes, for a file that nobody reads before it is whole."""
    metadata = {"order": json.dumps(list(tensors))} if ordered else None
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, metadata)


def read_tensors(path: Path, limit: int | None = None) -> dict[str, Array]:
    """Read a safetensors file of tensors in the dtypes that cases have, quantised ones included, of at most `limit` bytes.

    Raises `TensorFileError`, which names the file and what is wrong with it.
    """
    try:
        content = read_regular(path, limit)
    except FileNotFoundError:
        raise TensorFileError(f"{path}: no such file") from None
    except OSError as error:
        raise TensorFileError(f"{path}: not a readable safetensors file: {error}") from None
    return parse_tensors(path, content)


def parse_tensors(path: Path, content: bytes) -> dict[str, Array]:
    """The tensors of a file that was read, in the order of their names; raises as `read_tensors` does."""
    # `safetensors.numpy.load` does not know bfloat16 (0.8), hence the deserialiser below it.
    try:
        entries = sorted(deserialize(content), key=itemgetter(0))  # it shuffles: another order, and a compiler starts anew
    except SafetensorError as error:
        raise TensorFileError(f"{path}: not a readable safetensors file: {error}") from None
    return {name: _as_array(path, name, entry, entry["data"], STORED_DTYPES) for name, entry in entries}


def read_dump(path: Path) -> Dump:
    """Map a safetensors file of named activations, of any floating-point, integer or Boolean dtype, in their order.

    Without an order in the metadata it is that of the bytes; where those are sorted by name, as the format's own writers sort
    them, numbers in the names count as numbers. Raises `TensorFileError`, which names the file and what is wrong with it.
    """
    try:
        with open_regular(path), safe_open(path, "numpy"):  # the format's own checks: the header, every offset, every size
            content = np.memmap(path, np.uint8, "r")
        length = int.from_bytes(content[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(content[8 : 8 + length].tobytes())
    except FileNotFoundError:
        raise TensorFileError(f"{path}: no such file") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise TensorFileError(f"{path}: not a readable safetensors file: {error}") from None
    order = _order(path, header.pop("__metadata__", None) or {})
    tensors: dict[str, Array] = {}
    for name in _as_written(header) if order is None else _in_order(path, order, header):
        entry = header[name]
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = _as_array(path, name, entry, content[start:end], DUMPED_DTYPES)
    return Dump(tensors, order is not None)


def _as_array(path: Path, name: str, entry: dict[str, Any], data: Any, dtypes: dict[str, np.dtype]) -> Array:
    """A view of a tensor's bytes."""
    if not name.isprintable():
        raise TensorFileError(f"{path}: tensor {name!r:.80} has a name that cannot be shown")
    if entry["dtype"] not in dtypes:
        raise TensorFileError(f"{path}: tensor {name!r:.80} is {entry['dtype']}; known are {', '.join(dtypes)}")
    try:
        return np.frombuffer(data, dtypes[entry["dtype"]]).reshape(entry["shape"])
    except (OverflowError, ValueError) as error:  # it has no element, and an axis or a rank beyond NumPy's
        raise TensorFileError(f"{path}: tensor {name!r:.80} has shape {entry['shape']!s:.100}: {error}") from None


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """All bytes of a file. Raises `OSError` where it has more than `limit`, or is a pipe, say, which might never end."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(f"{size} bytes; at most {limit} are expected")
        return file.read(size)


def open_regular(path: Path) -> BinaryIO:
    """Open a file. Raises `OSError` where it is a folder, a pipe or a device, and does not wait for one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return open(descriptor, "rb")


def _order(path: Path, metadata: dict[str, str]) -> list[str] | None:
    """The names that the metadata list under `order`, if they do."""
    if "order" not in metadata:
        return None
    try:
        order = json_text.parse(metadata["order"].encode())
    except ValueError:
        order = None
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        raise TensorFileError(f"{path}: the metadata's order is {metadata['order']:.50}; it must be a JSON list of names")
    return order


def _in_order(path: Path, order: list[str], header: dict[str, Any]) -> list[str]:
    if sorted(order) != sorted(header):
        odd = min(set(order) ^ set(header), default="a name twice")
        raise TensorFileError(f"{path}: the metadata's order does not list the file's tensors once each; see {odd!r}")
    return order


def _as_written(header: dict[str, Any]) -> list[str]:
    written = sorted(header, key=lambda name: header[name]["data_offsets"])
    of_dtype = [[name for name in written if header[name]["dtype"] == dtype] for dtype in DUMPED_DTYPES]
    if any(names != sorted(names) for names in of_dtype):
        return written
    return sorted(written, key=_with_numbers)


def _with_numbers(name: str) -> list[str | int]:
    """A name's parts, of which every second is a number."""
    return [int(part) if place % 2 else part for place, part in enumerate(NUMBER.split(name))]


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, then rename over it: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
