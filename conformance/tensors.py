"""Tensors in safetensors files, bfloat16 included, written atomically."""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save

from conformance.rounding import NUMPY_DTYPES

Array = np.ndarray

DTYPE_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
DUMPED_DTYPES = {name: NUMPY_DTYPES[dtype] for name, dtype in DTYPE_NAMES.items()} | {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
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
    metadata = {"order": json.dumps(list(tensors))} if ordered else None
    write_atomically(path, save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, metadata))


def read_tensors(path: Path) -> dict[str, Array]:
    """Read a safetensors file of float64, float32, bfloat16 and float16 tensors.

    Raises `TensorFileError`, which names the file and what is wrong with it.
    """
    # `safetensors.numpy.load` does not know bfloat16 (0.8), hence the deserialiser below it.
    try:
        entries = deserialize(path.read_bytes())
    except FileNotFoundError:
        raise TensorFileError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise TensorFileError(f"{path}: not a readable safetensors file: {error}") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPE_NAMES:
            raise TensorFileError(f"{path}: tensor {name!r} is {entry['dtype']}; known are {', '.join(DTYPE_NAMES)}")
        dtype = NUMPY_DTYPES[DTYPE_NAMES[entry["dtype"]]]
        tensors[name] = np.frombuffer(bytearray(entry["data"]), dtype=dtype).reshape(entry["shape"])
    return tensors


def read_dump(path: Path) -> Dump:
    """Map a safetensors file of named activations, of any floating-point, integer or Boolean dtype, in their order.

    Without an order in the metadata it is that of the bytes; where those are sorted by name, as the format's own writers sort
    them, numbers in the names count as numbers. Raises `TensorFileError`, which names the file and what is wrong with it.
    """
    try:
        with safe_open(path, "numpy"):  # the format's own checks: the header, every offset, every size
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
        if entry["dtype"] not in DUMPED_DTYPES:
            raise TensorFileError(f"{path}: tensor {name!r} is {entry['dtype']}; known are {', '.join(DUMPED_DTYPES)}")
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = content[start:end].view(DUMPED_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return Dump(tensors, order is not None)


def _order(path: Path, metadata: dict[str, str]) -> list[str] | None:
    """The names that the metadata list under `order`, if they do."""
    if "order" not in metadata:
        return None
    try:
        order = json.loads(metadata["order"])
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
    return sorted(written, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


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
