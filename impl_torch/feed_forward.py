"""The nonlinearities of a feed-forward layer for PyTorch: in float32 (float64 for float64), rounded once.

As the compiler fuses them. In eager mode torch's own `silu(gate) * up` rounds in the middle too.
SwiGLU and GeGLU: Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202.
GELU: Hendrycks & Gimpel 2016, arXiv:1606.08415.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from impl_torch.rows import compute_dtype


def silu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Also called swish.

    $$ y = x\, \sigma(x) $$
    """
    return x * torch.sigmoid(x)


def swiglu(gate: Float[Tensor, "*shape"], up: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The gate's SiLU times the other projection."""
    compute = compute_dtype(gate)
    return (silu(gate.to(compute)) * up.to(compute)).to(gate.dtype)


def gelu(x: Float[Tensor, "*shape"], *, approximate: bool = False) -> Float[Tensor, "*shape"]:
    r"""x times the normal distribution's share below it; `approximate` uses a hyperbolic tangent for it.

    $$ y = x\, \Phi(x), \qquad \Phi(x) = \tfrac12 \mathrm{erfc}(-x/\sqrt2) \approx
       \tfrac12 (1 + \tanh(\sqrt{2/\pi}\,(x + 0.044715\,x^3))) $$

    torch's own computes 1 + erf and 1 + tanh, which cancel for x far below zero.
    """
    wide = x.to(compute_dtype(x))
    return (wide * _share_below(wide, approximate)).to(x.dtype)


def geglu(gate: Float[Tensor, "*shape"], up: Float[Tensor, "*shape"], *, approximate: bool = False) -> Float[Tensor, "*shape"]:
    """The gate's GELU times the other projection."""
    compute = compute_dtype(gate)
    return (gelu(gate.to(compute), approximate=approximate) * up.to(compute)).to(gate.dtype)


def _share_below(x: Tensor, approximate: bool) -> Tensor:
    if approximate:  # (1 + tanh a) / 2 is sigmoid(2a), which does not cancel
        return torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return torch.erfc(-x / math.sqrt(2)) / 2
