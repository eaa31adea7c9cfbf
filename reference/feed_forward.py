"""The nonlinearities of a feed-forward layer in float64.

SwiGLU: Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202. GELU: Hendrycks & Gimpel 2016, arXiv:1606.08415.
"""

import math

import numpy as np
from jaxtyping import Float64

Array = np.ndarray

_erfc = np.frompyfunc(math.erfc, 1, 1)


def sigmoid(x: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
    """1 / (1 + exp(−x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


def silu(x: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
    r"""Also called swish.

    $$ y = x\, \sigma(x) $$
    """
    return x * sigmoid(x)


def silu_vjp(dy: Float64[Array, "*shape"], x: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
    """Pull a cotangent of y back to x."""
    return dy * sigmoid(x) * (1 + x * sigmoid(-x))


def swiglu(gate: Float64[Array, "*shape"], up: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
    """The gate's SiLU times the other projection."""
    return silu(gate) * up


def swiglu_vjp(
    dy: Float64[Array, "*shape"], gate: Float64[Array, "*shape"], up: Float64[Array, "*shape"]
) -> tuple[Float64[Array, "*shape"], Float64[Array, "*shape"]]:
    """Pull a cotangent of y back to gate and up."""
    return silu_vjp(dy * up, gate), dy * silu(gate)


def gelu(x: Float64[Array, "*shape"], *, approximate: bool = False) -> Float64[Array, "*shape"]:
    r"""x times the normal distribution's share below it; `approximate` uses a hyperbolic tangent for it.

    $$ y = x\, \Phi(x), \qquad \Phi(x) = \tfrac12 \mathrm{erfc}(-x/\sqrt2) \approx
       \tfrac12 (1 + \tanh(\sqrt{2/\pi}\,(x + 0.044715\,x^3))) $$

    The two differ by up to 4.7e-4: too little for a bfloat16 layer to notice, too much for a float32 one.
    """
    return x * _share_below(x, approximate)


def gelu_vjp(
    dy: Float64[Array, "*shape"], x: Float64[Array, "*shape"], *, approximate: bool = False
) -> Float64[Array, "*shape"]:
    """Pull a cotangent of y back to x."""
    share = _share_below(x, approximate)
    if approximate:
        slope = 2 * share * (1 - share) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * np.square(x))
    else:
        slope = np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi)
    return dy * (share + x * slope)


def _share_below(x: Array, approximate: bool) -> Array:
    if approximate:  # (1 + tanh a) / 2 is sigmoid(2a), which does not cancel
        return sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return np.asarray(_erfc(-x / math.sqrt(2)), np.float64) / 2
