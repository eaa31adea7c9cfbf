"""Rope, softmax, SwiGLU and GELU at fifty digits, one element at a time; the companion of `mp_norms`.

Again only the forward definitions are written down, and gradients are differences of them. A size is the formula over
absolute values, and where a rounded intermediate goes through a function that makes much of it (an angle of thousands, an
exponent of minus a hundred), what one ulp of the intermediate does to the result.
"""

from collections.abc import Callable

import numpy as np
from mp_norms import STEP, Exact, mp, mpf, to_mp

Array = np.ndarray

DIGITS = mp.workdps(400)  # for tails: a probability of 1e-174 is a difference of its neighbours', and so is 1 + tanh(−300)


def differentiate(f: Callable[[mpf], mpf], x: mpf) -> mpf:
    """Take a central difference."""
    return (f(x + STEP) - f(x - STEP)) / (2 * STEP)


def elementwise(f: Callable[..., mpf], *arrays: Array) -> Array:
    """Evaluate f at every element, none of them a NumPy scalar."""
    return np.vectorize(f, otypes=[object])(*map(to_mp, arrays))


def rope(x: Array, positions: Array, *, base: float, interleaved: bool, rotary_features: int | None) -> Exact:
    """Turn pairs of the first d features of x [s, h, d_head] by p · base^(−2i/d); the others stay."""
    value, size = to_mp(x), abs(to_mp(x))
    d = rotary_features or x.shape[-1]
    for s, h, i in np.ndindex(*x.shape[:-1], d // 2):
        j, k = (2 * i, 2 * i + 1) if interleaved else (i, i + d // 2)
        exponent = mpf(-2 * i) / d
        angle = mpf(positions[s]) * mpf(base) ** exponent
        angle_size = abs(angle) * (1 + abs(exponent) * mp.log(base))  # a power makes the more of its exponent's rounding
        cos, sin, a, b = mp.cos(angle), mp.sin(angle), mpf(x[s, h, j]), mpf(x[s, h, k])
        value[s, h, j], value[s, h, k] = a * cos - b * sin, b * cos + a * sin
        size[s, h, j] = abs(a * cos) + abs(b * sin) + abs(value[s, h, k]) * angle_size
        size[s, h, k] = abs(b * cos) + abs(a * sin) + abs(value[s, h, j]) * angle_size
    return Exact(value, size)


def softmax(scores: list[mpf]) -> list[mpf]:
    """Evaluate the definition."""
    exponentials = [mp.exp(score) for score in scores]
    total = mp.fsum(exponentials)
    return [e / total for e in exponentials]


@DIGITS
def softmax_and_vjp(scores: Array, dprobs: Array) -> dict[str, Exact]:
    """Normalise one row of scores, and differentiate ⟨probs, dprobs⟩."""
    row, dp = list(to_mp(scores)), list(to_mp(dprobs))

    def inner(j: int, score: mpf) -> mpf:
        return mp.fdot(softmax([*row[:j], score, *row[j + 1 :]]), dp)

    probs = np.array(softmax(row))
    probs_size = probs * [1 + max(row) - score for score in row]
    dscores = np.array([differentiate(lambda s, j=j: inner(j, s), score) for j, score in enumerate(row)])
    terms, terms_size = abs(to_mp(dprobs)) * probs, abs(to_mp(dprobs)) * probs_size
    dscores_size = terms_size + probs_size * terms.sum() + probs * terms_size.sum()
    return {"probs": Exact(probs, probs_size), "dscores": Exact(dscores, dscores_size)}


@DIGITS
def soft_cap_and_vjp(scores: Array, dcapped: Array, cap: float) -> dict[str, Exact]:
    """Evaluate cap · tanh(score / cap), and its slope, which makes of an argument's rounding as much as it is steep."""

    def capped(score: mpf) -> mpf:
        return mpf(cap) * mp.tanh(score / mpf(cap))

    def slope_size(score: mpf) -> mpf:
        return (1 + 2 * abs(score / mpf(cap))) / mp.cosh(score / mpf(cap)) ** 2

    value, slope = elementwise(capped, scores), elementwise(lambda score: differentiate(capped, score), scores)
    sizes = elementwise(slope_size, scores) * abs(to_mp(dcapped))
    return {"capped": Exact(value, abs(value)), "dscores": Exact(slope * to_mp(dcapped), sizes)}


def sigmoid(x: mpf) -> mpf:
    """Evaluate the definition."""
    return 1 / (1 + mp.exp(-x))


@DIGITS
def swiglu_and_vjp(gate: Array, up: Array, dy: Array) -> dict[str, Exact]:
    """Evaluate gate · sigmoid(gate) · up, and the gradients of ⟨y, dy⟩. Nothing cancels but the slope's two terms."""

    def silu(x: mpf) -> mpf:
        return x * sigmoid(x)

    def slope_size(x: mpf) -> mpf:
        return sigmoid(x) * (1 + abs(x) * sigmoid(-x))

    up, dy, y = to_mp(up), to_mp(dy), elementwise(silu, gate)
    slope = elementwise(lambda x: differentiate(silu, x), gate)
    return {
        "y": Exact(y * up, abs(y * up)),
        "dgate": Exact(slope * up * dy, elementwise(slope_size, gate) * abs(up * dy)),
        "dup": Exact(y * dy, abs(y * dy)),
    }


@DIGITS
def gelu_and_vjp(x: Array, dy: Array, *, approximate: bool) -> dict[str, Exact]:
    """Evaluate x · share(x), and the gradient of ⟨y, dy⟩.

    The share is a function of a rounded argument, as is its slope: each counts what an ulp of x does to it.
    """
    dy = to_mp(dy)

    def share(x: mpf) -> mpf:
        inner = mp.sqrt(2 / mp.pi) * (x + mpf("0.044715") * x**3)
        return (1 + mp.tanh(inner)) / 2 if approximate else mp.erfc(-x / mp.sqrt(2)) / 2

    def slope(x: mpf) -> mpf:
        return differentiate(share, x)

    def share_size(x: mpf) -> mpf:
        return share(x) + abs(x) * slope(x)

    def slope_size(x: mpf) -> mpf:
        return slope(x) + abs(x * differentiate(slope, x))

    y = elementwise(lambda x: x * share(x), x)
    dydx = elementwise(lambda x: differentiate(lambda x: x * share(x), x), x)
    return {
        "y": Exact(y, elementwise(lambda x: abs(x) * share_size(x), x)),
        "dx": Exact(dydx * dy, elementwise(lambda x: share_size(x) + abs(x) * slope_size(x), x) * abs(dy)),
    }
