"""Faults of one pass alone: a backward pass written by hand beside a right forward pass, and the reverse."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.judge.written.fault import Fault
from tests.judge.written.torch_steps import (
    HALF,
    WIDE,
    Saved,
    Written,
    backward_of_layer_norm,
    backward_of_rms_norm,
    forward_of_layer_norm,
    forward_of_rms_norm,
    honest,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
    scale,
    sum_rows,
    upcast,
)

rms_fault, layer_fault = Written("rms_norm"), Written("layer_norm")
Parameter = Tensor | None
Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def row_mean(a: Tensor) -> Tensor:
    return a.mean(-1, keepdim=True)


def toward_zero(a: Tensor, dtype: torch.dtype) -> Tensor:
    """a in half precision, cut off."""
    rounded = a.to(dtype)
    too_large = rounded.abs().to(a.dtype) > a.abs()
    return torch.where(too_large, (rounded.view(torch.int16) - 1).view(dtype), rounded)


def cut_off(x_hat: Tensor, x: Tensor, weight: Parameter, bias: Parameter, weight_offset: float, order: str) -> Tensor:
    """y as a store leaves it that keeps the upper bits; x_hat, where it is cast, is rounded."""
    y = x_hat.to(x.dtype).float() if order == "cast_then_scale" else x_hat
    if weight is not None:
        y = y * (weight.float() + weight_offset)
    if bias is not None:
        y = y + bias.float()
    dtype = x.dtype if weight is None or order == "scale_then_cast" else weight.dtype
    return y if dtype == torch.float32 else toward_zero(y, dtype)


HONEST = (
    honest("rms_norm", backward_of_rms_norm(rms_norm_backward)),
    honest("layer_norm", backward_of_layer_norm(layer_norm_backward)),
)


# RMSNorm, dx.


@rms_fault("projection_missing", "statistics_held_constant", group="backward")
@backward_of_rms_norm
def rms_without_projection(saved: Saved, dy: Tensor) -> Pair:
    """rstd is recomputed with its gradient left out of dx."""
    g = upcast(dy) * saved.weight
    return saved.rstd * g, sum_rows(upcast(dy) * saved.x_hat)


@rms_fault("projection_added", group="backward")
@backward_of_rms_norm
def rms_projection_of_other_sign(saved: Saved, dy: Tensor) -> Pair:
    """The derivative of the root lost its minus sign."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    dx = saved.rstd * g + saved.rstd * x_hat * row_mean(g * x_hat)
    return dx, sum_rows(dy * x_hat)


@rms_fault("projection_summed", group="backward")
@backward_of_rms_norm
def rms_projection_not_divided(saved: Saved, dy: Tensor) -> Pair:
    """The dot product of g and x_hat is not divided by the width."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    dot = torch.einsum("...i,...i->...", g, x_hat).unsqueeze(-1)
    return saved.rstd * (g - x_hat * dot), sum_rows(dy * x_hat)


@rms_fault("projection_over_n_minus_1", group="backward")
@backward_of_rms_norm
def rms_projection_unbiased(saved: Saved, dy: Tensor) -> Pair:
    """The dot product of g and x_hat is divided by n - 1."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    projection = (g * x_hat).sum(-1, keepdim=True) / (x_hat.shape[-1] - 1)
    return saved.rstd * (g - x_hat * projection), sum_rows(dy * x_hat)


@rms_fault("dx_over_n_minus_1", group="backward")
@backward_of_rms_norm
def rms_dx_unbiased(saved: Saved, dy: Tensor) -> Pair:
    """dx is brought to one denominator, n - 1 where n belongs."""
    dy, x_hat, n = upcast(dy), saved.x_hat, saved.x.shape[-1]
    g = dy * saved.weight
    dx = saved.rstd / (n - 1) * (n * g - x_hat * (g * x_hat).sum(-1, keepdim=True))
    return dx, sum_rows(dy * x_hat)


@rms_fault("projection_without_weight", group="backward")
@backward_of_rms_norm
def rms_projection_of_dy(saved: Saved, dy: Tensor) -> Pair:
    """The weight multiplies dy, but not inside the dot product."""
    dy, x_hat = upcast(dy), saved.x_hat
    dx = saved.rstd * (dy * saved.weight - x_hat * row_mean(dy * x_hat))
    return dx, sum_rows(dy * x_hat)


@rms_fault("projection_of_x", group="backward")
@backward_of_rms_norm
def rms_rstd_squared_for_cubed(saved: Saved, dy: Tensor) -> Pair:
    """The second term has rstd squared, where it should be cubed."""
    dy, x, rstd = upcast(dy), upcast(saved.x), saved.rstd
    g = dy * saved.weight
    dx = g * rstd - x * rstd.pow(2) * row_mean(g * x)
    return dx, sum_rows(dy * x * rstd)


