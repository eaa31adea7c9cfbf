"""What is dear to compute, kept on disk between runs: named arrays, by a key and the sources that compute them.

In the user's cache folder, or in `CONFORMANCE_CACHE`; `off` there keeps nothing. An entry that cannot be read is computed
anew, one that cannot be written is not kept, and the oldest ones go where there are too many. Any number of processes may
read and write at once: an entry is written whole or not at all, and whoever computes it computes the same.
"""

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from conformance.numbers.tensors import TensorFileError, read_tensors, write_tensors

Array = np.ndarray
Arrays = dict[str, Array]

VARIABLE = "CONFORMANCE_CACHE"
OFF = "off"
LIMIT = 256 * 2**20  # bytes in the folder
PACKAGES = Path(__file__).parents[2]
SOURCES = ("reference/*.py", "conformance/numbers/*.py", "conformance/question/*.py", "conformance/ops/**/*.py")


def folder() -> Path | None:
    """Where entries are kept; None where none are."""
    said = os.environ.get(VARIABLE)
    if said == OFF:
        return None
    return Path(said) if said else cache_folder("goldens")


def cache_folder(name: str) -> Path:
    """Where something may be kept between runs, such as what a port compiled: a folder of this name in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "norm-conformance" / name


def kept(key: str, compute: Callable[[], Arrays]) -> Arrays:
    """What `compute` returns, from the cache if it is there. The arrays are of float64."""
    where = folder()
    if where is None:
        return compute()
    path = where / f"{sha256(f'{_sources()} {key}'.encode()).hexdigest()[:40]}.safetensors"
    with suppress(TensorFileError):
        return read_tensors(path, LIMIT)
    arrays = compute()
    with suppress(OSError):
        where.mkdir(parents=True, exist_ok=True)
        write_tensors(path, arrays)
        _make_room(where)
    return arrays


@cache
def _sources() -> str:
    """A digest of all that an entry depends on: the sources, NumPy, and the kind of machine."""
    digest = sha256(f"{np.__version__} {platform.machine()} {platform.processor()}".encode())
    for path in sorted(path for pattern in SOURCES for path in PACKAGES.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _make_room(where: Path) -> None:
    with os.scandir(where) as listed:  # which another process may be emptying: then it is closed, too
        entries = [(entry.stat(follow_symlinks=False), entry.path) for entry in listed if entry.name.endswith(".safetensors")]
    size = sum(stat.st_size for stat, _ in entries)
    for stat, path in sorted(entries, key=lambda entry: entry[0].st_mtime):
        if size <= LIMIT:
            return
        Path(path).unlink(missing_ok=True)
        size -= stat.st_size
