"""What every op asks of its arrays: float64, and the shapes that are meant, for nothing is broadcast."""

import numpy as np


def check_float64(op: str, **arrays: np.ndarray | None) -> None:
    """Raise `ValueError`, naming the op and the argument, for an array of any other dtype."""
    for name, array in arrays.items():
        if array is not None and array.dtype != np.float64:
            raise ValueError(f"{op}: {name} is {array.dtype}; the golden computes in float64 only")


def check_shape(op: str, name: str, array: np.ndarray, expected: tuple[int, ...], **given: np.ndarray) -> None:
    """Raise `ValueError`, naming the op and the argument, for any but the shape that it must have given another."""
    if array.shape != expected:
        [(other, like)] = given.items()
        raise ValueError(f"{op}: {name} has shape {array.shape}; with {other} of shape {like.shape} it must be {expected}")


def check_alike(op: str, **arrays: np.ndarray) -> None:
    """Raise `ValueError`, naming the op and the argument, unless all are float64 and of the first one's shape."""
    (first, like), *others = arrays.items()
    for name, array in others:
        check_shape(op, name, array, like.shape, **{first: like})
    check_float64(op, **arrays)
