r"""The inputs of an exact case: numbers on which no honest implementation makes a rounding error.

x is ±1/8 with as many of either sign, so that the mean is 0 and the mean square 1/64; eps is 15/64, so that
rstd = (1/4)^(−1/2) = 2 and x_hat = ±1/4. The weights are powers of two, and dy is what gives

$$ g = w\,dy = c_1 + m\,s + \rho, \qquad s = \mathrm{sign}(x) $$

with c1 = mean(g), m = mean(g·s), and ρ the same multiples of 1/2 in every row, in another order: they add up to zero over the
positive x and over the negative x. So c2 = mean(g·x_hat) = m/4, and every sum, path and partial sum of dx has at most 8 bits.

docs/tolerances.md says why eps is so much larger than the variance.
"""

from typing import TYPE_CHECKING

import numpy as np

from conformance.draws import random_words

if TYPE_CHECKING:
    from conformance.norms.cases import NormCase

Array = np.ndarray

WIDTH = 32
SIZE_OF_X = 1 / 8
EPS = 15 / 64
BALANCED = np.concatenate([np.arange(1, 9), -np.arange(1, 9)]) / 2  # ρ over the features of one sign: its sum is zero


def exact_tensors(case: "NormCase", seed: int) -> dict[str, Array]:
    """x, dy, weight and bias of an exact case, in float64; all are exact in bfloat16 and float16."""
    rows = int(np.prod(case.shape[:-1]))

    def words(tensor: str, *shape: int) -> Array:
        return random_words(case.id, tensor, seed, int(np.prod(shape))).reshape(shape)

    order = np.argsort(words("x", rows, WIDTH), axis=-1)
    sign, rest = np.empty((rows, WIDTH)), np.empty((rows, WIDTH))
    np.put_along_axis(sign, order, np.repeat([1.0, -1.0], WIDTH // 2)[np.newaxis], axis=-1)
    np.put_along_axis(rest, order, np.tile(BALANCED, 2)[np.newaxis], axis=-1)

    weight = _sign(words("weight", WIDTH)) * 2.0 ** (words("weight", WIDTH) % np.uint64(3)).astype(int) / 2  # ±1/2, ±1, ±2
    bias = _sign(words("bias", WIDTH)) * (2 + words("bias", WIDTH) % np.uint64(7)) / 8  # ±1/4 to ±1
    c1, m = (_sign(words(name, rows, 1)) * (1 + words(name, rows, 1) % np.uint64(2)) for name in ("c1", "m"))
    dy = (c1 / 2 + m * sign + rest) / weight
    tensors = {"x": SIZE_OF_X * sign, "dy": dy, "weight": weight, "bias": bias}
    return {name: a.reshape(case.shape) if a.ndim > 1 else a for name, a in tensors.items()}


def _sign(words: Array) -> Array:
    return np.where(words >> np.uint64(63), 1.0, -1.0)
