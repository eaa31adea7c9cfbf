"""Random numbers with exact arithmetic, bit-identical on any machine.

A library's normal sampler may change its last bit with the library, the CPU or the compiler. Here every draw is
integers from Philox (a counter-based generator whose stream NumPy guarantees), summed exactly and scaled by one IEEE
multiplication.
"""

import hashlib

import numpy as np

Array = np.ndarray


# The standard deviation of a sum of four uniform 16-bit integers.
FOUR_UNIFORMS_STD = 37837.227
LARGEST_BELL = 2 * 0xFFFF / FOUR_UNIFORMS_STD


def random_words(case_id: str, tensor: str, seed: int, count: int) -> Array:
    """`count` random 64-bit words that depend on the case, the tensor and the seed, and on nothing else."""
    key = hashlib.sha256(f"{case_id} {tensor} {seed}".encode()).digest()[:16]
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)


def bell(words: Array) -> Array:
    """Words to values of mean 0 and standard deviation 1, none beyond 3.47: the sum of a word's four 16-bit parts."""
    parts = [(words >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
    return (np.sum(parts, axis=0).astype(np.int64) - 2 * 0xFFFF) / FOUR_UNIFORMS_STD


def signed_weights(words: Array) -> Array:
    """Magnitudes in [17/16, 31/16), both signs: never one and never a power of two, which would hide the cast order."""
    sign = np.where(words & np.uint64(1), 1.0, -1.0)
    return sign * (17 / 16 + (words >> np.uint64(12)).astype(np.float64) * 2.0**-52 * (14 / 16))
