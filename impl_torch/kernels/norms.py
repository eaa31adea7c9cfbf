"""The norms of rows by the kernels, and their gradients."""

from typing import Any

import torch
from torch import Tensor

from impl_torch.kernels import launch
from impl_torch.layer_norm import layer_norm
from impl_torch.rms_norm import rms_norm
from impl_torch.rows import cast, check_order, check_rows, compute_dtype, groups_of, output_dtype


def norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    order: str,
    weight_offset: float,
    dtype: torch.dtype,
    centred: bool,
    sum: str = "rounded",
    group_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return RMSNorm, or LayerNorm if it is `centred`, and the sum with the residual; without one the second is nothing, [0].

    x and the residual are [*batch, d], weight and bias [d]. The rest is as in `add_rms_norm`, which has checked the residual.
    """
    check_order(order)
    check_rows(x, weight=weight, bias=bias)
    x_hat_dtype = dtype if order == "cast_then_scale" else compute_dtype(x)
    y_dtype = output_dtype(order, dtype, weight, bias)
    rounded = sum == "rounded"
    y, residual_out, _, _ = launch.forward(
        x, residual, weight, bias, eps, weight_offset, centred, rounded, x_hat_dtype, y_dtype, groups_of(group_size, x)
    )
    return y, residual_out


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    """Keep what the norm read: the sum, where it is stored as it was read, and else x and the residual."""
    x, residual, weight, bias, ctx.eps, ctx.weight_offset, ctx.centred, rounded, *others = inputs
    ctx.x_hat_dtype, ctx.y_dtype, ctx.groups = others
    _, residual_out, mean, rstd = output
    stored = residual is not None and (rounded or residual.dtype == compute_dtype(x))
    ctx.x_dtype, ctx.sum_dtype = x.dtype, None if residual is None else residual.dtype
    ctx.save_for_backward(*((residual_out, None) if stored else (x, residual)), weight, bias, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, dresidual_out: Tensor | None, *_of_statistics: None) -> tuple[Tensor | None, ...]:
    """The gradients of x, the residual, weight and bias. A gradient of y or of the sum is None where nothing reads it."""
    _, _, weight, bias, *_ = ctx.saved_tensors
    dresidual_out = None if ctx.sum_dtype is None else dresidual_out  # what is nothing may still have a gradient, of nothing
    if dy is None:
        ds, dweight, dbias = dresidual_out, None, None
    elif torch.is_grad_enabled():
        ds, dweight, dbias = _to_be_differentiated(ctx, dy)
        ds = ds if dresidual_out is None or ds is None else ds + dresidual_out
    else:
        ds, dweight, dbias = _by_the_kernel(ctx, dy, dresidual_out)
    dx = None if ds is None else cast(ds, ctx.x_dtype)
    dresidual = None if ds is None or ctx.sum_dtype is None else cast(ds, ctx.sum_dtype)
    dweight = None if dweight is None else cast(dweight, weight.dtype)
    dbias = None if dbias is None else cast(dbias, bias.dtype)
    return dx, dresidual, dweight, dbias, *[None] * 7


def _by_the_kernel(ctx: Any, dy: Tensor, dresidual_out: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of what the norm read, in the sum's dtype, and of weight and bias, in the dtype of sums."""
    x, residual, weight, _, mean, rstd = ctx.saved_tensors
    of_weight, of_bias = ctx.needs_input_grad[2:4]
    ds, dweight, dbias = launch.backward(
        dy,
        dresidual_out,
        x,
        residual,
        weight,
        mean,
        rstd,
        ctx.weight_offset,
        ctx.centred,
        ctx.sum_dtype or ctx.x_dtype,
        of_weight,
        of_bias,
        ctx.groups,
    )
    return ds, dweight if of_weight else None, dbias if of_bias else None


def _to_be_differentiated(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """The same, by torch's operations, whose own gradients torch knows: for second derivatives."""
    x, residual, weight, bias, *_ = ctx.saved_tensors
    compute = compute_dtype(x)
    s = x if residual is None else x.to(compute) + residual.to(compute)  # *batch d
    order = "scale_then_cast" if ctx.x_hat_dtype == compute else "cast_then_scale"
    dtype = ctx.y_dtype if order == "scale_then_cast" else ctx.x_hat_dtype
    settings: Any = {"eps": ctx.eps, "order": order, "weight_offset": ctx.weight_offset, "dtype": dtype, "kernel": "torch"}
    settings["group_size"] = None if ctx.groups == 1 else x.shape[-1] // ctx.groups
    y = layer_norm(s, weight, bias, **settings) if ctx.centred else rms_norm(s, weight, **settings)
    leaves = (s, weight, bias)
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    gradients = dict(zip(wanted, torch.autograd.grad(y, wanted, dy, create_graph=True), strict=True))
    return [gradients.get(leaf) for leaf in leaves]


launch.forward.register_autograd(_gradients, setup_context=_keep)