@rms_fault("projection_of_y", group="backward")
@backward_of_rms_norm
def rms_projection_on_y(saved: Saved, dy: Tensor) -> Pair:
    """The dot product is that of g and y, which is at hand."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    dx = saved.rstd * (g - x_hat * row_mean(g * x_hat * saved.weight))
    return dx, sum_rows(dy * x_hat)


@rms_fault("dx_without_weight", group="backward")
@backward_of_rms_norm
def rms_weight_forgotten(saved: Saved, dy: Tensor) -> Pair:
    """dy is taken for the gradient of x_hat."""
    dy, x_hat = upcast(dy), saved.x_hat
    dx = saved.rstd * (dy - x_hat * row_mean(dy * x_hat))
    return dx, sum_rows(dy * x_hat)


@rms_fault("dx_without_offset", group="backward")
@backward_of_rms_norm
def rms_offset_forgotten(saved: Saved, dy: Tensor) -> Pair:
    """The backward pass reads the weight as it is stored, without the one that the forward pass adds."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy if saved.stored is None else dy * upcast(saved.stored)
    dx = saved.rstd * (g - x_hat * row_mean(g * x_hat))
    return dx, sum_rows(dy * x_hat)


@rms_fault("dx_without_rstd", group="backward")
@backward_of_rms_norm
def rms_rstd_forgotten(saved: Saved, dy: Tensor) -> Pair:
    """The last product with rstd is missing."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    return g - x_hat * row_mean(g * x_hat), sum_rows(dy * x_hat)


@rms_fault("dx_twice", group="backward")
@backward_of_rms_norm
def rms_dx_accumulated_twice(saved: Saved, dy: Tensor) -> Pair:
    """dx is added to a buffer that has it already."""
    dx, dweight = rms_norm_backward(saved, dy)
    buffer = dx.clone()
    buffer += dx
    return buffer, dweight


@rms_fault("dx_is_dy", group="backward")
@backward_of_rms_norm
def rms_straight_through(saved: Saved, dy: Tensor) -> Pair:
    """dy is passed straight through."""
    return dy, sum_rows(upcast(dy) * saved.x_hat)


@rms_fault("shift_unasked", group="backward")
@backward_of_rms_norm
def rms_backward_of_layer_norm(saved: Saved, dy: Tensor) -> Pair:
    """dx also loses its mean, as in the LayerNorm that the code was copied from."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    dx = saved.rstd * (g - row_mean(g) - x_hat * row_mean(g * x_hat))
    return dx, sum_rows(dy * x_hat)


@rms_fault("projection_over_rows", group="backward")
@backward_of_rms_norm
def rms_projection_over_rows(saved: Saved, dy: Tensor) -> Pair:
    """The dot product is divided by x.shape[0], where the width is shape[-1]."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    projection = (g * x_hat).sum(-1, keepdim=True) / max(1, saved.x.shape[0])
    return saved.rstd * (g - x_hat * projection), sum_rows(dy * x_hat)


@rms_fault("dx_truncated", group="backward", dtypes=HALF)
@backward_of_rms_norm
def rms_dx_cut_off(saved: Saved, dy: Tensor) -> Pair:
    """dx is stored by its upper bits, which cuts it off."""
    dx, dweight = rms_norm_backward(saved, dy)
    return toward_zero(dx, saved.x.dtype), dweight


@rms_fault("rstd_in_storage_dtype_in_backward", group="backward", dtypes=HALF)
@backward_of_rms_norm
def rms_dx_scaled_by_half_rstd(saved: Saved, dy: Tensor) -> Pair:
    """dx is scaled by rstd cast to x's dtype, after all else was computed in float32."""
    dy, x_hat = dy.float(), saved.x_hat
    g = dy * saved.weight
    dx = saved.rstd.to(saved.x.dtype) * (g - x_hat * row_mean(g * x_hat))
    return dx, sum_rows(dy * x_hat)


# RMSNorm, what is saved for the backward pass.


@rms_fault("rstd_saved_in_storage_dtype", group="backward", dtypes=HALF)
@backward_of_rms_norm
def rms_rstd_saved_in_half(saved: Saved, dy: Tensor) -> Pair:
    """rstd is saved in a buffer of x's dtype."""
    saved.rstd = saved.rstd.to(saved.x.dtype).float()
    return rms_norm_backward(saved, dy)


@rms_fault("x_hat_saved_in_storage_dtype", group="backward", dtypes=HALF)
@backward_of_rms_norm
def rms_x_hat_saved_in_half(saved: Saved, dy: Tensor) -> Pair:
    """x_hat is saved in x's dtype and used for both gradients."""
    dy, x_hat = dy.float(), saved.x_hat.to(saved.x.dtype).float()
    g = dy * saved.weight
    return saved.rstd * (g - x_hat * row_mean(g * x_hat)), sum_rows(dy * x_hat)


@rms_fault("x_hat_recovered_from_y", group="backward")
@backward_of_rms_norm
def rms_memory_efficient(saved: Saved, dy: Tensor) -> Pair:
    """x_hat is made again from y, divided by the weight."""
    dy, x_hat = upcast(dy), upcast(saved.y) / saved.weight
    g = dy * saved.weight
    return saved.rstd * (g - x_hat * row_mean(g * x_hat)), sum_rows(dy * x_hat)


