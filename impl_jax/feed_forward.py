"""The nonlinearities of a feed-forward layer for JAX.

SwiGLU: Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202. GELU: Hendrycks & Gimpel 2016, arXiv:1606.08415.
"""

import math

from jax import Array, lax
from jaxtyping import Float

from impl_jax.rows import compute_dtype, round_to


def silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""Also called swish.

    $$ y = x\, \sigma(x) $$
    """
    return x * lax.logistic(x)


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


def _share_below(x: Array, approximate: bool) -> Array:
    if approximate:  # (1 + tanh a) / 2 is sigmoid(2a), which does not cancel
        return lax.logistic(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return lax.erfc(-x / math.sqrt(2)) / 2
