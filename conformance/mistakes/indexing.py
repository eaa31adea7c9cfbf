"""Rows and memory: what is read from where, and what is written."""

from dataclasses import replace

import numpy as np

from conformance.mistakes.mistake import Mistake
from conformance.norms.anatomy import Norm

Array = np.ndarray
STRIDED = "indexing is tried in float32: no other dtype has a case with strides"


def _in_memory_order(norm: Norm) -> Norm:
    """x is read as its memory runs; the layouts are those of the protocol's page."""
    x = norm.x
    match norm.case.layout:
        case "permuted":
            memory = np.swapaxes(x, -1, -2)
        case "sliced":
            memory = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(3, 4)]).reshape(-1)[3 : 3 + x.size]
        case "strided":
            memory = np.repeat(x, 2, axis=-1).reshape(-1)[: x.size]
        case "expanded" | "contiguous":  # an expanded x ignored reads past the end of its memory: another fault each time
            memory = x
    return replace(norm, read=lambda x: memory.reshape(x.shape).astype(x.dtype))


def _last_row(x: Array) -> Array:
    written = np.ones((*x.shape[:-1], 1))
    written.reshape(-1)[-1:] = 0
    return written.astype(x.dtype)


MISTAKES = (
    Mistake(
        "strides_ignored",
        "x is read in the order of its memory, whatever its strides",
        _in_memory_order,
        "Contiguous inputs hide it; transposed, sliced and strided ones mix rows.",
        "unsloth#10675, DirectML#588",
        hidden=dict.fromkeys(("float64", "bfloat16", "float16"), STRIDED),
    ),
    Mistake(
        "last_row_not_written",
        "the last row of y is never written",
        lambda norm: replace(norm, written=_last_row),
        "The last row of y is zero, or whatever was there.",
        "planted: a grid that is one block short",
    ),
    Mistake(
        "nan_swallowed",
        "a NaN in x is taken for a zero",
        lambda norm: replace(norm, read=lambda x: np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf)),
        "A broken activation goes on as if it were sound.",
        "planted: nan_to_num, or a maximum that drops NaN",
    ),
)