@rms_fault("eps_missing_in_backward", group="backward")
@backward_of_rms_norm
def rms_eps_missing_in_backward(saved: Saved, dy: Tensor) -> Pair:
    """The backward pass takes rstd again, without eps."""
    saved.rstd = torch.rsqrt(row_mean(upcast(saved.x).pow(2)))
    return rms_norm_backward(saved, dy)


@rms_fault("eps_1e-06_in_backward", group="backward")
@backward_of_rms_norm
def rms_default_eps_in_backward(saved: Saved, dy: Tensor) -> Pair:
    """The backward pass takes rstd again, with its own default for eps."""
    saved.rstd = torch.rsqrt(row_mean(upcast(saved.x).pow(2)) + 1e-6)
    return rms_norm_backward(saved, dy)


# RMSNorm, dweight.


@rms_fault("dweight_of_x", group="backward")
@backward_of_rms_norm
def rms_dweight_of_x(saved: Saved, dy: Tensor) -> Pair:
    """dweight sums dy times x."""
    dx, _ = rms_norm_backward(saved, dy)
    return dx, sum_rows(upcast(dy) * upcast(saved.x))


@rms_fault("dweight_weighted", group="backward")
@backward_of_rms_norm
def rms_dweight_of_g(saved: Saved, dy: Tensor) -> Pair:
    """dy is multiplied by the weight in place, before dweight reads it."""
    dx, _ = rms_norm_backward(saved, dy)
    g = upcast(dy) * saved.weight
    return dx, sum_rows(g * saved.x_hat)


@rms_fault("dweight_mean", group="backward")
@backward_of_rms_norm
def rms_dweight_averaged(saved: Saved, dy: Tensor) -> Pair:
    """dweight is averaged over the rows, as a loss would be."""
    dx, _ = rms_norm_backward(saved, dy)
    terms = upcast(dy) * saved.x_hat
    return dx, terms.flatten(0, -2).mean(0) if len(terms) else terms.sum(0)


@rms_fault("dweight_of_last_row", group="backward")
@backward_of_rms_norm
def rms_dweight_overwritten(saved: Saved, dy: Tensor) -> Pair:
    """A loop over the rows writes dweight instead of adding to it."""
    dx, dweight = rms_norm_backward(saved, dy)
    for terms in (upcast(dy) * saved.x_hat).reshape(-1, dweight.numel()):
        dweight = terms
    return dx, dweight


@rms_fault("dweight_of_first_batch", group="backward")
@backward_of_rms_norm
def rms_dweight_of_first_sequence(saved: Saved, dy: Tensor) -> Pair:
    """The sum over positions is right, that over the batch is an index."""
    dx, _ = rms_norm_backward(saved, dy)
    terms = upcast(dy) * saved.x_hat
    while terms.ndim > 2:
        terms = terms[0]
    return dx, sum_rows(terms)


@rms_fault("parameter_gradients_accumulated_in_storage_dtype", group="backward", dtypes=HALF)
@backward_of_rms_norm
def rms_dweight_accumulated_in_half(saved: Saved, dy: Tensor) -> Pair:
    """dweight is added up row by row in a buffer of x's dtype."""
    dx, dweight = rms_norm_backward(saved, dy)
    total = torch.zeros_like(dweight, dtype=saved.x.dtype)
    for terms in (dy.float() * saved.x_hat).reshape(-1, dweight.numel()):
        total = (total.float() + terms).to(saved.x.dtype)
    return dx, total


