"""RMSNorm and a gate in one op, in float64: Dao & Gu 2024, "Transformers are SSMs" (Mamba2), arXiv:2405.21060."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from reference.arguments import check_float64, check_shape
from reference.rms_norm import rms_norm, rms_norm_vjp

Array = np.ndarray
Activation = Literal["silu", "sigmoid"]


class GatedRMSNorm(NamedTuple):
    """The output of `gated_rms_norm` and the intermediates on the way to it."""

    y: Float64[Array, "*batch d"]
    rstd: Float64[Array, "*batch groups"]
    x_hat: Float64[Array, "*batch d"]


class GatedRMSNormGradients(NamedTuple):
    """The gradients of ⟨y, dy⟩; `dweight` is None where there is no weight."""

    dx: Float64[Array, "*batch d"]
    dgate: Float64[Array, "*batch d"]
    dweight: Float64[Array, " d"] | None


def gated_rms_norm(
    x: Float64[Array, "*batch d"],
    gate: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    *,
    eps: float,
    norm_before_gate: bool,
    activation: Activation,
    group_size: int | None = None,
) -> GatedRMSNorm:
    r"""Multiply by an activation of the gate, after RMSNorm or before it.

    $$ y = \mathrm{rms\_norm}(x) \cdot a(\mathrm{gate}) \quad\text{or}\quad y = \mathrm{rms\_norm}(x \cdot a(\mathrm{gate})) $$

    The first is with `norm_before_gate` (Qwen3-Next, fla), the second without it (Mamba2): two functions, and checkpoints of
    one give nonsense in the other. a is `silu`, g·σ(g), or `sigmoid`, σ(g). `group_size` is as in `rms_norm`.

    Raises `ValueError` for an activation of another name, a gate of another shape than x's, and as `rms_norm` does.
    """
    a, _ = _activated("gated_rms_norm", x, gate, activation)
    if norm_before_gate:
        z, rstd, x_hat = rms_norm(x, weight, eps=eps, group_size=group_size)
        return GatedRMSNorm(z * a, rstd, x_hat)
    return GatedRMSNorm(*rms_norm(x * a, weight, eps=eps, group_size=group_size))


def gated_rms_norm_vjp(
    dy: Float64[Array, "*batch d"],
    x: Float64[Array, "*batch d"],
    gate: Float64[Array, "*batch d"],
    weight: Float64[Array, " d"] | None = None,
    *,
    eps: float,
    norm_before_gate: bool,
    activation: Activation,
    group_size: int | None = None,
) -> GatedRMSNormGradients:
    r"""Pull a cotangent dy of y back to x, gate and weight.

    $$ dx = \mathrm{rms\_norm\_vjp}(dy \cdot a)\big|_x, \quad d\mathrm{gate} = dy \cdot \mathrm{rms\_norm}(x) \cdot a'
       \qquad\text{or, with } ds = \mathrm{rms\_norm\_vjp}(dy)\big|_{x \cdot a},\qquad
       dx = ds \cdot a, \quad d\mathrm{gate} = ds \cdot x \cdot a' $$

    Where the norm is first its weight is in dgate; where it is last, all of its gradient is.
    """
    a, slope = _activated("gated_rms_norm_vjp", x, gate, activation, dy=dy)
    if norm_before_gate:
        z = rms_norm(x, weight, eps=eps, group_size=group_size).y
        dx, dweight = rms_norm_vjp(dy * a, x, weight, eps=eps, group_size=group_size)
        return GatedRMSNormGradients(dx, dy * z * slope, dweight)
    ds, dweight = rms_norm_vjp(dy, x * a, weight, eps=eps, group_size=group_size)
    return GatedRMSNormGradients(ds * a, ds * x * slope, dweight)


def silu(gate: Array) -> tuple[Array, Array]:
    r"""The gate times its sigmoid, and the derivative of that: σ·(1 + g·σ(−g))."""
    share, rest = _share(gate), _share(-gate)
    return gate * share, share * (1 + gate * rest)


def sigmoid(gate: Array) -> tuple[Array, Array]:
    r"""1 / (1 + e^(−g)), and its derivative: σ·σ(−g)."""
    share, rest = _share(gate), _share(-gate)
    return share, share * rest


def _share(gate: Array) -> Array:
    """The sigmoid: of e^(−|g|), which does not overflow."""
    e = np.exp(-np.abs(gate))
    return np.where(gate < 0, e, 1.0) / (1 + e)


ACTIVATIONS = {"silu": silu, "sigmoid": sigmoid}
"""By name: a gate to its activation and the derivative of that."""


def _activated(op: str, x: Array, gate: Array, activation: str, dy: Array | None = None) -> tuple[Array, Array]:
    """The activation of the gate and its derivative; raises unless it is known, and the gate and dy are like x."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}")
    for name, array in {"gate": gate, "dy": dy}.items():
        if array is not None:
            check_shape(op, name, array, x.shape, x=x)
    check_float64(op, x=x, gate=gate, dy=dy)
    return ACTIVATIONS[activation](gate)
