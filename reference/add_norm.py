"""A residual and a norm in one op, in float64: s = x + residual, y = norm(s), as every Pre-LN block runs it between layers."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from reference.arguments import check_float64, check_shape
from reference.layer_norm import layer_norm, layer_norm_vjp
from reference.rms_norm import rms_norm, rms_norm_vjp

Array = np.ndarray
Rounding = Callable[[Array], Array]


class AddNorm(NamedTuple):
    """The outputs of `add_rms_norm` and `add_layer_norm`."""

    y: Float64[Array, "*batch d"]
    residual_out: Float64[Array, "*batch d"]


class AddNormGradients(NamedTuple):
    """The gradients of ⟨y, dy⟩ + ⟨residual_out, dresidual_out⟩; a parameter's is None where there is no such parameter."""

    dx: Float64[Array, "*batch d"]
    dresidual: Float64[Array, "*batch d"]
    dweight: Float64[Array, " d"] | None
    dbias: Float64[Array, " d"] | None = None


def add_rms_norm(
    x: Float64[Array, "*batch d"],
    residual: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    *,
    eps: float,
    weight_offset: float = 0.0,
    round_sum: Rounding | None = None,
) -> AddNorm:
    r"""Add the residual to x, return the sum, and RMSNorm of it.

    $$ s = x + \mathrm{residual}, \qquad y = \mathrm{rms\_norm}(s) $$

    Implementations differ in what the norm reads: s as it is stored, after `round_sum` (vLLM's fused_add_rms_norm, Hugging
    Face's blocks), or s as it was summed, with `round_sum` None (FlashInfer, Mamba's float32 residual).

    Raises `ValueError` for a residual of another shape than x's, and as `rms_norm` does.
    """
    s = _sum("add_rms_norm", x, residual, round_sum)
    return AddNorm(rms_norm(s, weight, eps=eps, weight_offset=weight_offset).y, s)


def add_rms_norm_vjp(
    dy: Float64[Array, "*batch d"] | None,
    dresidual_out: Float64[Array, "*batch d"] | None,
    x: Float64[Array, "*batch d"],
    residual: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    *,
    eps: float,
    weight_offset: float = 0.0,
    round_sum: Rounding | None = None,
) -> AddNormGradients:
    r"""Pull the cotangents of both outputs back; either may be None, where nothing reads that output.

    $$ dx = d\mathrm{residual} = \mathrm{rms\_norm\_vjp}(dy)\big|_s + d\mathrm{residual\_out} $$

    A sum passes its gradient on to both summands whole. A rounding passes it on as it is.
    """
    s = _sum("add_rms_norm_vjp", x, residual, round_sum, dy=dy, dresidual_out=dresidual_out)
    norm = rms_norm_vjp(_or_zeros(dy, s), s, weight, eps=eps, weight_offset=weight_offset)
    ds = norm.dx + _or_zeros(dresidual_out, s)  # *batch d
    return AddNormGradients(ds, ds, norm.dweight)


def add_layer_norm(
    x: Float64[Array, "*batch d"],
    residual: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    bias: Float64[Array, " d"] | None = None,
    *,
    eps: float,
    weight_offset: float = 0.0,
    round_sum: Rounding | None = None,
) -> AddNorm:
    r"""Add the residual to x, return the sum, and LayerNorm of it. `round_sum` and what is raised are as in `add_rms_norm`.

    $$ s = x + \mathrm{residual}, \qquad y = \mathrm{layer\_norm}(s) $$
    """
    s = _sum("add_layer_norm", x, residual, round_sum)
    return AddNorm(layer_norm(s, weight, bias, eps=eps, weight_offset=weight_offset).y, s)


def add_layer_norm_vjp(
    dy: Float64[Array, "*batch d"] | None,
    dresidual_out: Float64[Array, "*batch d"] | None,
    x: Float64[Array, "*batch d"],
    residual: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    bias: Float64[Array, " d"] | None = None,
    *,
    eps: float,
    weight_offset: float = 0.0,
    round_sum: Rounding | None = None,
) -> AddNormGradients:
    """Pull the cotangents of both outputs back, as `add_rms_norm_vjp` does."""
    s = _sum("add_layer_norm_vjp", x, residual, round_sum, dy=dy, dresidual_out=dresidual_out)
    norm = layer_norm_vjp(_or_zeros(dy, s), s, weight, bias, eps=eps, weight_offset=weight_offset)
    ds = norm.dx + _or_zeros(dresidual_out, s)  # *batch d
    return AddNormGradients(ds, ds, norm.dweight, norm.dbias)


def _sum(op: str, x: Array, residual: Array, round_sum: Rounding | None, **cotangents: Array | None) -> Array:
    """The sum, as the norm reads it; raises unless what is added, and the cotangents, are like x."""
    for name, array in {"residual": residual, **cotangents}.items():
        if array is not None:
            check_shape(op, name, array, x.shape, x=x)
    check_float64(op, x=x, residual=residual, **cotangents)
    s = x + residual  # *batch d
    return s if round_sum is None else round_sum(s)


def _or_zeros(cotangent: Array | None, s: Array) -> Array:
    return np.zeros_like(s) if cotangent is None else cotangent
