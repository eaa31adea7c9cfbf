"""RMSNorm and a gate with one fault each, as people write it in PyTorch, differentiated by autograd."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.judge.written.fault import Fault
from tests.judge.written.torch_steps import HALF, Run, Written, honest, upcast

fault = Written("gated_rms_norm")
ACTIVATIONS = {"silu": F.silu, "sigmoid": torch.sigmoid}


def activation_of(gate: Tensor, activation: str) -> Tensor:
    """The activation that is asked for, in the compute dtype."""
    return ACTIVATIONS[activation](upcast(gate))


def groups(x: Tensor, size: int | None) -> Tensor:
    """The rows, or their groups, each a row of its own."""
    return x if size is None else x.unflatten(-1, (-1, size))


def normed(
    x: Tensor, weight: Tensor | None, *, eps: float, order: str = "", group_size: int | None = None, dtype: torch.dtype
) -> Tensor:
    """RMSNorm of x in the compute dtype, by groups, with the cast where the order asks for it."""
    rows = groups(upcast(x), group_size)
    x_hat = (rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + eps)).flatten(-2 if group_size else -1)
    if order == "cast_then_scale":
        x_hat = x_hat.to(dtype)
        return x_hat if weight is None else x_hat * weight
    return x_hat if weight is None else x_hat * upcast(weight)


def gated(act: Callable[..., Tensor] = activation_of) -> Run:
    """The whole of it, with an activation."""

    def run(
        x: Tensor,
        gate: Tensor,
        weight: Tensor | None,
        *,
        norm_before_gate: bool,
        activation: str,
        **dialect: Any,
    ) -> Tensor:
        a = act(gate, activation)
        if norm_before_gate:
            return (upcast(normed(x, weight, dtype=x.dtype, **dialect)) * a).to(x.dtype)
        return normed(upcast(x) * a, weight, dtype=x.dtype, **dialect).to(x.dtype)

    return run


def textbook(x: Tensor, gate: Tensor, weight: Tensor | None, **asked: Any) -> Tensor:
    """Nothing is rounded but what the order asks for."""
    return gated()(x, gate, weight, **asked)


HONEST = (honest("gated_rms_norm", textbook),)


@fault("silu_of_1.702_gate")
def gated_by_quick_silu(x: Tensor, gate: Tensor, weight: Tensor | None, **asked: Any) -> Tensor:
    """SiLU is quick GELU's."""

    def act(gate: Tensor, activation: str) -> Tensor:
        wide = upcast(gate)
        return wide * torch.sigmoid(1.702 * wide) if activation == "silu" else torch.sigmoid(wide)

    return gated(act)(x, gate, weight, **asked)


@fault("gate_sigmoid_for_silu")
def gated_by_sigmoid_always(x: Tensor, gate: Tensor, weight: Tensor | None, **asked: Any) -> Tensor:
    """The argument that says which activation is not read."""
    return gated(lambda gate, _: torch.sigmoid(upcast(gate)))(x, gate, weight, **asked)


@fault()
def gated_by_gelu(x: Tensor, gate: Tensor, weight: Tensor | None, **asked: Any) -> Tensor:
    """GELU for SiLU."""
    by_gelu = gated(lambda gate, activation: F.gelu(upcast(gate)) if activation == "silu" else activation_of(gate, activation))
    return by_gelu(x, gate, weight, **asked)


@fault()
def gate_clamped_at_two(x: Tensor, gate: Tensor, weight: Tensor | None, **asked: Any) -> Tensor:
    """A gate beyond two is cut off."""
    return gated(lambda gate, activation: activation_of(gate.clamp(-2, 2), activation))(x, gate, weight, **asked)


@fault("dgate_zero", group="backward")
def gate_from_a_buffer(x: Tensor, gate: Tensor, weight: Tensor | None, **asked: Any) -> Tensor:
    """The activation is computed under no_grad."""
    return gated(lambda gate, activation: activation_of(gate.detach(), activation) + 0 * upcast(gate))(x, gate, weight, **asked)


@fault("gate_and_norm_swapped")
def gate_always_first(x: Tensor, gate: Tensor, weight: Tensor | None, *, norm_before_gate: bool, **asked: Any) -> Tensor:
    """The argument that says which comes first is not read."""
    return gated()(x, gate, weight, norm_before_gate=False, **asked)


@fault("gate_and_norm_swapped")
def norm_always_first(x: Tensor, gate: Tensor, weight: Tensor | None, *, norm_before_gate: bool, **asked: Any) -> Tensor:
    """The same, the other way round."""
    return gated()(x, gate, weight, norm_before_gate=True, **asked)


@fault("activation_in_storage_dtype", dtypes=HALF)
def gate_not_upcast(x: Tensor, gate: Tensor, weight: Tensor | None, **asked: Any) -> Tensor:
    """F.silu(gate), in x's dtype."""
    return gated(lambda gate, activation: upcast(ACTIVATIONS[activation](gate)))(x, gate, weight, **asked)


@fault("gated_in_storage_dtype", "activation_in_storage_dtype", dtypes=HALF)
def gated_outside(
    x: Tensor, gate: Tensor, weight: Tensor | None, *, norm_before_gate: bool, activation: str, **dialect: Any
) -> Tensor:
    """A norm and a product, one after the other, each in x's dtype."""
    a = ACTIVATIONS[activation](gate)
    if norm_before_gate:
        return normed(x, weight, dtype=x.dtype, **dialect).to(x.dtype) * a
    return normed(x * a, weight, dtype=x.dtype, **dialect).to(x.dtype)


@fault("eps_1e-06")
def gated_with_eps_of_its_own(x: Tensor, gate: Tensor, weight: Tensor | None, *, eps: float, **asked: Any) -> Tensor:
    """eps is what it is in the model at hand."""
    return gated()(x, gate, weight, eps=1e-6, **asked)


@fault()
def gated_weight_inside(
    x: Tensor, gate: Tensor, weight: Tensor | None, *, norm_before_gate: bool, activation: str, **dialect: Any
) -> Tensor:
    """The weight multiplies what is normalised."""
    a, w = activation_of(gate, activation), 1.0 if weight is None else upcast(weight)
    if norm_before_gate:
        return (upcast(normed(upcast(x) * w, None, dtype=x.dtype, **dialect)) * a).to(x.dtype)
    return normed(upcast(x) * a * w, None, dtype=x.dtype, **dialect).to(x.dtype)


FAULTS: tuple[Fault, ...] = tuple(fault.faults)
