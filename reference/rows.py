"""What the norms ask of their arguments: rows along the last axis, their groups, float64, parameters of one row's shape."""

import numpy as np
from jaxtyping import Float64

from reference.arguments import check_float64, check_shape


def sum_rows(a: Float64[np.ndarray, "*batch d"]) -> Float64[np.ndarray, " d"]:
    """Sum over every axis but the last; a single row is its own sum, and no rows sum to zeros.

    Laid out along the rows, so that NumPy adds pairwise: row by row, thousands of equal ones would drift.
    """
    return np.ascontiguousarray(a.reshape(-1, a.shape[-1]).T).sum(axis=-1)


def split(op: str, x: Float64[np.ndarray, "*batch d"], group_size: int | None) -> Float64[np.ndarray, "*batch groups g"]:
    """Every row as groups of g = `group_size` neighbouring features, or as a single group without one.

    Raises `ValueError`, naming the op, for a group that does not divide the row.
    """
    d = x.shape[-1]
    g = d if group_size is None else group_size
    if g < 1 or d % g:
        raise ValueError(f"{op}: group_size is {g}; with x of shape {x.shape} it must divide {d}")
    return x.reshape(*x.shape[:-1], d // g, g)


def check_rows(op: str, x: np.ndarray, *, dy: np.ndarray | None = None, **parameters: np.ndarray | None) -> None:
    """Raise `ValueError`, naming the op and the argument, unless x has features, dy is like x and parameters are [d]."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{op}: x has shape {x.shape}; its last axis must hold at least one feature")
    for name, array, shape in [("dy", dy, x.shape), *((n, p, x.shape[-1:]) for n, p in parameters.items())]:
        if array is not None:
            check_shape(op, name, array, shape, x=x)
    check_float64(op, x=x, dy=dy, **parameters)
