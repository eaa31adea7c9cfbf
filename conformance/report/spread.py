"""How far off every element of an output is, in classes of powers of two of its tolerance, and where they sit."""

from math import prod

import numpy as np
from jaxtyping import Float64, Int

from conformance.numbers.expected import Expected
from conformance.report.report import Errors

SCALES = (0.0, *(2.0**power for power in range(-4, 30)))
"""A class holds what its scale of the tolerance admits and none before it; one more, the last, what none admits, or a NaN."""
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""The classes as one character each."""
PASSES = SCALES.index(1.0)  # the last class that passes
BEYOND = len(SCALES)
MAP = 32, 64  # the most rows and columns of a map


def errors(expected: Expected, actual: Float64[np.ndarray, "*shape"]) -> Errors:
    """The classes of an output's elements, counted, and mapped."""
    found = classes(expected, actual)
    counts = np.bincount(found.ravel()) if found.size else np.zeros(0, int)
    rows, pooled = pool(found.reshape(prod(found.shape[:-1]), -1) if found.size else np.zeros((0, 0), np.int8))
    return Errors(tuple(map(int, counts)), tuple("".join(LETTERS[each] for each in row) for row in rows), pooled)


def classes(expected: Expected, actual: Float64[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """The class of every element by its own interval; how far off all of them are together is no element's fault."""
    found = np.full(np.shape(actual), BEYOND, np.int8)
    left = ~(np.isnan(actual) & np.isnan(expected.value))
    found[~left] = 0
    for class_, scale in enumerate(SCALES):
        if not left.any():
            break
        lower, upper = expected.interval(scale)
        inside = left & (lower <= actual) & (actual <= upper)
        found[inside] = class_
        left &= ~inside
    return found


def pool(found: Int[np.ndarray, "rows columns"]) -> tuple[Int[np.ndarray, "row column"], tuple[int, int]]:
    """The largest class of every cell, of as few rows and columns as a map has room for; and how many of them those are."""
    if not found.size:
        return found, (1, 1)
    size = tuple(-(-have // most) for have, most in zip(found.shape, MAP, strict=True))
    for axis in (0, 1):
        found = np.maximum.reduceat(found, np.arange(0, found.shape[axis], size[axis]), axis=axis)
    return found, (size[0], size[1])
