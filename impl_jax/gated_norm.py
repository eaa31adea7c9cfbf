"""RMSNorm and a gate in one op for JAX, as Mamba2, Qwen3-Next and gated delta nets have it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from impl_jax.mesh import AxisName
from impl_jax.rms_norm import rms_norm
from impl_jax.rows import check_rows, compute_dtype

ACTIVATIONS = {"silu": jax.nn.silu, "sigmoid": jax.nn.sigmoid}


def gated_rms_norm(
    x: Float[Array, "*batch d"],
    gate: Float[Array, "*batch d"],
    weight: Float[Array, " d"] | None = None,
    *,
    eps: float = 1e-5,
    norm_before_gate: bool = True,
    activation: str = "silu",
    group_size: int | None = None,
    order: str = "scale_then_cast",
    axis_name: AxisName | None = None,
) -> Float[Array, "*batch d"]:
    r"""Multiply by an activation of the gate, after RMSNorm or, without `norm_before_gate`, before it.

    $$ y = \mathrm{rms\_norm}(x) \cdot a(\mathrm{gate}) \quad\text{or}\quad y = \mathrm{rms\_norm}(x \cdot a(\mathrm{gate})) $$

    `activation` is "silu" or "sigmoid"; it and both products are in float32 (float64 for float64). `group_size`, `order` and
    `axis_name` are as in `rms_norm`: with "scale_then_cast" nothing is rounded before the end (fla, mamba_ssm), with
    "cast_then_scale" x_hat is, and then what the norm makes (Hugging Face).

    Raises `ValueError` for another activation and for a gate of another shape than x's, `TypeError` for one of another dtype,
    and as `rms_norm` does.
    """
    _check_activation(activation)
    _check_gate(x, gate)
    a = ACTIVATIONS[activation](gate.astype(compute_dtype(x)))  # *batch d
    how: dict[str, Any] = {"eps": eps, "order": order, "group_size": group_size, "axis_name": axis_name}
    if not norm_before_gate:
        return rms_norm(x.astype(a.dtype) * a, weight, dtype=x.dtype, **how)
    dtype = x.dtype if order == "cast_then_scale" else a.dtype
    z = rms_norm(x, weight, dtype=dtype, **how)  # *batch d
    return (z.astype(a.dtype) * a).astype(x.dtype)


class RMSNormGated(nnx.Module):
    """`gated_rms_norm` over the last axis, of `hidden_size`, with a learned `weight`; named as in mamba_ssm and fla."""

    def __init__(
        self,
        hidden_size: int,
        *,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        activation: str = "silu",
        param_dtype: DTypeLike = jnp.float32,
        order: str = "scale_then_cast",
        rngs: nnx.Rngs | None = None,  # accepted like every flax module's, though nothing here is drawn
    ) -> None:
        _check_activation(activation)
        self.eps = eps
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate
        self.activation = activation
        self.order = order
        self.weight = nnx.Param(jnp.ones(hidden_size, param_dtype))

    def __call__(self, x: Float[Array, "*batch d"], gate: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return gated_rms_norm(
            x,
            gate,
            self.weight[...],
            eps=self.eps,
            norm_before_gate=self.norm_before_gate,
            activation=self.activation,
            group_size=self.group_size,
            order=self.order,
        )


def _check_activation(activation: str) -> None:
    """Raise `ValueError` unless the activation is one of the two."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be 'silu' or 'sigmoid'")


def _check_gate(x: Array, gate: Array) -> None:
    """Raise unless the gate has x's shape (`ValueError`) and dtype (`TypeError`)."""
    check_rows(x)
    if gate.shape != x.shape:
        shape = list(x.shape)
        raise ValueError(f"gate has shape {list(gate.shape)}; with x of shape {shape} it must be {shape}")
    if gate.dtype != x.dtype:
        raise TypeError(f"gate is {gate.dtype}; with x of {x.dtype} it must be {x.dtype}")
