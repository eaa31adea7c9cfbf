"""The nonlinearities of a feed-forward layer for JAX.

SwiGLU and GeGLU: Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202.
GELU: Hendrycks & Gimpel 2016, arXiv:1606.08415.
"""

import math

import jax
from jax import Array, lax
from jaxtyping import Float

from impl_jax.rows import compute_dtype, round_to


@jax.custom_jvp
def sigmoid(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 / (1 + exp(−x)); its derivative σ(x) σ(−x) does not cancel, as autodiff's σ(x) (1 − σ(x)) does for large x."""
    return lax.logistic(x)


sigmoid.defjvps(lambda dx, y, x: dx * y * lax.logistic(-x))


def silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""Also called swish.

    $$ y = x\, \sigma(x) $$
    """
    return x * sigmoid(x)


def swiglu(gate: Float[Array, "*shape"], up: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The gate's SiLU times the other projection, in float32 (float64 for float64) and rounded once, to the gate's dtype."""
    compute = compute_dtype(gate)
    return round_to(silu(gate.astype(compute)) * up.astype(compute), gate.dtype)


def gelu(x: Float[Array, "*shape"], *, approximate: bool = False) -> Float[Array, "*shape"]:
    r"""x times the normal distribution's share below it; `approximate` uses a hyperbolic tangent for it.

    $$ y = x\, \Phi(x), \qquad \Phi(x) = \tfrac12 \mathrm{erfc}(-x/\sqrt2) \approx
       \tfrac12 (1 + \tanh(\sqrt{2/\pi}\,(x + 0.044715\,x^3))) $$

    In float32 (float64 for float64), and rounded once, to x's dtype.
    """
    wide = x.astype(compute_dtype(x))
    return round_to(wide * _share_below(wide, approximate), x.dtype)


def geglu(gate: Float[Array, "*shape"], up: Float[Array, "*shape"], *, approximate: bool = False) -> Float[Array, "*shape"]:
    """The gate's GELU times the other projection, in float32 (float64 for float64) and rounded once, to the gate's dtype."""
    compute = compute_dtype(gate)
    return round_to(gelu(gate.astype(compute), approximate=approximate) * up.astype(compute), gate.dtype)


def _share_below(x: Array, approximate: bool) -> Array:
    if approximate:  # (1 + tanh a) / 2 is sigmoid(2a), which does not cancel
        return sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return lax.erfc(-x / math.sqrt(2)) / 2