@rms_fault("dweight_terms_in_tf32", group="backward", dtypes=("float32",))
@backward_of_rms_norm
def rms_dweight_as_a_matrix_product(saved: Saved, dy: Tensor) -> Pair:
    """dweight is ones times the terms, on a matrix unit that reads eleven bits of them."""
    dx, _ = rms_norm_backward(saved, dy)
    terms = (dy * saved.x_hat).reshape(-1, dy.shape[-1])
    eleven_bits = ((terms.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return dx, torch.ones(len(terms)) @ eleven_bits


@rms_fault("dweight_times_*", group="backward")
@backward_of_rms_norm
def rms_dweight_over_accumulation_steps(saved: Saved, dy: Tensor) -> Pair:
    """dweight is divided by the number of accumulation steps, which the loss was divided by already."""
    dx, dweight = rms_norm_backward(saved, dy)
    return dx, dweight / 4


@rms_fault("dy_taken_for_ones", group="backward")
@backward_of_rms_norm
def rms_dy_not_read(saved: Saved, dy: Tensor) -> Pair:
    """The backward pass was tried with y.sum() only, and does not read dy."""
    return rms_norm_backward(saved, torch.ones_like(dy))


# RMSNorm, y alone.


@rms_fault("eps_outside_root", group="forward")
@forward_of_rms_norm
def rms_eps_beside_root_in_y(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The forward pass adds eps to the root, the backward pass under it."""
    rows = upcast(x)
    return scale(rows / (row_mean(rows.pow(2)).sqrt() + eps), x, weight, None, **dialect)


@rms_fault("divides_by_n_minus_1", group="forward")
@forward_of_rms_norm
def rms_unbiased_in_y(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The forward pass divides by n - 1, the backward pass by n."""
    rows = upcast(x)
    variance = rows.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)
    return scale(rows * torch.rsqrt(variance + eps), x, weight, None, **dialect)


@rms_fault("weight_missing", group="forward")
@forward_of_rms_norm
def rms_weight_missing_in_y(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The forward pass returns x_hat."""
    x_hat = F.rms_norm(upcast(x), x.shape[-1:], eps=eps).to(x.dtype)
    return x_hat if weight is None or dialect["order"] != "cast_then_scale" else x_hat.to(weight.dtype)


@rms_fault("offset_missing", group="forward")
@forward_of_rms_norm
def rms_offset_missing_in_y(
    x: Tensor, weight: Parameter, bias: None, *, eps: float, weight_offset: float, order: str
) -> Tensor:
    """The kernel multiplies by the weight as it is stored, autograd beside it by one plus weight."""
    return rms_norm(x, weight, None, eps=eps, weight_offset=0.0, order=order)


@rms_fault("eps_1e-05", group="forward")
@forward_of_rms_norm
def rms_eps_compiled_in(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel has 1e-5 compiled in, whatever eps is passed."""
    return rms_norm(x, weight, None, eps=1e-5, **dialect)


@rms_fault("rstd_in_storage_dtype_in_forward", "rstd_in_storage_dtype", group="forward", dtypes=HALF)
@forward_of_rms_norm
def rms_rstd_in_half_in_y(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel keeps rstd in x's dtype, the backward pass takes it again."""
    rstd = torch.rsqrt(row_mean(x.float().pow(2)) + eps).to(x.dtype)
    return scale(x.float() * rstd, x, weight, None, **dialect)


@rms_fault("y_truncated", group="forward", dtypes=HALF)
@forward_of_rms_norm
def rms_y_cut_off(x: Tensor, weight: Parameter, bias: None, *, eps: float, weight_offset: float, order: str) -> Tensor:
    """y is stored by its upper bits, which cuts it off."""
    return cut_off(F.rms_norm(x.float(), x.shape[-1:], eps=eps), x, weight, None, weight_offset, order)


@rms_fault("x_hat_truncated", group="forward", dtypes=HALF)
@forward_of_rms_norm
def rms_x_hat_cut_off(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """x_hat is cut off to x's dtype before the weight multiplies it."""
    x_hat = F.rms_norm(x.float(), x.shape[-1:], eps=eps)
    return scale(toward_zero(x_hat, x.dtype).float(), x, weight, None, **dialect)


@rms_fault("y_in_bfloat16", group="forward", dtypes=WIDE)
@forward_of_rms_norm
def rms_y_stored_in_bfloat16(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel stores bfloat16, whatever dtype it returns."""
    return rms_norm(x, weight, None, eps=eps, **dialect).bfloat16().to(x.dtype)


@rms_fault("weight_shifted", group="forward")
@forward_of_rms_norm
def rms_weight_of_the_neighbour(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel reads the weight one feature too early, and the last one for the first."""
    return rms_norm(x, None if weight is None else weight.roll(1), None, eps=eps, **dialect)


# Beside a float32 weight y is cast twice.
@rms_fault("other_order", "other_order + y_in_*float16", group="forward", dtypes=HALF)
@forward_of_rms_norm
def rms_one_cast_in_y(x: Tensor, weight: Parameter, bias: None, *, eps: float, weight_offset: float, order: str) -> Tensor:
    """The kernel casts once at the end, where x_hat is to be cast before the weight."""
    y = F.rms_norm(x.float(), x.shape[-1:], eps=eps)
    y = (y if weight is None else y * (weight.float() + weight_offset)).to(x.dtype)
    return y if weight is None or order == "scale_then_cast" else y.to(weight.dtype)


def rms_backward_cut_off(saved: Saved, dy: Tensor) -> Pair:
    """Both gradients, cut off to the dtypes that they are returned in."""
    dx, dweight = rms_norm_backward(saved, dy)
    half = saved.stored is not None and saved.stored.dtype == saved.x.dtype
    return toward_zero(dx, saved.x.dtype), toward_zero(dweight, saved.x.dtype) if half else dweight


@rms_fault("outputs_truncated", dtypes=HALF)
@partial(forward_of_rms_norm, backward=rms_backward_cut_off)
def rms_stores_cut_off(x: Tensor, weight: Parameter, bias: None, *, eps: float, weight_offset: float, order: str) -> Tensor:
    """Every store cuts off: y, dx and dweight are truncated."""
    return cut_off(F.rms_norm(x.float(), x.shape[-1:], eps=eps), x, weight, None, weight_offset, order)


@rms_fault("squares_truncated", group="forward", dtypes=HALF)
@forward_of_rms_norm
def rms_squares_cut_off(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The squares are stored in x's dtype by their upper bits."""
    squares = toward_zero(x.float().square(), x.dtype).float()
    return scale(x.float() * torch.rsqrt(row_mean(squares) + eps), x, weight, None, **dialect)


@rms_fault("squares_half_away", group="forward", dtypes=("bfloat16",))
@forward_of_rms_norm
def rms_squares_rounded_by_hand(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The squares are rounded to bfloat16 by adding half a unit to their bits and cutting off."""
    bits = x.float().square().view(torch.int32) + 0x8000
    squares = (bits & ~0xFFFF).view(torch.float32)
    return scale(x.float() * torch.rsqrt(row_mean(squares) + eps), x, weight, None, **dialect)


@rms_fault("rstd_truncated", group="forward", dtypes=HALF)
@forward_of_rms_norm
def rms_rstd_cut_off(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """rstd is stored in x's dtype by its upper bits."""
    rstd = toward_zero(torch.rsqrt(row_mean(x.float().square()) + eps), x.dtype)
    return scale(x.float() * rstd, x, weight, None, **dialect)


@rms_fault("statistics_of_bfloat16_x", group="forward", dtypes=("float32", "float64"))
@forward_of_rms_norm
def rms_statistics_on_a_matrix_unit(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The sum of squares is a matrix product that reads bfloat16; what is scaled is x."""
    rstd = torch.rsqrt(row_mean(x.bfloat16().to(x.dtype).square()) + eps)
    return scale(x * rstd, x, weight, None, **dialect)


# LayerNorm, dx.


@layer_fault("shift_missing", group="backward")
@backward_of_layer_norm
def layer_backward_of_rms_norm(saved: Saved, dy: Tensor) -> Triple:
    """dx is that of RMSNorm: the mean of g is not taken off."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    dx = saved.rstd * (g - x_hat * row_mean(g * x_hat))
    return dx, sum_rows(dy * x_hat), sum_rows(dy)


@layer_fault("shift_added", group="backward")
@backward_of_layer_norm
def layer_shift_of_other_sign(saved: Saved, dy: Tensor) -> Triple:
    """The mean of g is added."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    dx = (g + row_mean(g) - x_hat * row_mean(g * x_hat)) * saved.rstd
    return dx, sum_rows(dy * x_hat), sum_rows(dy)


@layer_fault("shift_summed", group="backward")
@backward_of_layer_norm
def layer_shift_not_divided(saved: Saved, dy: Tensor) -> Triple:
    """The sum of g is not divided by the width."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    dx = saved.rstd * (g - g.sum(-1, keepdim=True) - x_hat * row_mean(g * x_hat))
    return dx, sum_rows(dy * x_hat), sum_rows(dy)


@layer_fault("shift_without_weight", group="backward")
@backward_of_layer_norm
def layer_shift_of_dy(saved: Saved, dy: Tensor) -> Triple:
    """The mean that is taken off is that of dy."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    dx = saved.rstd * (g - row_mean(dy) - x_hat * row_mean(g * x_hat))
    return dx, sum_rows(dy * x_hat), sum_rows(dy)


@layer_fault("projection_missing", group="backward")
@backward_of_layer_norm
def layer_without_projection(saved: Saved, dy: Tensor) -> Triple:
    """dx has the path through the mean, but none through the variance."""
    dy = upcast(dy)
    g = dy * saved.weight
    return saved.rstd * (g - row_mean(g)), sum_rows(dy * saved.x_hat), sum_rows(dy)


@layer_fault("projection_twice", group="backward")
@backward_of_layer_norm
def layer_projection_twice(saved: Saved, dy: Tensor) -> Triple:
    """The derivative of the square root lost its one half."""
    dy, x = upcast(dy), upcast(saved.x)
    n, centred = x.shape[-1], x - saved.mean
    dx_hat = dy * saved.weight
    dvar = (dx_hat * centred).sum(-1, keepdim=True) * -saved.rstd.pow(3)
    dmean = -(dx_hat * saved.rstd).sum(-1, keepdim=True)
    dx = dx_hat * saved.rstd + dvar * 2 * centred / n + dmean / n
    return dx, sum_rows(dy * centred * saved.rstd), sum_rows(dy)


@layer_fault("projection_of_centred", group="backward")
@backward_of_layer_norm
def layer_projection_on_centred(saved: Saved, dy: Tensor) -> Triple:
    """The dot product is that of g and x less its mean: one rstd of three is missing."""
    dy, x_hat = upcast(dy), saved.x_hat
    g, centred = dy * saved.weight, upcast(saved.x) - saved.mean
    dx = saved.rstd * (g - row_mean(g) - x_hat * row_mean(g * centred))
    return dx, sum_rows(dy * x_hat), sum_rows(dy)


@layer_fault("dx_over_n_minus_1", group="backward")
@backward_of_layer_norm
def layer_dx_unbiased(saved: Saved, dy: Tensor) -> Triple:
    """dx is brought to one denominator, n - 1 where n belongs."""
    dy, x_hat, n = upcast(dy), saved.x_hat, saved.x.shape[-1]
    g = dy * saved.weight
    inner = n * g - g.sum(-1, keepdim=True) - x_hat * (g * x_hat).sum(-1, keepdim=True)
    return saved.rstd / (n - 1) * inner, sum_rows(dy * x_hat), sum_rows(dy)


@layer_fault("dx_without_weight", group="backward")
@backward_of_layer_norm
def layer_weight_forgotten(saved: Saved, dy: Tensor) -> Triple:
    """dy is taken for the gradient of x_hat."""
    dy, x_hat = upcast(dy), saved.x_hat
    dx = saved.rstd * (dy - row_mean(dy) - x_hat * row_mean(dy * x_hat))
    return dx, sum_rows(dy * x_hat), sum_rows(dy)


@layer_fault("dx_with_rstd_twice", group="backward")
@backward_of_layer_norm
def layer_rstd_twice(saved: Saved, dy: Tensor) -> Triple:
    """dx is multiplied by the variance's reciprocal, not by its root."""
    dx, dweight, dbias = layer_norm_backward(saved, dy)
    return dx * saved.rstd, dweight, dbias


@layer_fault("dx_zero", group="backward")
@backward_of_layer_norm
def layer_dx_never_written(saved: Saved, dy: Tensor) -> Triple:
    """dx is a buffer of zeros that the kernel is not launched on."""
    _, dweight, dbias = layer_norm_backward(saved, dy)
    return torch.zeros_like(saved.x), dweight, dbias


@layer_fault("statistics_held_constant", group="backward")
@backward_of_layer_norm
def layer_only_rstd_and_weight(saved: Saved, dy: Tensor) -> Triple:
    """dx is dy times weight times rstd, as in evaluation mode of a BatchNorm."""
    dy = upcast(dy)
    return dy * saved.weight * saved.rstd, sum_rows(dy * saved.x_hat), sum_rows(dy)


@layer_fault("dx_truncated", group="backward", dtypes=HALF)
@backward_of_layer_norm
def layer_dx_cut_off(saved: Saved, dy: Tensor) -> Triple:
    """dx is stored by its upper bits, which cuts it off."""
    dx, dweight, dbias = layer_norm_backward(saved, dy)
    return toward_zero(dx, saved.x.dtype), dweight, dbias


# LayerNorm, what is saved for the backward pass.


@layer_fault(
    "statistics_saved_in_storage_dtype",
    "mean_saved_in_storage_dtype",
    "rstd_saved_in_storage_dtype",
    group="backward",
    dtypes=HALF,
)
@backward_of_layer_norm
def layer_statistics_saved_in_half(saved: Saved, dy: Tensor) -> Triple:
    """The mean and rstd are saved in buffers of x's dtype."""
    saved.mean = saved.mean.to(saved.x.dtype).float()
    saved.rstd = saved.rstd.to(saved.x.dtype).float()
    return layer_norm_backward(saved, dy)


@layer_fault("mean_saved_in_storage_dtype", group="backward", dtypes=HALF)
@backward_of_layer_norm
def layer_mean_saved_in_half(saved: Saved, dy: Tensor) -> Triple:
    """The mean is saved in a buffer made like x, rstd in one of float32."""
    saved.mean = saved.mean.to(saved.x.dtype).float()
    return layer_norm_backward(saved, dy)


@layer_fault("rstd_saved_in_storage_dtype", group="backward", dtypes=HALF)
@backward_of_layer_norm
def layer_rstd_saved_in_half(saved: Saved, dy: Tensor) -> Triple:
    """rstd is saved in a buffer made like x, the mean in one of float32."""
    saved.rstd = saved.rstd.to(saved.x.dtype).float()
    return layer_norm_backward(saved, dy)


@layer_fault("mean_not_saved", group="backward")
@backward_of_layer_norm
def layer_mean_not_saved(saved: Saved, dy: Tensor) -> Triple:
    """The mean is not saved: the backward pass takes x times rstd for x_hat."""
    saved.mean = torch.zeros_like(saved.mean)
    return layer_norm_backward(saved, dy)


@layer_fault("x_hat_recovered_from_y", group="backward")
@backward_of_layer_norm
def layer_memory_efficient(saved: Saved, dy: Tensor) -> Triple:
    """x_hat is made again from y, less the bias and divided by the weight."""
    dy, y = upcast(dy), upcast(saved.y)
    x_hat = (y if saved.bias is None else y - upcast(saved.bias)) / saved.weight
    g = dy * saved.weight
    dx = saved.rstd * (g - row_mean(g) - x_hat * row_mean(g * x_hat))
    return dx, sum_rows(dy * x_hat), sum_rows(dy)


@layer_fault("eps_1e-05_in_backward", group="backward")
@backward_of_layer_norm
def layer_default_eps_in_backward(saved: Saved, dy: Tensor) -> Triple:
    """The backward pass takes rstd again, with its own default for eps."""
    saved.rstd = torch.rsqrt(upcast(saved.x).var(-1, unbiased=False, keepdim=True) + 1e-5)
    return layer_norm_backward(saved, dy)


# LayerNorm, dweight and dbias.


@layer_fault("dweight_of_centred", group="backward")
@backward_of_layer_norm
def layer_dweight_without_rstd(saved: Saved, dy: Tensor) -> Triple:
    """dweight sums dy times x less its mean."""
    dx, _, dbias = layer_norm_backward(saved, dy)
    return dx, sum_rows(upcast(dy) * (upcast(saved.x) - saved.mean)), dbias


@layer_fault("dweight_of_y", group="backward")
@backward_of_layer_norm
def layer_dweight_of_y(saved: Saved, dy: Tensor) -> Triple:
    """dweight sums dy times y, which is at hand."""
    dx, _, dbias = layer_norm_backward(saved, dy)
    y = saved.x_hat * saved.weight
    return dx, sum_rows(upcast(dy) * (y if saved.bias is None else y + upcast(saved.bias))), dbias


@layer_fault("dbias_weighted", group="backward")
@backward_of_layer_norm
def layer_dbias_of_g(saved: Saved, dy: Tensor) -> Triple:
    """dbias sums dy times weight."""
    dx, dweight, _ = layer_norm_backward(saved, dy)
    return dx, dweight, sum_rows(upcast(dy) * saved.weight)


@layer_fault("dbias_mean", group="backward")
@backward_of_layer_norm
def layer_dbias_averaged(saved: Saved, dy: Tensor) -> Triple:
    """dbias is averaged over the rows, dweight is summed."""
    dx, dweight, dbias = layer_norm_backward(saved, dy)
    return dx, dweight, dbias / max(1, dy.numel() // dy.shape[-1])


@layer_fault("dbias_twice", group="backward")
@backward_of_layer_norm
def layer_dbias_accumulated_twice(saved: Saved, dy: Tensor) -> Triple:
    """Both loops over the rows, for dx and for dweight, add to dbias."""
    dx, dweight, dbias = layer_norm_backward(saved, dy)
    return dx, dweight, dbias + sum_rows(upcast(dy))


@layer_fault(group="backward")
@backward_of_layer_norm
def layer_dbias_of_dx(saved: Saved, dy: Tensor) -> Triple:
    """dbias sums dx."""
    dx, dweight, _ = layer_norm_backward(saved, dy)
    return dx, dweight, sum_rows(dx)


@layer_fault(
    "dweight_without_last_row",
    "dbias_without_last_row",
    "dweight_and_dbias_without_row_5*",
    "dweight_and_dbias_without_last_1_*",
    group="backward",
)
@backward_of_layer_norm
def layer_last_row_left_out(saved: Saved, dy: Tensor) -> Triple:
    """The loop over the rows ends one row early, for dweight and dbias."""
    dx, _, _ = layer_norm_backward(saved, dy)
    rows = upcast(dy).reshape(-1, dy.shape[-1])
    x_hat = saved.x_hat.reshape(rows.shape)
    return dx, (rows * x_hat)[:-1].sum(0), rows[:-1].sum(0)


@layer_fault("parameter_gradients_accumulated_in_storage_dtype", group="backward", dtypes=HALF)
@backward_of_layer_norm
def layer_gradients_accumulated_in_half(saved: Saved, dy: Tensor) -> Triple:
    """dweight and dbias are added up row by row in buffers of x's dtype."""
    dx, dweight, _ = layer_norm_backward(saved, dy)
    dtype = saved.x.dtype
    dweight, dbias = dweight.new_zeros(dweight.shape, dtype=dtype), dweight.new_zeros(dweight.shape, dtype=dtype)
    rows = upcast(dy).reshape(-1, dy.shape[-1])
    for row, x_hat in zip(rows, saved.x_hat.reshape(rows.shape), strict=True):
        dweight = (dweight + row * x_hat).to(dtype)
        dbias = (dbias + row).to(dtype)
    return dx, dweight, dbias


@layer_fault("parameter_gradients_truncated", group="backward", dtypes=HALF)
@backward_of_layer_norm
def layer_gradients_cut_off(saved: Saved, dy: Tensor) -> Triple:
    """dweight and dbias are stored by their upper bits, which cuts them off."""
    dx, dweight, dbias = layer_norm_backward(saved, dy)
    if saved.stored is None or saved.stored.dtype != saved.x.dtype:
        return dx, dweight, dbias
    return dx, toward_zero(dweight, saved.x.dtype), toward_zero(dbias, saved.x.dtype)


# LayerNorm, y alone.


@layer_fault("eps_outside_root", group="forward")
@forward_of_layer_norm
def layer_eps_beside_root_in_y(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The forward pass adds eps to the standard deviation, the backward pass to the variance."""
    std, mean = torch.std_mean(upcast(x), -1, unbiased=False, keepdim=True)
    return scale((upcast(x) - mean) / (std + eps), x, weight, bias, **dialect)


@layer_fault("divides_by_n_minus_1", group="forward")
@forward_of_layer_norm
def layer_unbiased_in_y(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The forward pass divides by n - 1, the backward pass by n."""
    var, mean = torch.var_mean(upcast(x), -1, keepdim=True)
    return scale((upcast(x) - mean) * torch.rsqrt(var + eps), x, weight, bias, **dialect)


@layer_fault("one_pass_variance", group="forward")
@forward_of_layer_norm
def layer_one_pass_in_y(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel takes the variance in one pass, the backward pass in two."""
    rows = upcast(x)
    mean = row_mean(rows)
    var = (row_mean(rows * rows) - mean * mean).clamp(min=0)
    return scale((rows - mean) * torch.rsqrt(var + eps), x, weight, bias, **dialect)


@layer_fault("not_centred", group="forward")
@forward_of_layer_norm
def layer_rms_norm_in_y(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel is RMSNorm's."""
    return scale(F.rms_norm(upcast(x), x.shape[-1:], eps=eps), x, weight, bias, **dialect)


@layer_fault("weight_missing", group="forward")
@forward_of_layer_norm
def layer_weight_missing_in_y(
    x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, weight_offset: float, order: str
) -> Tensor:
    """The kernel adds the bias, and forgets the weight."""
    x_hat = F.layer_norm(upcast(x), x.shape[-1:], eps=eps)
    ones = None if weight is None else torch.ones_like(weight)
    return scale(x_hat, x, ones, bias, weight_offset=0.0, order=order)


@layer_fault("bias_missing", group="forward")
@forward_of_layer_norm
def layer_bias_missing_in_y(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel takes a bias and does not load it."""
    return layer_norm(x, weight, None, eps=eps, **dialect)


@layer_fault("weight_ignored_without_bias", group="forward", dtypes=("float32",))
@forward_of_layer_norm
def layer_affine_only_with_both(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel multiplies by the weight only where there is a bias too."""
    return layer_norm(x, None if bias is None else weight, bias, eps=eps, **dialect)


@layer_fault("bias_ignored_without_weight", group="forward", dtypes=("float32",))
@forward_of_layer_norm
def layer_bias_only_with_weight(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel adds the bias only where there is a weight too."""
    return layer_norm(x, weight, None if weight is None else bias, eps=eps, **dialect)


@layer_fault("eps_missing", group="forward")
@forward_of_layer_norm
def layer_eps_missing_in_y(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel does not add eps, the backward pass does."""
    return layer_norm(x, weight, bias, eps=0.0, **dialect)


@layer_fault("y_truncated", group="forward", dtypes=HALF)
@forward_of_layer_norm
def layer_y_cut_off(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, weight_offset: float, order: str) -> Tensor:
    """y is stored by its upper bits, which cuts it off."""
    return cut_off(F.layer_norm(x.float(), x.shape[-1:], eps=eps), x, weight, bias, weight_offset, order)


@layer_fault("y_in_bfloat16", group="forward", dtypes=WIDE)
@forward_of_layer_norm
def layer_y_stored_in_bfloat16(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel stores bfloat16, whatever dtype it returns."""
    return layer_norm(x, weight, bias, eps=eps, **dialect).bfloat16().to(x.dtype)


@layer_fault("mean_in_bfloat16", group="forward", dtypes=WIDE)
@forward_of_layer_norm
def layer_mean_in_bfloat16(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel keeps the mean in bfloat16."""
    centred = x - row_mean(x).bfloat16().to(x.dtype)
    return scale(centred * torch.rsqrt(row_mean(centred.square()) + eps), x, weight, bias, **dialect)


@layer_fault("rstd_of_12_bits", group="forward", dtypes=("float32",))
@forward_of_layer_norm
def layer_rstd_of_a_table(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel's reciprocal root has twelve bits."""
    var, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
    mantissa, exponent = torch.frexp(torch.rsqrt(var + eps))
    rstd = torch.ldexp((mantissa * 4096).round() / 4096, exponent)
    return scale((x - mean) * rstd, x, weight, bias, **dialect)


@layer_fault("x_hat_in_float8_e5m2", group="forward")
@forward_of_layer_norm
def layer_x_hat_in_float8(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """x_hat goes through float8 with five bits of exponent."""
    x_hat = F.layer_norm(upcast(x), x.shape[-1:], eps=eps)
    return scale(x_hat.to(torch.float8_e5m2).to(x_hat.dtype), x, weight, bias, **dialect)


@layer_fault("computed_in_storage_dtype", "computed_in_storage_dtype_root_first", group="forward", dtypes=HALF)
@forward_of_layer_norm
def layer_all_in_half_in_y(
    x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, weight_offset: float, order: str
) -> Tensor:
    """The forward pass is in x's dtype throughout, the backward pass in float32."""
    centred = x - x.mean(-1, keepdim=True)
    x_hat = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    if weight is None or bias is None:
        return x_hat
    y = x_hat * (weight + weight_offset if weight_offset else weight) + bias
    return y.to(weight.dtype if order == "cast_then_scale" else x.dtype)


FAULTS: tuple[Fault, ...] = (*rms_fault.faults, *layer_fault.faults)
