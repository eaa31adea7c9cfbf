"""What launches the kernels: custom ops, which torch.compile takes into its graph as they are."""

from typing import Any

import torch
import triton
from torch import Tensor

from impl_torch.kernels.backward import norm_backward
from impl_torch.kernels.forward import norm_forward
from impl_torch.kernels.grid import HELD_BACKWARD, HELD_FORWARD, TRITONS, as_rows, persistent_programs, side_by_side, tile_of
from impl_torch.kernels.interpreter import check_device, mend
from impl_torch.rows import compute_dtype

mend()  # where kernels are interpreted: they must compute the same there

ForwardOutputs = tuple[Tensor, Tensor, Tensor, Tensor]
BackwardOutputs = tuple[Tensor, Tensor, Tensor]


@torch.library.custom_op("impl_torch::norm_forward", mutates_args=())
def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    weight_offset: float,
    centred: bool,
    rounded: bool,
    x_hat_dtype: torch.dtype,
    y_dtype: torch.dtype,
    groups: int,
) -> ForwardOutputs:
    """Return y [*batch, d], the sum as it is stored, likewise, or nothing, [0], and mean and rstd, [*batch, groups].

    x and the residual are [*batch, d], weight and bias [d]. `centred`: LayerNorm; its mean is else nothing, [0].
    `rounded`: the norm reads the sum as it is stored, in the residual's dtype.
    """
    check_device(x.device.type)
    outputs = y, residual_out, mean, rstd = _forward_outputs(x, residual, y_dtype, centred, groups)
    if x.numel() == 0:
        return outputs
    rows, residuals = as_rows(x), None if residual is None else as_rows(residual)
    n_rows, width = len(rows), x.shape[-1] // groups
    tile = tile_of(width, HELD_FORWARD)
    kernel: Any = norm_forward[triton.cdiv(n_rows, tile["ROWS"]), groups]
    with torch.cuda.device_of(x):
        kernel(
            y,
            None if residual is None else residual_out,
            mean,
            rstd,
            rows,
            residuals,
            side_by_side(weight),
            side_by_side(bias),
            n_rows,
            width,
            rows.stride(0),
            0 if residuals is None else residuals.stride(0),
            eps=eps,
            weight_offset=weight_offset,
            CENTRED=centred,
            ROUNDED=rounded,
            X_HAT=TRITONS[x_hat_dtype],
            COMPUTE=TRITONS[compute_dtype(x)],
            **tile,
        )
    return outputs


@torch.library.custom_op("impl_torch::norm_backward", mutates_args=())
def backward(
    dy: Tensor,
    dresidual_out: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    weight_offset: float,
    centred: bool,
    ds_dtype: torch.dtype,
    of_weight: bool,
    of_bias: bool,
    groups: int,
) -> BackwardOutputs:
    """Return the gradient of what the norm read, [*batch, d], and dweight and dbias, [d], or nothing, [0].

    What the norm read is x, or x + residual. dweight and dbias are in the dtype of sums.
    """
    outputs = ds, dweight, dbias = _backward_outputs(x, ds_dtype, of_weight, of_bias)
    if x.numel() == 0:
        return ds, dweight.zero_(), dbias.zero_()
    rows, dys = as_rows(x), as_rows(dy)
    residuals, dresidual_outs = (None if each is None else as_rows(each) for each in (residual, dresidual_out))
    n_rows, width = len(rows), x.shape[-1] // groups
    tile = tile_of(width, HELD_BACKWARD)
    programs = persistent_programs(x, n_rows, groups, tile)
    parts = [dweight.new_zeros(programs, x.shape[-1]) if wanted else None for wanted in (of_weight, of_bias)]
    kernel: Any = norm_backward[programs, groups]
    with torch.cuda.device_of(x):
        kernel(
            ds,
            *parts,
            dys,
            dresidual_outs,
            rows,
            residuals,
            side_by_side(weight),
            mean,
            rstd,
            n_rows,
            width,
            dys.stride(0),
            0 if dresidual_outs is None else dresidual_outs.stride(0),
            rows.stride(0),
            0 if residuals is None else residuals.stride(0),
            weight_offset=weight_offset,
            CENTRED=centred,
            COMPUTE=TRITONS[compute_dtype(x)],
            **tile,
        )
    for total, part in zip(outputs[1:], parts, strict=True):
        if part is not None:
            torch.sum(part, dim=0, out=total)
    return outputs


@forward.register_fake
def _(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    weight_offset: float,
    centred: bool,
    rounded: bool,
    x_hat_dtype: torch.dtype,
    y_dtype: torch.dtype,
    groups: int,
) -> ForwardOutputs:
    return _forward_outputs(x, residual, y_dtype, centred, groups)


@backward.register_fake
def _(dy: Tensor, dresidual_out: Tensor | None, x: Tensor, *others: Any) -> BackwardOutputs:
    *_, ds_dtype, of_weight, of_bias, _ = others
    return _backward_outputs(x, ds_dtype, of_weight, of_bias)


def _forward_outputs(x: Tensor, residual: Tensor | None, y_dtype: torch.dtype, centred: bool, groups: int) -> ForwardOutputs:
    """Memory for y, the sum, mean and rstd."""
    compute, statistics = compute_dtype(x), (*x.shape[:-1], groups)
    return (
        x.new_empty(x.shape, dtype=y_dtype),
        x.new_empty(0) if residual is None else residual.new_empty(x.shape),
        x.new_empty(statistics if centred else (0,), dtype=compute),
        x.new_empty(statistics, dtype=compute),
    )


def _backward_outputs(x: Tensor, ds_dtype: torch.dtype, of_weight: bool, of_bias: bool) -> BackwardOutputs:
    """Memory for ds, dweight and dbias."""
    compute, d = compute_dtype(x), x.shape[-1]
    return (
        x.new_empty(x.shape, dtype=ds_dtype),
        x.new_empty(d if of_weight else 0, dtype=compute),
        x.new_empty(d if of_bias else 0, dtype=compute),
    )
