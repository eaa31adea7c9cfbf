"""RMSNorm and a gate by the kernels, and its gradients: custom ops, as in `launch`."""

from typing import Any

import torch
import triton
from torch import Tensor

from impl_torch.gated_norm import gated_rms_norm
from impl_torch.kernels.gated import gated_backward, gated_forward
from impl_torch.kernels.grid import HELD_BACKWARD, HELD_FORWARD, TRITONS, as_rows, persistent_programs, side_by_side, tile_of
from impl_torch.kernels.interpreter import check_device, mend
from impl_torch.rows import cast, check_order, check_rows, compute_dtype, groups_of, output_dtype

mend()


def gated_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    *,
    eps: float,
    norm_before_gate: bool,
    activation: str,
    group_size: int | None,
    order: str,
) -> Tensor:
    """Return what `gated_rms_norm` does, which has checked the activation and the gate."""
    check_order(order)
    check_rows(x, weight=weight)
    settings = (eps, norm_before_gate, activation, order, groups_of(group_size, x))
    y, _ = forward(x, gate, weight, *settings)
    return y


@torch.library.custom_op("impl_torch::gated_norm_forward", mutates_args=())
def forward(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    eps: float,
    norm_before_gate: bool,
    activation: str,
    order: str,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Return y, [*batch, d], and rstd, [*batch, groups]; x and the gate are [*batch, d], weight [d]."""
    check_device(x.device.type)
    outputs = y, rstd = _forward_outputs(x, weight, norm_before_gate, order, groups)
    if x.numel() == 0:
        return outputs
    rows, gates = as_rows(x), as_rows(gate)
    n_rows, width = len(rows), x.shape[-1] // groups
    tile = tile_of(width, HELD_FORWARD)
    kernel: Any = gated_forward[triton.cdiv(n_rows, tile["ROWS"]), groups]
    with torch.cuda.device_of(x):
        kernel(
            y,
            rstd,
            rows,
            gates,
            side_by_side(weight),
            n_rows,
            width,
            rows.stride(0),
            gates.stride(0),
            eps=eps,
            **_constants(x, weight, norm_before_gate, activation, order),
            **tile,
        )
    return outputs


@torch.library.custom_op("impl_torch::gated_norm_backward", mutates_args=())
def backward(
    dy: Tensor,
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    norm_before_gate: bool,
    activation: str,
    order: str,
    groups: int,
    of_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx and dgate, [*batch, d], and dweight, [d] in the dtype of sums, or nothing, [0]."""
    outputs = dx, dgate, dweight = _backward_outputs(x, of_weight)
    if x.numel() == 0:
        return dx, dgate, dweight.zero_()
    dys, rows, gates = as_rows(dy), as_rows(x), as_rows(gate)
    n_rows, width = len(rows), x.shape[-1] // groups
    tile = tile_of(width, HELD_BACKWARD)
    programs = persistent_programs(x, n_rows, groups, tile)
    parts = dweight.new_zeros(programs, x.shape[-1]) if of_weight else None
    kernel: Any = gated_backward[programs, groups]
    with torch.cuda.device_of(x):
        kernel(
            dx,
            dgate,
            parts,
            dys,
            rows,
            gates,
            side_by_side(weight),
            rstd,
            n_rows,
            width,
            dys.stride(0),
            rows.stride(0),
            gates.stride(0),
            **_constants(x, weight, norm_before_gate, activation, order),
            **tile,
        )
    if parts is not None:
        torch.sum(parts, dim=0, out=dweight)
    return outputs


@forward.register_fake
def _(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    eps: float,
    norm_before_gate: bool,
    activation: str,
    order: str,
    groups: int,
) -> tuple[Tensor, Tensor]:
    return _forward_outputs(x, weight, norm_before_gate, order, groups)


@backward.register_fake
def _(dy: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _backward_outputs(x, of_weight=others[-1])


def _forward_outputs(
    x: Tensor, weight: Tensor | None, norm_before_gate: bool, order: str, groups: int
) -> tuple[Tensor, Tensor]:
    """Memory for y and rstd. A gate that comes last leaves y in x's dtype."""
    y_dtype = x.dtype if norm_before_gate else output_dtype(order, x.dtype, weight)
    return x.new_empty(x.shape, dtype=y_dtype), x.new_empty((*x.shape[:-1], groups), dtype=compute_dtype(x))


def _backward_outputs(x: Tensor, of_weight: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for dx, dgate and dweight."""
    dweight = x.new_empty(x.shape[-1] if of_weight else 0, dtype=compute_dtype(x))
    return x.new_empty(x.shape), x.new_empty(x.shape), dweight


def _constants(x: Tensor, weight: Tensor | None, norm_before_gate: bool, activation: str, order: str) -> dict[str, Any]:
    """What both kernels are compiled for."""
    compute = compute_dtype(x)
    x_hat_dtype = x.dtype if order == "cast_then_scale" else compute
    z_dtype = output_dtype(order, x_hat_dtype, weight) if norm_before_gate else compute
    dtypes = {"X_HAT": TRITONS[x_hat_dtype], "Z": TRITONS[z_dtype], "COMPUTE": TRITONS[compute]}
    return {"NORM_FIRST": norm_before_gate, "SILU": activation == "silu", **dtypes}


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    """Keep what the op read, and rstd."""
    x, gate, weight, ctx.eps, *ctx.settings = inputs
    _, rstd = output
    ctx.save_for_backward(x, gate, weight, rstd)
    ctx.mark_non_differentiable(rstd)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, _of_rstd: None) -> tuple[Tensor | None, ...]:
    """The gradients of x, the gate and the weight; by torch's operations where they are to be differentiated themselves."""
    x, gate, weight, rstd = ctx.saved_tensors
    norm_before_gate, activation, order, groups = ctx.settings
    dx, dgate, dweight = None, None, None
    if dy is not None and torch.is_grad_enabled():
        how: Any = {"eps": ctx.eps, "norm_before_gate": norm_before_gate, "activation": activation, "order": order}
        y = gated_rms_norm(x, gate, weight, **how, group_size=x.shape[-1] // groups, kernel="torch")
        wanted = [leaf for leaf in (x, gate, weight) if leaf is not None and leaf.requires_grad]
        gradients = dict(zip(wanted, torch.autograd.grad(y, wanted, dy, create_graph=True), strict=True))
        dx, dgate, dweight = (gradients.get(leaf) for leaf in (x, gate, weight))
    elif dy is not None:
        of_weight = ctx.needs_input_grad[2]
        dx, dgate, dweight = backward(dy, x, gate, weight, rstd, *ctx.settings, of_weight)
        dweight = cast(dweight, weight.dtype) if of_weight else None
    return dx, dgate, dweight, *[None] * 5


forward.register_autograd(_gradients, setup_context=_keep)
