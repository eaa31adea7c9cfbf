"""Rows and memory: what is read from where, and what is written."""

from collections.abc import Callable

import numpy as np

from conformance.mistakes.mistake import ROWS, Change, Mistake, Of, all_but
from conformance.ops.norms.anatomy import Norm
from conformance.question.case import layouts

Array = np.ndarray
Reading = Callable[[Array, str], Array]
"""What is read of a tensor in a layout."""

SLICED_AT = 3  # columns before a sliced tensor's first one
STRIDED = dict.fromkeys(all_but("float32"), "indexing is tried in float32: no other dtype has a case with strides")


def _in_memory_order(a: Array, layout: str) -> Array:
    """What memory holds from a tensor's first element on, in the layouts of the protocol's page."""
    match layout:
        case "permuted":
            memory = np.swapaxes(a, -1, -2)
        case "sliced":
            memory = _sliced_from(a).reshape(-1)[SLICED_AT:]
        case "strided":
            memory = np.repeat(a, 2, axis=-1)
        case "expanded":
            memory = _before_zeros(a[:1], a)
        case "one_number":
            memory = _before_zeros(a[(slice(1),) * a.ndim], a)
        case _:
            memory = a
    return memory.reshape(-1)[: a.size].reshape(a.shape)


def _from_buffer_start(a: Array, layout: str) -> Array:
    """What a tensor's shape and strides address if they are counted from the start of its buffer."""
    match layout:
        case "sliced":
            return _sliced_from(a)[..., : a.shape[-1]]
        case "at_offset":
            return np.concatenate([np.zeros_like(a[:1]), a])[: len(a)]
        case _:
            return a


def _sliced_from(a: Array) -> Array:
    return np.pad(a, [(0, 0)] * (a.ndim - 1) + [(SLICED_AT, 4)])


def _before_zeros(part: Array, a: Array) -> Array:
    memory = np.zeros_like(a)
    memory.reshape(-1)[: part.size] = part.reshape(-1)
    return memory


def _x(reading: Reading) -> Change:
    return {"read": Of(lambda norm: lambda x: reading(x, layouts(norm.case.layout)["x"]))}


def _dy(reading: Reading) -> Change:
    return {"cotangent": Of(lambda norm: lambda dy: reading(dy, layouts(norm.case.layout)["dy"]))}


def _parameters(reading: Reading) -> Change:
    return {
        "weight": Of(lambda norm: reading(norm.weight, layouts(norm.case.layout)["weight"])),
        "bias": Of(lambda norm: reading(norm.bias, layouts(norm.case.layout)["bias"])),
    }


def _laid_out(name: str) -> Callable[[Norm], bool]:
    """Where this tensor does not lie as it is read."""
    return lambda norm: name in layouts(norm.case.layout)


def _by_column(norm: Norm) -> Callable[[Array], Array]:
    """The statistic of row j is that of feature j; where there are fewer rows than features, they are counted again."""
    return lambda statistic: np.resize(statistic, norm.x.shape[-1:]) + np.zeros_like(statistic)


def _last_row(x: Array) -> Array:
    written = np.ones((*x.shape[:-1], 1))
    written.reshape(-1)[-1:] = 0
    return written.astype(x.dtype)


MISTAKES = (
    Mistake(
        "strides_ignored",
        "x is read in the order of its memory, whatever its strides",
        _x(_in_memory_order),
        "Contiguous inputs hide it; transposed, sliced and strided ones mix rows.",
        "unsloth#10675, DirectML#588",
        hidden=STRIDED,
        where=_laid_out("x"),
    ),
    Mistake(
        "dy_strides_ignored",
        "dy is read in the order of its memory, whatever its strides",
        _dy(_in_memory_order),
        "y.sum().backward() gives one number with strides of zero: what lies behind it in memory is not dy.",
        "planted: x.contiguous() without dy.contiguous()",
        hidden=STRIDED,
        where=_laid_out("dy"),
    ),
    Mistake(
        "weight_strides_ignored",
        "weight and bias are read in the order of their memory, whatever their strides",
        _parameters(_in_memory_order),
        "A parameter that is a column, or every second number, of a larger one is read as its neighbours.",
        "planted: a kernel that is given strides of x alone",
        ROWS,
        hidden=STRIDED,
        where=_laid_out("weight"),
    ),
    Mistake(
        "x_from_buffer_start",
        "x is read from the start of its buffer, not from where it begins",
        _x(_from_buffer_start),
        "A part of a batch, buffer[1:3], is taken for the first entries of the buffer.",
        "planted: a pointer to the storage, without the storage offset",
        ROWS,
        hidden=STRIDED,
        where=_laid_out("x"),
    ),
    Mistake(
        "dy_from_buffer_start",
        "dy is read from the start of its buffer, not from where it begins",
        _dy(_from_buffer_start),
        "The gradients are those of another part of the batch; y is right.",
        "planted: a pointer to the storage, without the storage offset",
        ROWS,
        hidden=STRIDED,
        where=_laid_out("dy"),
    ),
    Mistake(
        "weight_from_buffer_start",
        "weight and bias are read from the start of their buffers, not from where they begin",
        _parameters(_from_buffer_start),
        "Parameters that are views of one flat buffer, as optimizers keep them, are taken for what stands before them.",
        "planted: a pointer to the storage, without the storage offset",
        ROWS,
        hidden=STRIDED,
        where=_laid_out("weight"),
    ),
    Mistake(
        "row_statistic_by_column",
        "the statistic of row j is taken for feature j of every row",
        {"of_rows": Of(_by_column)},
        "Where rows are fewer than features it reads past the statistics; many narrow rows hide that.",
        "planted: an index of columns where one of rows belongs, a term of a row broadcast along columns",
        ROWS,
    ),
    Mistake(
        "last_row_not_written",
        "the last row of y is never written",
        {"written": _last_row},
        "The last row of y is zero, or whatever was there.",
        "planted: a grid that is one block short",
    ),
    Mistake(
        "nan_swallowed",
        "a NaN in x is taken for a zero",
        {"read": lambda x: np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf)},
        "A broken activation goes on as if it were sound.",
        "planted: nan_to_num, or a maximum that drops NaN",
    ),
)
