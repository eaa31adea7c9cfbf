"""What launches the kernels: custom ops, which torch.compile takes into its graph as they are."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from impl_torch.kernels.backward import norm_backward
from impl_torch.kernels.forward import norm_forward
from impl_torch.kernels.interpreter import check_device, mend
from impl_torch.rows import compute_dtype

mend()  # where kernels are interpreted: they must compute the same there

TRITONS = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
ForwardOutputs = tuple[Tensor, Tensor, Tensor, Tensor]
BackwardOutputs = tuple[Tensor, Tensor, Tensor]

NUMBERS = 2048  # that a program reads at once, of as many rows as that takes
HELD_FORWARD, HELD_BACKWARD = 16384, 8192  # numbers of a row that registers hold
WARPS = 16  # on a multiprocessor at once


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
) -> ForwardOutputs:
    """Return y [*batch, d], the sum as it is stored, likewise, or nothing, [0], and mean and rstd, [*batch].

    x and the residual are [*batch, d], weight and bias [d]. `centred`: LayerNorm; its mean is else nothing, [0].
    `rounded`: the norm reads the sum as it is stored, in the residual's dtype.
    """
    check_device(x.device.type)
    outputs = y, residual_out, mean, rstd = _forward_outputs(x, residual, y_dtype, centred)
    if x.numel() == 0:
        return outputs
    rows, residuals = _rows(x), None if residual is None else _rows(residual)
    n_rows, width = rows.shape
    tile = _tile(width, HELD_FORWARD)
    kernel: Any = norm_forward[(triton.cdiv(n_rows, tile["ROWS"]),)]
    with torch.cuda.device_of(x):
        kernel(
            y,
            None if residual is None else residual_out,
            mean,
            rstd,
            rows,
            residuals,
            None if weight is None else weight.contiguous(),
            None if bias is None else bias.contiguous(),
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
) -> BackwardOutputs:
    """Return the gradient of what the norm read, [*batch, d], and dweight and dbias, [d], or nothing, [0].

    What the norm read is x, or x + residual. dweight and dbias are in the dtype of sums.
    """
    outputs = ds, dweight, dbias = _backward_outputs(x, ds_dtype, of_weight, of_bias)
    if x.numel() == 0:
        return ds, dweight.zero_(), dbias.zero_()
    rows, dys = _rows(x), _rows(dy)
    residuals, dresidual_outs = (None if each is None else _rows(each) for each in (residual, dresidual_out))
    n_rows, width = rows.shape
    tile = _tile(width, HELD_BACKWARD)
    programs = min(triton.cdiv(n_rows, tile["ROWS"]), _multiprocessors(x) * max(1, WARPS // tile["num_warps"]))
    parts = [dweight.new_zeros(programs, width) if wanted else None for wanted in (of_weight, of_bias)]
    kernel: Any = norm_backward[(programs,)]
    with torch.cuda.device_of(x):
        kernel(
            ds,
            *parts,
            dys,
            dresidual_outs,
            rows,
            residuals,
            None if weight is None else weight.contiguous(),
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
) -> ForwardOutputs:
    return _forward_outputs(x, residual, y_dtype, centred)


@backward.register_fake
def _(dy: Tensor, dresidual_out: Tensor | None, x: Tensor, *others: Any) -> BackwardOutputs:
    *_, ds_dtype, of_weight, of_bias = others
    return _backward_outputs(x, ds_dtype, of_weight, of_bias)


def _forward_outputs(x: Tensor, residual: Tensor | None, y_dtype: torch.dtype, centred: bool) -> ForwardOutputs:
    """Memory for y, the sum, mean and rstd."""
    compute = compute_dtype(x)
    return (
        x.new_empty(x.shape, dtype=y_dtype),
        x.new_empty(0) if residual is None else residual.new_empty(x.shape),
        x.new_empty(x.shape[:-1] if centred else (0,), dtype=compute),
        x.new_empty(x.shape[:-1], dtype=compute),
    )


def _backward_outputs(x: Tensor, ds_dtype: torch.dtype, of_weight: bool, of_bias: bool) -> BackwardOutputs:
    """Memory for ds, dweight and dbias."""
    compute, d = compute_dtype(x), x.shape[-1]
    return (
        x.new_empty(x.shape, dtype=ds_dtype),
        x.new_empty(d if of_weight else 0, dtype=compute),
        x.new_empty(d if of_bias else 0, dtype=compute),
    )


def _rows(tensor: Tensor) -> Tensor:
    """[*batch, d] as [rows, d], copied only where rows do not lie at equal distances, or their numbers not side by side."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _tile(width: int, held: int) -> dict[str, int]:
    """How many rows and columns a program works on at once, and how it is compiled.

    The width alone says, so that a row has the same bits in any batch. A product and a sum may be rounded once: without a word
    on it, Triton's versions differ.
    """
    columns = min(triton.next_power_of_2(width), held)
    rows = max(1, NUMBERS // columns)
    warps = min(max(4, columns // 512), 16)
    return {"ROWS": rows, "COLUMNS": columns, "LONG": width > columns, "num_warps": warps, "enable_fp_fusion": True}


def _multiprocessors(x: Tensor) -> int:
    """How many the device has; in the interpreter a few, so that a program has rows to add up there too."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
