"""RMSNorm and a gate in one op for PyTorch, as Mamba2, Qwen3-Next and gated delta nets have it."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from impl_torch.kernels import in_triton, triton_gated_norm
from impl_torch.ranks import check_ranks
from impl_torch.rms_norm import rms_norm
from impl_torch.rows import cast, check_rows, compute_dtype

ACTIVATIONS = {"silu": nn.functional.silu, "sigmoid": torch.sigmoid}


def gated_rms_norm(
    x: Float[Tensor, "*batch d"],
    gate: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None = None,
    *,
    eps: float = 1e-5,
    norm_before_gate: bool = True,
    activation: str = "silu",
    group_size: int | None = None,
    order: str = "scale_then_cast",
    kernel: str | None = None,
    process_group: ProcessGroup | None = None,
    rows_group: ProcessGroup | None = None,
) -> Float[Tensor, "*batch d"]:
    r"""Multiply by an activation of the gate, after RMSNorm or, without `norm_before_gate`, before it.

    $$ y = \mathrm{rms\_norm}(x) \cdot a(\mathrm{gate}) \quad\text{or}\quad y = \mathrm{rms\_norm}(x \cdot a(\mathrm{gate})) $$

    x and the gate are [*batch, d], weight [d] or None. `activation` is "silu" or "sigmoid"; it and both products are in float32
    (float64 for float64). `group_size`, `order`, `kernel` and the groups of ranks are as in `rms_norm`: with "scale_then_cast"
    nothing is rounded before the end (fla, mamba_ssm), with "cast_then_scale" x_hat is, and then what the norm makes (Hugging
    Face).

    Raises `ValueError` for another activation and for a gate of another shape than x's, `TypeError` for one of another dtype,
    and as `rms_norm` does.
    """
    _check_activation(activation)
    _check_gate(x, gate)
    settings: Any = {"eps": eps, "order": order, "group_size": group_size}
    check_ranks(group_size, process_group)
    if in_triton(kernel, x, process_group, rows_group):
        return triton_gated_norm(x, gate, weight, **settings, norm_before_gate=norm_before_gate, activation=activation)
    settings |= {"kernel": "torch", "process_group": process_group, "rows_group": rows_group}
    a = ACTIVATIONS[activation](gate.to(compute_dtype(x)))  # *batch d
    if not norm_before_gate:
        return rms_norm(x.to(a.dtype) * a, weight, **settings, dtype=x.dtype)
    dtype = x.dtype if order == "cast_then_scale" else a.dtype
    z = rms_norm(x, weight, **settings, dtype=dtype)  # *batch d
    return cast(z.to(a.dtype) * a, x.dtype)


class RMSNormGated(nn.Module):
    """`gated_rms_norm` over the last axis, of `hidden_size`, with a learned `weight`.

    A drop-in for mamba_ssm's RMSNormGated; `activation` is named as in fla's FusedRMSNormGated.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "silu",
        order: str = "scale_then_cast",
    ) -> None:
        super().__init__()
        _check_activation(activation)
        self.hidden_size = hidden_size
        self.eps = eps
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate
        self.activation = activation
        self.order = order
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to ones."""
        nn.init.ones_(self.weight)

    def forward(self, x: Float[Tensor, "*batch d"], gate: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Norm and gate x, [*batch, hidden_size], by a gate of its shape. Raises as the function does."""
        return gated_rms_norm(
            x,
            gate,
            self.weight,
            eps=self.eps,
            norm_before_gate=self.norm_before_gate,
            activation=self.activation,
            group_size=self.group_size,
            order=self.order,
        )

    def extra_repr(self) -> str:
        groups = f", group_size={self.group_size}" if self.group_size else ""
        how = f"norm_before_gate={self.norm_before_gate}, activation={self.activation!r}, order={self.order!r}"
        return f"{self.hidden_size}, eps={self.eps}, {how}{groups}"


def _check_activation(activation: str) -> None:
    """Raise `ValueError` unless the activation is one of the two."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be 'silu' or 'sigmoid'")


def _check_gate(x: Tensor, gate: Tensor) -> None:
    """Raise unless the gate has x's shape (`ValueError`) and dtype (`TypeError`)."""
    check_rows(x)
    if gate.shape != x.shape:
        shape = list(x.shape)
        raise ValueError(f"gate has shape {list(gate.shape)}; with x of shape {shape} it must be {shape}")
    if gate.dtype != x.dtype:
        raise TypeError(f"gate is {gate.dtype}; with x of {x.dtype} it must be {x.dtype}")
