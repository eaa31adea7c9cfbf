"""Tensors in safetensors files, bfloat16 included, written atomically."""

import os
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from conformance.rounding import NUMPY_DTYPES

Array = np.ndarray

DTYPE_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class TensorFileError(ValueError):
    """A safetensors file that is missing, broken, or holds what it should not; the message names the file."""


def write_tensors(path: Path, tensors: dict[str, Array]) -> None:
    """Write a safetensors file, whole or not at all; the same tensors give the same bytes."""
    write_atomically(path, save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))


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
