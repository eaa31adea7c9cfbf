"""One shape that somebody asks for: the `random` case of a norm, a dtype and a dialect, with that shape.

A norm whose output is quantised has no such case: which widths it takes depends on how.
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path

from conformance.numbers.rounding import HALF
from conformance.ops.answerable import LARGEST_RANK
from conformance.ops.norms.add_norm import ADD_NORM_CASES
from conformance.ops.norms.batch_norm import BATCH_NORM_CASES
from conformance.ops.norms.cases import ROW_NORM_CASES, NormCase
from conformance.ops.norms.gated_norm import GATED_NORM_CASES
from conformance.question.case import Case

NORM_CASES: tuple[NormCase, ...] = (*ROW_NORM_CASES, *ADD_NORM_CASES, *GATED_NORM_CASES, *BATCH_NORM_CASES)
MODELS = tuple(case for case in NORM_CASES if case.name == "random")
GIB = 2**30

# Bytes for every element of x, measured: at the peak, while a case is judged, in half precision in the worst dialect; and of
# every case that has been judged.
PEAK = {
    "rms_norm": 170,
    "layer_norm": 170,
    "add_rms_norm": 260,
    "add_layer_norm": 260,
    "gated_rms_norm": 280,
    "batch_norm": 170,
}
PEAK_IN_HALF = {
    "rms_norm": 440,
    "layer_norm": 780,
    "add_rms_norm": 640,
    "add_layer_norm": 1430,
    "gated_rms_norm": 740,
    "batch_norm": 440,
}
KEPT = 16


class ShapeError(ValueError):
    """A shape that cannot be asked; the message says why."""


def read_shape(said: str) -> tuple[int, ...]:
    """A shape as it is written, `4096x8192`. Raises `ShapeError`."""
    if not re.fullmatch(r"[0-9]{1,18}(x[0-9]{1,18})*", said):
        raise ShapeError(f"{said!r} is no shape, such as 4096x8192")
    shape = tuple(map(int, said.split("x")))
    if shape[-1] == 0:
        raise ShapeError(f"{said}: the last axis must have a feature at least")
    if len(shape) > LARGEST_RANK:
        raise ShapeError(f"{said} has {len(shape)} axes; {LARGEST_RANK} are enough for any fault")
    return shape


def shaped(said: str) -> tuple[NormCase, ...]:
    """The cases of a shape, in every norm, dtype and dialect; BatchNorm needs two rows. Raises `ShapeError`."""
    shape = read_shape(said)
    rows = prod(shape[:-1])
    models = (case for case in MODELS if case.op != "batch_norm" or rows > 1)
    return tuple(replace(case, name=f"shape_{said}", exposes="the shape that was asked for", shape=shape) for case in models)


def require_memory(cases: Sequence[Case], ports: int) -> None:
    """Raise `ShapeError`, which names both figures, where to judge the cases takes more memory than is free."""
    needed, free = estimate(cases, ports), free_memory()
    if needed > free:
        each = f" by each of {ports} ports" if ports > 1 else ""
        raise ShapeError(
            f"to judge {list(cases[0].shape)}{each} takes about {needed / GIB:.1f} GiB, beside what the port needs; "
            f"{free / GIB:.1f} GiB are free"
        )


def estimate(cases: Sequence[Case], ports: int) -> int:
    """The bytes that it takes to judge some cases: ports are judged side by side, the cases of each one after another."""
    peak = max(peak_bytes(case) * prod(case.shape) for case in cases)
    kept = sum(KEPT * prod(case.shape) for case in cases)
    return ports * (peak + kept)


def peak_bytes(case: Case) -> int:
    """The bytes for every element of x while a case is judged."""
    return (PEAK_IN_HALF if case.dtype in HALF else PEAK)[case.op]


def free_memory() -> int:
    """The bytes that can still be had, of the machine or of the control group that this process is in."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")]
    with suppress(OSError, ValueError, IndexError):  # not on Linux
        [line] = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
        free = [1024 * int(line.split()[1])]
    with suppress(OSError, ValueError):  # no group, or one without a limit
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(free))
