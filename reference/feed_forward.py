"""The nonlinearities of a feed-forward layer in float64.

SwiGLU and GeGLU: Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202.
GELU: Hendrycks & Gimpel 2016, arXiv:1606.08415.
"""

import math

import numpy as np
from jaxtyping import Float64

from reference.arguments import check_alike

Array = np.ndarray

_erfc = np.frompyfunc(math.erfc, 1, 1)


def sigmoid(x: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
    """1 / (1 + exp(−x)), without overflow, and below zero without loss: exp(x) / (1 + exp(x))."""
    exponential = np.exp(-np.abs(x))
    return np.where(x < 0, exponential, 1.0) / (1 + exponential)


def silu(x: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
    r"""Also called swish.

    $$ y = x\, \sigma(x) $$
    """
    return x * sigmoid(x)


def silu_vjp(dy: Float64[Array, "*shape"], x: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
    """Pull a cotangent of y back to x."""
    return dy * sigmoid(x) * (1 + x * sigmoid(-x))


def swiglu(gate: Float64[Array, "*shape"], up: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
    """The gate's SiLU times the other projection.

    Raises `ValueError` where the two are of unlike shapes.
    """
    check_alike("swiglu", gate=gate, up=up)
    return silu(gate) * up


def swiglu_vjp(
    dy: Float64[Array, "*shape"], gate: Float64[Array, "*shape"], up: Float64[Array, "*shape"]
) -> tuple[Float64[Array, "*shape"], Float64[Array, "*shape"]]:
    """Pull a cotangent of y back to gate and up."""
    check_alike("swiglu_vjp", gate=gate, up=up, dy=dy)
    return silu_vjp(dy * up, gate), dy * silu(gate)


def gelu(x: Float64[Array, "*shape"], *, approximate: bool = False) -> Float64[Array, "*shape"]:
    r"""x times the normal distribution's share below it; `approximate` uses a hyperbolic tangent for it.

    $$ y = x\, \Phi(x), \qquad \Phi(x) = \tfrac12 \mathrm{erfc}(-x/\sqrt2) \approx
       \tfrac12 (1 + \tanh(\sqrt{2/\pi}\,(x + 0.044715\,x^3))) $$

    The two differ by up to 4.7e-4: too little for a bfloat16 layer to notice, too much for a float32 one.
    """
    check_alike("gelu", x=x)
    return x * (sigmoid(_logit(x)) if approximate else _share_below(x))


def gelu_vjp(
    dy: Float64[Array, "*shape"], x: Float64[Array, "*shape"], *, approximate: bool = False
) -> Float64[Array, "*shape"]:
    """Pull a cotangent of y back to x."""
    check_alike("gelu_vjp", x=x, dy=dy)
    if approximate:
        share, above = sigmoid(_logit(x)), sigmoid(-_logit(x))
        slope = share * above * math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * np.square(x))
    else:
        share, slope = _share_below(x), np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi)
    return dy * (share + x * slope)


def geglu(
    gate: Float64[Array, "*shape"], up: Float64[Array, "*shape"], *, approximate: bool = False
) -> Float64[Array, "*shape"]:
    """The gate's GELU times the other projection.

    Raises `ValueError` where the two are of unlike shapes.
    """
    check_alike("geglu", gate=gate, up=up)
    return gelu(gate, approximate=approximate) * up


def geglu_vjp(
    dy: Float64[Array, "*shape"],
    gate: Float64[Array, "*shape"],
    up: Float64[Array, "*shape"],
    *,
    approximate: bool = False,
) -> tuple[Float64[Array, "*shape"], Float64[Array, "*shape"]]:
    """Pull a cotangent of y back to gate and up."""
    check_alike("geglu_vjp", gate=gate, up=up, dy=dy)
    return gelu_vjp(dy * up, gate, approximate=approximate), dy * gelu(gate, approximate=approximate)


def _share_below(x: Array) -> Array:
    return np.asarray(_erfc(-x / math.sqrt(2)), np.float64) / 2


def _logit(x: Array) -> Array:
    """Of the approximate share: (1 + tanh(a)) / 2 is sigmoid(2a), which does not cancel."""
    return math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)
