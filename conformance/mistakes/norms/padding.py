"""Mistakes of kernels whose lanes reach past a row's end."""

from collections.abc import Callable
from functools import partial
from math import ceil, log2

import numpy as np

from conformance.mistakes.mistake import LAYER, ROWS, Change, Mistake, Of
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.steps import Steps

Array = np.ndarray
Count = Callable[[int], int]  # of lanes, for a width
POWER_OF_TWO_HIDES = "a width that fills its lanes hides it"
UNMASKED = "planted: a load without its mask, or with the mask of another tensor"


def _power_of_two(n: int) -> int:
    return 2 ** ceil(log2(n))


def _blocks_of(size: int) -> Count:
    return lambda n: -(-n // size) * size


# How many lanes a row is given, by the end of an id, and in words.
LANES: dict[str, tuple[Count, str]] = {
    "": (_power_of_two, "a power of two"),
    "_128": (_blocks_of(128), "a multiple of 128"),
    "_1024": (_blocks_of(1024), "a multiple of 1024"),
}


def _next_in_memory(x: Array, lanes: int) -> Array:
    """What the lanes past a row's end read: the first elements of the rows after it; zeros after the last."""
    n = x.shape[-1]
    memory = np.concatenate([x.reshape(-1), np.zeros(lanes, x.dtype)])
    starts = n * np.arange(x.size // n)
    return memory[starts[:, None] + np.arange(n, lanes)].reshape(*x.shape[:-1], lanes - n)


def _ones(x: Array, lanes: int) -> Array:
    return np.ones((*x.shape[:-1], lanes - x.shape[-1]), x.dtype)


def _zeros(x: Array, lanes: int) -> Array:
    return 0 * _ones(x, lanes)


def _counts(padding: Callable[[Array, int], Array], lanes: Count) -> Change:
    """The sums of the statistics run over all lanes, and are divided by the width."""

    def padded(x: Array) -> Array:
        return padding(x, lanes(x.shape[-1]))

    def summed(x: Array) -> Array:
        return x + np.sum(padded(x), axis=-1, keepdims=True) / x.shape[-1]

    def squares(norm: Norm, s: Steps) -> tuple[Array, Array]:
        row_mean = np.mean(s.row_mean, axis=-1, keepdims=True)  # one a row, whatever another mistake makes of it
        off = padded(s.x) - row_mean if norm.centre_statistics else padded(s.x)
        share = np.sum(np.square(off), axis=-1, keepdims=True) / s.x.shape[-1]
        through_mean = np.sum(off, axis=-1, keepdims=True) + np.sum(s.centred, axis=-1, keepdims=True)
        slope = s.centred - through_mean / s.x.shape[-1] if norm.centre_statistics else s.centred
        return np.square(s.centred) + share, 2 * slope

    return {"summed": summed, "squares": Of(lambda norm: partial(squares, norm))}


def _padding(end: str) -> tuple[Mistake, ...]:
    lanes, words = LANES[end]
    return (
        Mistake(
            f"tail_not_masked{end}",
            f"lanes past the row's end, up to {words}, read the next row in memory and join the statistics",
            _counts(_next_in_memory, lanes),
            f"Every row is too small, by what the next one begins with; {POWER_OF_TWO_HIDES}.",
            UNMASKED,
            ROWS,
        ),
        Mistake(
            f"padding_of_ones{end}",
            f"the row is padded to {words} with ones, which join the statistics",
            _counts(_ones, lanes),
            f"Small rows come out much too small; {POWER_OF_TWO_HIDES}.",
            "planted: a masked load whose other value is that of the weight",
            ROWS,
        ),
        Mistake(
            f"padding_in_variance{end}",
            f"padded features, up to {words}, are counted in the variance, as zeros",
            _counts(_zeros, lanes),
            f"The squared mean joins the variance; a mean of zero hides it, and {POWER_OF_TWO_HIDES}.",
            "triton#9838, Liger-Kernel#518, unsloth#1867, tt-metal#34584",
            LAYER,
        ),
    )


MISTAKES = tuple(mistake for end in LANES for mistake in _padding(end))
