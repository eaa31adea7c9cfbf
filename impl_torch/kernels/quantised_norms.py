"""RMSNorm whose output is quantised, by its kernel: a custom op, as in `launch`."""

from typing import Any

import torch
import triton
from torch import Tensor

from impl_torch.kernels.grid import HELD_FORWARD, TRITONS, as_rows, side_by_side, tile_of
from impl_torch.kernels.interpreter import check_device, mend
from impl_torch.kernels.quantised import quantised_forward
from impl_torch.quantised_norm import Format
from impl_torch.rows import cast, check_order, check_rows, compute_dtype, output_dtype

mend()

Outputs = tuple[Tensor, Tensor, Tensor]


def quantised_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    scale: Tensor | None,
    *,
    eps: float,
    format: Format,
    scaling: str,
    group: int | None,
    scale_ub: float | None,
    order: str,
    weight_offset: float,
    y: str,
    sum: str = "rounded",
) -> Outputs:
    """Return q, its scale, the given one or [*batch, groups], and the sum, or nothing, [0].

    It is what `quantised_rms_norm` and `quantised_add_rms_norm` do, which have checked the scale and the residual.
    """
    check_order(order)
    check_rows(x, weight=weight)
    wide = compute_dtype(x)
    x_hat_dtype = x.dtype if order == "cast_then_scale" else wide
    y_dtype = output_dtype(order, x.dtype, weight) if y == "rounded" else wide
    q, found, residual_out = forward(
        x,
        residual,
        weight,
        scale,
        eps,
        weight_offset,
        format.dtype,
        format.qmax,
        format.emax if scaling == "mx" else None,
        format.floor,
        scale_ub,
        group,
        sum == "rounded",
        x_hat_dtype,
        y_dtype,
    )
    return q, found if scale is None else scale, residual_out


@torch.library.custom_op("impl_torch::quantised_norm_forward", mutates_args=())
def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    scale: Tensor | None,
    eps: float,
    weight_offset: float,
    dtype: torch.dtype,
    qmax: float,
    emax: int | None,
    floor: float,
    scale_ub: float | None,
    group: int | None,
    rounded: bool,
    x_hat_dtype: torch.dtype,
    y_dtype: torch.dtype,
) -> Outputs:
    """Return q, [*batch, d], its scales, [*batch, groups], or nothing, [0], and the sum, [*batch, d], or nothing.

    `emax` is given where scales are powers of two, `group` where so many numbers share one. `rounded`: the norm reads the sum
    as it is stored.
    """
    check_device(x.device.type)
    outputs = q, found, residual_out = _outputs(x, residual, scale, dtype, group)
    if x.numel() == 0:
        return outputs
    rows, residuals = as_rows(x), None if residual is None else as_rows(residual)
    n_rows, width = rows.shape
    tile = tile_of(width, HELD_FORWARD)
    kernel: Any = quantised_forward[(triton.cdiv(n_rows, tile["ROWS"]),)]
    with torch.cuda.device_of(x):
        kernel(
            q,
            found if scale is None else None,
            None if residual is None else residual_out,
            rows,
            residuals,
            side_by_side(weight),
            scale,
            n_rows,
            width,
            rows.stride(0),
            0 if residuals is None else residuals.stride(0),
            eps=eps,
            weight_offset=weight_offset,
            qmax=qmax,
            emax=emax,
            floor=floor,
            scale_ub=scale_ub,
            GROUP=group,
            ROUNDED=rounded,
            X_HAT=TRITONS[x_hat_dtype],
            Y=TRITONS[y_dtype],
            COMPUTE=TRITONS[compute_dtype(x)],
            **tile,
        )
    return outputs


@forward.register_fake
def _(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    scale: Tensor | None,
    eps: float,
    weight_offset: float,
    dtype: torch.dtype,
    qmax: float,
    emax: int | None,
    floor: float,
    scale_ub: float | None,
    group: int | None,
    rounded: bool,
    x_hat_dtype: torch.dtype,
    y_dtype: torch.dtype,
) -> Outputs:
    return _outputs(x, residual, scale, dtype, group)


def _outputs(x: Tensor, residual: Tensor | None, scale: Tensor | None, dtype: torch.dtype, group: int | None) -> Outputs:
    """Memory for q, its scales and the sum."""
    scales = (*x.shape[:-1], x.shape[-1] // (group or x.shape[-1])) if scale is None else (0,)
    return (
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty(scales, dtype=torch.float32),
        x.new_empty(0) if residual is None else residual.new_empty(x.shape),
    )


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    """q and its scales have no gradient; the sum's needs nothing but dtypes."""
    x, residual, *_ = inputs
    q, found, _ = output
    ctx.dtypes = x.dtype, None if residual is None else residual.dtype
    ctx.mark_non_differentiable(q, found)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, _of_q: None, _of_scale: None, dresidual_out: Tensor | None) -> tuple[Tensor | None, ...]:
    """What came to the sum, to x and to the residual."""
    x_dtype, sum_dtype = ctx.dtypes
    if dresidual_out is None or sum_dtype is None:
        return (None,) * 15
    return cast(dresidual_out, x_dtype), cast(dresidual_out, sum_dtype), *[None] * 13


forward.register_autograd(_gradients, setup_context=_keep)
