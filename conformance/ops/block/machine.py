"""What a program is evaluated on: exactly, with an honest implementation's noise, or with its very roundings."""

from collections.abc import Callable

import numpy as np

from conformance.numbers.rounding import FORMATS, round_to

Array = np.ndarray

RUNS = 16  # of a noisy machine, from which an interval is made
TAU = {"half": 8.0, "single": 24.0}  # times the standard deviation of an element, the half-width of its interval
KAPPA = {"half": 1.5, "single": 4.0}  # times the largest of the runs' deviations, that of all elements together


class Machine:
    """The exact machine: nothing is rounded. The others say what becomes of three kinds of values."""

    def store(self, a: Array) -> Array:
        """An intermediate that an implementation may keep in the storage dtype."""
        return a

    def add_up(self, total: Array, terms: int, squares: Callable[[], Array]) -> Array:
        """A sum of so many products, which has been formed in the compute dtype; `squares` are the sums of their squares."""
        return total

    def compute(self, a: Array, error: Array) -> Array:
        """A value from the compute dtype, off by up to `error` of its unit roundoffs."""
        return a


class NoisyMachine(Machine):
    """Every value is off by a random amount of the size that an honest implementation's roundings have.

    Stored values by (1 + u·U(−1, 1)), u the storage dtype's unit roundoff, or by half of its smallest number where that is
    more; sums of k products by v·(2 + 0.4·√k)·U(−1, 1)·√Σ(product²), v the compute dtype's. `key` decides the draws.
    """

    def __init__(self, storage_dtype: str, key: int) -> None:
        stored = FORMATS[storage_dtype]
        self.u, self.v = stored.unit_roundoff, stored.compute.unit_roundoff
        self.half_smallest = stored.smallest / 2
        self.generator = np.random.Philox(key=key)

    def store(self, a: Array) -> Array:
        error = np.maximum(self.u * np.abs(a), self.half_smallest)
        error[a == 0] = 0.0
        return a + error * self._uniform(a)

    def add_up(self, total: Array, terms: int, squares: Callable[[], Array]) -> Array:
        return total + self.v * (2 + 0.4 * np.sqrt(terms)) * np.sqrt(squares()) * self._uniform(total)

    def compute(self, a: Array, error: Array) -> Array:
        return a + self.v * error * self._uniform(a)

    def _uniform(self, a: Array) -> Array:
        """From −1 to 1, made of raw bits: a library's own sampler may change."""
        words = self.generator.random_raw(a.size).reshape(a.shape)
        words >>= np.uint64(11)
        uniform = words.astype(np.float64)
        uniform *= 2.0**-52
        uniform -= 1.0
        return uniform


class PlayedMachine(Machine):
    """An implementation, played: stored values are rounded to the storage dtype, all others to the compute dtype."""

    def __init__(self, storage_dtype: str) -> None:
        self.storage_dtype, self.compute_dtype = storage_dtype, FORMATS[storage_dtype].compute_dtype

    def store(self, a: Array) -> Array:
        return round_to(a, self.storage_dtype)

    def add_up(self, total: Array, terms: int, squares: Callable[[], Array]) -> Array:
        return round_to(total, self.compute_dtype)

    def compute(self, a: Array, error: Array) -> Array:
        return round_to(a, self.compute_dtype)
