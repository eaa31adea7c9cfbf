r"""The inputs of an exact case: numbers on which no honest implementation makes a rounding error.

x is ±1/8, and neighbours have opposite signs in pairs, so that the mean is 0 and the mean square 1/64; eps is 15/64, so that
rstd = (1/4)^(−1/2) = 2 and x_hat = ±1/4. The weights are powers of two times F, and dy is what gives

$$ g = w\,dy = F\,(c_1 + m\,s + \rho), \qquad s = \mathrm{sign}(x) $$

with ρ the same multiples of 1/2 in every row, in another order: they add up to zero over the positive x and over the
negative. So mean(g) = F·c1 and mean(g·x_hat) = F·m/4, and every sum, path and partial sum of dx is F times a number of at
most 8 bits, which is all that bfloat16 has. F is 1 in half precision; elsewhere it fills the bits that are left, so that no
other dtype will do.

docs/tolerances.md says why x is in pairs, eps so much larger than the variance, and the bias than what it is added to.
"""

import numpy as np

from conformance.numbers.draws import random_words
from conformance.question.case import Case

Array = np.ndarray

WIDTH = 32
SIZE_OF_X = 1 / 8
EPS = 15 / 64
FACTOR = {"float64": 1 + 2.0**-40, "float32": 1 + 2.0**-11}  # F: 8 bits, and 5 of a sum over the features, are left
BALANCED = np.concatenate([np.arange(1, 9), -np.arange(1, 9)]) / 2  # ρ over the features of one sign: its sum is zero


def exact_tensors(case: Case, seed: int) -> dict[str, Array]:
    """x, dy, weight and bias of an exact case, in float64; all are exact in the case's dtype."""
    rows = int(np.prod(case.shape[:-1]))

    def words(tensor: str, *shape: int) -> Array:
        return random_words(case.id, tensor, seed, int(np.prod(shape))).reshape(shape)

    sign = (_sign(words("x", rows, WIDTH // 2, 1)) * [1, -1]).reshape(rows, WIDTH)
    rest = np.empty_like(sign)
    for half, name in ((sign > 0, "positive"), (sign < 0, "negative")):
        rest[half] = BALANCED[np.argsort(words(name, rows, WIDTH // 2), axis=-1)].ravel()

    factor = FACTOR.get(case.dtype, 1.0)
    power = _sign(words("weight", WIDTH)) * 2.0 ** (words("weight", WIDTH) % np.uint64(3)).astype(int) / 2  # ±1/2, ±1, ±2
    bias = _sign(words("bias", WIDTH)) * (8 + words("bias", WIDTH) % np.uint64(7)) / 8  # ±1 to ±7/4
    c1, m = (_sign(words(name, rows, 1)) * (1 + words(name, rows, 1) % np.uint64(2)) for name in ("c1", "m"))
    dy = (c1 / 2 + m * sign + rest) / power
    tensors = {"x": SIZE_OF_X * sign, "dy": dy, "weight": factor * power, "bias": factor * bias}
    return {name: a.reshape(case.shape) if a.ndim > 1 else a for name, a in tensors.items()}


def _sign(words: Array) -> Array:
    return np.where(words >> np.uint64(63), 1.0, -1.0)
