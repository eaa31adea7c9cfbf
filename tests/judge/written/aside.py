"""Faults kept aside: nothing is tuned on them.

They are in other styles than the rest: kernels that walk over blocks, ports of old code, half of a fix. A fault of a
forward kernel has a right backward pass beside it, a fault of a backward kernel a right forward pass.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax.numpy as jnp
import torch
import torch.nn.functional as F
from jax import lax
from torch import Tensor

from conformance.numbers.rounding import HALF
from tests.judge.written import jax_norms as right
from tests.judge.written.collection import Collection
from tests.judge.written.fault import Fault

Run = Callable[..., Any]

SINGLE = ("float64", "float32")
in_torch, in_jax = Collection("torch"), Collection("jax")


# What is right, in torch.


def up(t: Tensor) -> Tensor:
    """To float32, or float64 if that is what it is."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def store(x_hat: Tensor, x: Tensor, w: Tensor | None, b: Tensor | None, offset: float, order: str) -> Tensor:
    """Weight, bias and the cast."""
    out_dtype = x.dtype
    if order == "cast_then_scale":
        x_hat = up(x_hat.to(x.dtype))
        for p in (w, b):
            out_dtype = out_dtype if p is None else torch.promote_types(out_dtype, p.dtype)
    y = x_hat if w is None else x_hat * (up(w) + offset)
    return (y if b is None else y + up(b)).to(out_dtype)


def moments(x32: Tensor, *, centre: bool) -> tuple[Tensor, Tensor]:
    """Mean (zero for RMSNorm) and mean square around it."""
    mean = x32.mean(-1, keepdim=True) if centre else torch.zeros_like(x32[..., :1])
    return mean, (x32 - mean).square().mean(-1, keepdim=True)


def normalised(x: Tensor, eps: float, *, centre: bool) -> tuple[Tensor, Tensor]:
    """x_hat and rstd."""
    x32 = up(x)
    mean, var = moments(x32, centre=centre)
    rstd = torch.rsqrt(var + eps)
    return (x32 - mean) * rstd, rstd


def total(t: Tensor) -> Tensor:
    """Sum over the rows."""
    return t.reshape(-1, t.shape[-1]).sum(0)


def mean_of(t: Tensor) -> Tensor:
    """Mean of a row."""
    return t.mean(-1, keepdim=True)


def dx_of(g: Tensor, x_hat: Tensor, rstd: Tensor, *, centre: bool) -> Tensor:
    """The gradient of a row."""
    shift = mean_of(g) if centre else 0.0
    return rstd * (g - shift - x_hat * mean_of(g * x_hat))


def weighted(dy: Tensor, w: Tensor | None, offset: float) -> Tensor:
    """dy times the weight."""
    return up(dy) if w is None else up(dy) * (up(w) + offset)


def rms_forward(x, w, b, eps, offset, order):
    """RMSNorm."""
    return store(normalised(x, eps, centre=False)[0], x, w, b, offset, order)


def ln_forward(x, w, b, eps, offset, order):
    """LayerNorm."""
    return store(normalised(x, eps, centre=True)[0], x, w, b, offset, order)


def rms_backward(x, w, b, dy, eps, offset):
    """dx, dweight and nothing."""
    x_hat, rstd = normalised(x, eps, centre=False)
    return dx_of(weighted(dy, w, offset), x_hat, rstd, centre=False), total(up(dy) * x_hat), None


def ln_backward(x, w, b, dy, eps, offset):
    """dx, dweight and dbias."""
    x_hat, rstd = normalised(x, eps, centre=True)
    return dx_of(weighted(dy, w, offset), x_hat, rstd, centre=True), total(up(dy) * x_hat), total(up(dy))


class Kernel(torch.autograd.Function):
    """A forward and a backward kernel."""

    @staticmethod
    def forward(ctx: Any, forward: Run, backward: Run, x, w, b, eps, offset, order):
        """Launch the one."""
        ctx.backward_kernel, ctx.eps, ctx.offset = backward, eps, offset
        ctx.save_for_backward(x, w, b)
        return forward(x, w, b, eps, offset, order)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor):
        """Launch the other."""
        tensors = ctx.saved_tensors
        gradients = ctx.backward_kernel(*tensors, *cotangents, ctx.eps, ctx.offset)
        cast = [None if t is None else g.to(t.dtype) for t, g in zip(tensors, gradients, strict=True)]
        return None, None, *cast, None, None, None


def launched(forward: Run, backward: Run) -> Run:
    """The two as one op."""

    def run(x, weight, bias, *, eps, weight_offset, order):
        return Kernel.apply(forward, backward, x, weight, bias, eps, weight_offset, order)

    return run


def forward_kernel(backward: Run) -> Callable[[Run], Run]:
    """The decorated forward kernel with a right backward pass."""
    return lambda forward: wraps(forward)(launched(forward, backward))


def backward_kernel(forward: Run) -> Callable[[Run], Run]:
    """The decorated backward kernel with a right forward pass."""
    return lambda backward: wraps(backward)(launched(forward, backward))


# Plain torch under autograd.


@in_torch.fault("rms_norm", "eps_1e-08")
def rms_adam_eps(x, weight, bias, *, eps, weight_offset, order):
    """The eps of the optimiser's configuration is read: 1e-8."""
    return rms_forward(x, weight, bias, 1e-8, weight_offset, order)


@in_torch.fault("layer_norm", "eps_1e-12")
def ln_bert_eps(x, weight, bias, *, eps, weight_offset, order):
    """BERT's layer_norm_eps is compiled in."""
    return ln_forward(x, weight, bias, 1e-12, weight_offset, order)


@in_torch.fault("rms_norm", "eps_of_storage_dtype")
def rms_finfo_of_x(x, weight, bias, *, eps, weight_offset, order):
    """eps is torch.finfo(x.dtype).eps."""
    return rms_forward(x, weight, bias, torch.finfo(x.dtype).eps, weight_offset, order)


@in_torch.fault("rms_norm", "eps_squared")
def rms_eps_squared(x, weight, bias, *, eps, weight_offset, order):
    """Someone took eps for a length, and squares it to be of the mean square's kind."""
    x32 = up(x)
    return store(x32 / (x32.pow(2).mean(-1, True) + eps**2).sqrt(), x, weight, bias, weight_offset, order)


@in_torch.fault("layer_norm", "eps_clamps")
def ln_clamps_the_variance(x, weight, bias, *, eps, weight_offset, order):
    """The variance is clamped to eps from below."""
    x32 = up(x)
    mean, var = moments(x32, centre=True)
    return store((x32 - mean) * var.clamp(min=eps).rsqrt(), x, weight, bias, weight_offset, order)


@in_torch.fault("layer_norm", "divides_by_n_minus_1", "eps_outside_root")
def ln_annotated_transformer(x, weight, bias, *, eps, weight_offset, order):
    """(x - x.mean()) / (x.std() + eps): an unbiased deviation, and eps beside it."""
    x32 = up(x)
    x_hat = (x32 - x32.mean(-1, True)) / (x32.std(-1, keepdim=True) + eps)
    return store(x_hat, x, weight, bias, weight_offset, order)


@in_torch.fault("rms_norm", "squares_in_storage_dtype", "mean_square_in_storage_dtype", dtypes=HALF)
def rms_pow_before_float(x, weight, bias, *, eps, weight_offset, order):
    """x.pow(2).mean() is taken in x's dtype, and .float() stands behind it."""
    rstd = torch.rsqrt(x.pow(2).mean(-1, keepdim=True).float() + eps)
    return store(x.float() * rstd, x, weight, bias, weight_offset, order)


@in_torch.fault("layer_norm", "statistics_over_rows")
def ln_dim_1(x, weight, bias, *, eps, weight_offset, order):
    """dim=-2 for dim=-1, from a model that has its channels first."""
    dim = -2 if x.ndim > 1 else -1
    x32 = up(x)
    centred = x32 - x32.mean(dim, True)
    x_hat = centred * torch.rsqrt(centred.pow(2).mean(dim, True) + eps)
    return store(x_hat, x, weight, bias, weight_offset, order)


@in_torch.fault("rms_norm")
def rms_weight_before_the_norm(x, weight, bias, *, eps, weight_offset, order):
    """x is scaled by the weight first, and the product is normalised."""
    x32 = up(x) if weight is None else up(x) * (up(weight) + weight_offset)
    y = x32 * torch.rsqrt(x32.pow(2).mean(-1, True) + eps)
    promoted = x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)
    return y.to(promoted if order == "cast_then_scale" else x.dtype)


@in_torch.fault("rms_norm", "not_normalised")
def rms_normalised_value_unused(x, weight, bias, *, eps, weight_offset, order):
    """The normalised value gets a name, and the next line multiplies x instead."""
    return store(up(x), x, weight, bias, weight_offset, order)


@in_torch.fault("rms_norm", "root_twice")
def rms_root_of_the_root(x, weight, bias, *, eps, weight_offset, order):
    """rsqrt is taken of a root: the row is divided by the fourth root."""
    x32 = up(x)
    rms = torch.sqrt(x32.pow(2).mean(-1, True) + eps)
    return store(x32 * torch.rsqrt(rms), x, weight, bias, weight_offset, order)


@in_torch.fault("layer_norm", "mean_magnitude_for_root_mean_square")
def ln_mean_deviation(x, weight, bias, *, eps, weight_offset, order):
    """The mean absolute deviation stands for the standard deviation."""
    x32 = up(x)
    centred = x32 - x32.mean(-1, True)
    return store(centred / (centred.abs().mean(-1, True) + eps), x, weight, bias, weight_offset, order)


@in_torch.fault("rms_norm", "eps_clamps_root", "eps_missing", "eps_for_zero_rows_only")
def rms_by_normalize(x, weight, bias, *, eps, weight_offset, order):
    """F.normalize times the root of the width: eps is the least length of the whole row."""
    x_hat = F.normalize(up(x), dim=-1, eps=eps) * math.sqrt(x.shape[-1])
    return store(x_hat, x, weight, bias, weight_offset, order)


@in_torch.fault("layer_norm", "bias_subtracted")
def ln_minus_bias(x, weight, bias, *, eps, weight_offset, order):
    """x_hat * weight - bias."""
    return ln_forward(x, weight, None if bias is None else -bias, eps, weight_offset, order)


@in_torch.fault("rms_norm", "y_in_float32", dtypes=HALF)
def rms_forgets_type_as(x, weight, bias, *, eps, weight_offset, order):
    """The last .type_as(x) is missing."""
    x_hat, _ = normalised(x, eps, centre=False)
    x_hat = up(x_hat.to(x.dtype)) if order == "cast_then_scale" else x_hat
    return x_hat if weight is None else x_hat * (up(weight) + weight_offset)


@in_torch.fault("rms_norm", "y_demoted", dtypes=HALF)
def rms_type_as_too_often(x, weight, bias, *, eps, weight_offset, order):
    """A .type_as(x) too many: a float32 weight should have promoted y."""
    return rms_forward(x, weight, bias, eps, weight_offset, order).type_as(x)


@in_torch.fault("rms_norm", "offset_twice")
def rms_converted_and_offset(x, weight, bias, *, eps, weight_offset, order):
    """The converter of the checkpoint adds one, and the module adds it again."""
    return rms_forward(x, weight, bias, eps, 2 * weight_offset, order)


@in_torch.fault("layer_norm", "statistics_held_constant", group="backward")
def ln_no_grad_statistics(x, weight, bias, *, eps, weight_offset, order):
    """Mean and variance are taken under torch.no_grad()."""
    x32 = up(x)
    with torch.no_grad():
        mean, var = moments(x32, centre=True)
    return store((x32 - mean) * torch.rsqrt(var + eps), x, weight, bias, weight_offset, order)


@in_torch.fault("layer_norm", "x_in_float16", dtypes=("float64", "float32", "bfloat16"))
def ln_autocast_float16(x, weight, bias, *, eps, weight_offset, order):
    """x goes through .half() on its way in."""
    x_hat, _ = normalised(x.half(), eps, centre=True)
    return store(x_hat.to(up(x).dtype), x, weight, bias, weight_offset, order)


# Forward kernels in torch.


@in_torch.fault("rms_norm", "strides_ignored", group="forward", dtypes=("float32",))
@forward_kernel(rms_backward)
def rms_kernel_pointer_arithmetic(x, w, b, eps, offset, order):
    """The kernel goes from row to row by the width, whatever the strides are."""
    strides = torch.empty(x.shape, device="meta").stride()
    return rms_forward(torch.as_strided(x, x.shape, strides, x.storage_offset()), w, b, eps, offset, order)


@in_torch.fault("layer_norm", "statistics_of_first_32", group="forward")
@forward_kernel(ln_backward)
def ln_kernel_one_block_of_columns(x, w, b, eps, offset, order):
    """The loop over blocks of 32 columns was unrolled once: sums see the first block."""
    x32, n = up(x), x.shape[-1]
    mean = x32[..., :32].sum(-1, True) / n
    var = (x32 - mean)[..., :32].square().sum(-1, True) / n
    return store((x32 - mean) * torch.rsqrt(var + eps), x, w, b, offset, order)


@in_torch.fault("rms_norm", "columns_past_32_not_written", group="forward")
@forward_kernel(rms_backward)
def rms_kernel_whole_blocks_written(x, w, b, eps, offset, order):
    """The store covers n // 32 blocks; what is behind stays zero."""
    y = rms_forward(x, w, b, eps, offset, order)
    y[..., x.shape[-1] // 32 * 32 :] = 0
    return y


@in_torch.fault("rms_norm", "next_row_spoilt", group="forward")
@forward_kernel(rms_backward)
def rms_kernel_stores_pairs(x, w, b, eps, offset, order):
    """Features are stored in pairs; in an odd row the last pair's second half clears the next row's first feature."""
    y = rms_forward(x, w, b, eps, offset, order)
    if x.shape[-1] % 2:
        y.reshape(-1, x.shape[-1])[1:, 0] = 0
    return y


@in_torch.fault("rms_norm", "statistics_of_last_32", group="forward")
@forward_kernel(rms_backward)
def rms_kernel_assigns_its_accumulator(x, w, b, eps, offset, order):
    """acc = for acc +=: only the last block of 32 columns is in the sum of squares."""
    x32, n = up(x), x.shape[-1]
    last = x32[..., (n - 1) // 32 * 32 :]
    return store(x32 * torch.rsqrt(last.square().sum(-1, True) / n + eps), x, w, b, offset, order)


@in_torch.fault("rms_norm", "padding_of_ones", group="forward")
@forward_kernel(rms_backward)
def rms_kernel_other_is_one(x, w, b, eps, offset, order):
    """Masked lanes are loaded as one, and squared and summed with the rest."""
    x32, n = up(x), x.shape[-1]
    lanes = 1 << (n - 1).bit_length()
    squares = F.pad(x32, (0, lanes - n), value=1.0).square()
    return store(x32 * torch.rsqrt(squares.sum(-1, True) / n + eps), x, w, b, offset, order)


@in_torch.fault("rms_norm", "tail_not_masked", group="forward")
@forward_kernel(rms_backward)
def rms_kernel_without_mask(x, w, b, eps, offset, order):
    """Lanes past the row's end read the next row, zeros behind the last one."""
    x32, n = up(x), x.shape[-1]
    lanes = 1 << (n - 1).bit_length()
    rows = x32.reshape(-1, n)
    memory = F.pad(rows.reshape(-1), (0, lanes))
    index = torch.arange(len(rows))[:, None] * n + torch.arange(lanes)
    squares = memory[index].square().sum(-1).reshape(*x.shape[:-1], 1)
    return store(x32 * torch.rsqrt(squares / n + eps), x, w, b, offset, order)


@in_torch.fault("layer_norm", "one_pass_variance", group="forward")
@forward_kernel(ln_backward)
def ln_kernel_two_sums(x, w, b, eps, offset, order):
    """One loop sums x and x², and the variance is their difference."""
    x32 = up(x)
    mean = mean_of(x32)
    var = mean_of(x32 * x32) - mean * mean
    return store((x32 - mean) * torch.rsqrt(var.clamp(min=0) + eps), x, w, b, offset, order)


@in_torch.fault("rms_norm", "squares_accumulated_in_storage_dtype", group="forward", dtypes=HALF)
@forward_kernel(rms_backward)
def rms_kernel_half_accumulator(x, w, b, eps, offset, order):
    """The accumulator of the squares is declared in x's dtype."""
    acc = torch.zeros_like(x[..., :1])
    for column in up(x).square().split(1, dim=-1):
        acc = (up(acc) + column).to(x.dtype)
    return store(up(x) * torch.rsqrt(up(acc) / x.shape[-1] + eps), x, w, b, offset, order)


@in_torch.fault("layer_norm", "x_hat_in_float8_e4m3", group="forward")
@forward_kernel(ln_backward)
def ln_kernel_fp8_activations(x, w, b, eps, offset, order):
    """x_hat is quantised to e4m3 for the matmul behind, and the unquantised path reads that buffer too."""
    x_hat, _ = normalised(x, eps, centre=True)
    return store(x_hat.to(torch.float8_e4m3fn).to(x_hat.dtype), x, w, b, offset, order)


@in_torch.fault("layer_norm", group="forward")
@forward_kernel(ln_backward)
def ln_kernel_mean_of_previous_row(x, w, b, eps, offset, order):
    """A double-buffered mean: every row but the first is given that of the row before it."""
    x32 = up(x).reshape(-1, x.shape[-1])
    mean, var = moments(x32, centre=True)
    stale = torch.cat([mean[:1], mean[:-1]])
    return store(((x32 - stale) * torch.rsqrt(var + eps)).reshape(x.shape), x, w, b, offset, order)


# Backward kernels in torch.


@in_torch.fault("layer_norm", "statistics_of_first_row", group="backward")
@backward_kernel(ln_forward)
def ln_bwd_statistics_of_row_zero(x, w, b, dy, eps, offset):
    """The row's index is missing where mean and rstd are loaded, so all rows have the first one's."""
    x32 = up(x)
    mean, var = moments(x32, centre=True)
    mean, rstd = mean.reshape(-1)[:1], torch.rsqrt(var + eps).reshape(-1)[:1]
    x_hat = (x32 - mean) * rstd if x.numel() else x32
    rstd = rstd if x.numel() else 1.0
    return dx_of(weighted(dy, w, offset), x_hat, rstd, centre=True), total(up(dy) * x_hat), total(up(dy))


@in_torch.fault("rms_norm", "projection_over_n_minus_1", group="backward")
@backward_kernel(rms_forward)
def rms_bwd_n_minus_1(x, w, b, dy, eps, offset):
    """The projection is divided by n - 1."""
    x_hat, rstd = normalised(x, eps, centre=False)
    g = weighted(dy, w, offset)
    projection = (g * x_hat).sum(-1, True) / (x.shape[-1] - 1)
    return rstd * (g - x_hat * projection), total(up(dy) * x_hat), None


@in_torch.fault("layer_norm", "dweight_weighted", group="backward")
@backward_kernel(ln_forward)
def ln_bwd_wdy_reused(x, w, b, dy, eps, offset):
    """dy was overwritten by dy·weight before dweight and dbias were summed; dbias was noticed and mended."""
    x_hat, rstd = normalised(x, eps, centre=True)
    g = weighted(dy, w, offset)
    return dx_of(g, x_hat, rstd, centre=True), total(g * x_hat), total(up(dy))


@in_torch.fault("layer_norm", "d*_without_*", group="backward")
@backward_kernel(ln_forward)
def ln_bwd_first_four_rows(x, w, b, dy, eps, offset):
    """Only the first program, of four rows, adds to dweight and dbias."""
    x_hat, rstd = normalised(x, eps, centre=True)
    terms, rows = (up(dy) * x_hat).reshape(-1, x.shape[-1]), up(dy).reshape(-1, x.shape[-1])
    dx = dx_of(weighted(dy, w, offset), x_hat, rstd, centre=True)
    return dx, terms[:4].sum(0), rows[:4].sum(0)


@in_torch.fault("rms_norm", "dweight_repeats_last_row_8", group="backward")
@backward_kernel(rms_forward)
def rms_bwd_clamped_row_index(x, w, b, dy, eps, offset):
    """Rows come in eights; indices past the end are clamped, so the last row is summed again and again."""
    x_hat, rstd = normalised(x, eps, centre=False)
    terms = (up(dy) * x_hat).reshape(-1, x.shape[-1])
    repeated = terms[-1:].sum(0) * (-len(terms) % 8)
    return dx_of(weighted(dy, w, offset), x_hat, rstd, centre=False), terms.sum(0) + repeated, None


@in_torch.fault("layer_norm", "shift_summed", group="backward")
@backward_kernel(ln_forward)
def ln_bwd_sum_of_g(x, w, b, dy, eps, offset):
    """The sum of g is subtracted, not its mean; the projection is right."""
    x_hat, rstd = normalised(x, eps, centre=True)
    g = weighted(dy, w, offset)
    dx = rstd * (g - g.sum(-1, True) - x_hat * mean_of(g * x_hat))
    return dx, total(up(dy) * x_hat), total(up(dy))


@in_torch.fault("rms_norm", "direct_path_without_weight", group="backward")
@backward_kernel(rms_forward)
def rms_bwd_direct_term_unweighted(x, w, b, dy, eps, offset):
    """Half a fix: the projection has the weight by now, the direct term still has not."""
    x_hat, rstd = normalised(x, eps, centre=False)
    g = weighted(dy, w, offset)
    return rstd * (up(dy) - x_hat * mean_of(g * x_hat)), total(up(dy) * x_hat), None


@in_torch.fault("layer_norm", "dx_with_rstd_twice", group="backward")
@backward_kernel(ln_forward)
def ln_bwd_rstd_in_and_out(x, w, b, dy, eps, offset):
    """g is multiplied by rstd when it is loaded, and dx again when it is stored."""
    x_hat, rstd = normalised(x, eps, centre=True)
    g = weighted(dy, w, offset) * rstd
    return dx_of(g, x_hat, rstd, centre=True), total(up(dy) * x_hat), total(up(dy))


@in_torch.fault("layer_norm", "mean_not_saved", group="backward")
@backward_kernel(ln_forward)
def ln_bwd_mean_not_saved(x, w, b, dy, eps, offset):
    """Copied from RMSNorm: the backward pass takes x_hat to be x·rstd."""
    _, rstd = normalised(x, eps, centre=True)
    x_hat = up(x) * rstd
    return dx_of(weighted(dy, w, offset), x_hat, rstd, centre=True), total(up(dy) * x_hat), total(up(dy))


@in_torch.fault("rms_norm", "eps_1e-06_in_backward", group="backward")
@backward_kernel(rms_forward)
def rms_bwd_default_eps(x, w, b, dy, eps, offset):
    """The backward pass recomputes rstd with the default eps."""
    return rms_backward(x, w, b, dy, 1e-6, offset)


@in_torch.fault(
    "layer_norm",
    "statistics_saved_in_storage_dtype",
    "mean_saved_in_storage_dtype",
    "rstd_saved_in_storage_dtype",
    group="backward",
    dtypes=HALF,
)
@backward_kernel(ln_forward)
def ln_bwd_statistics_like_x(x, w, b, dy, eps, offset):
    """Mean and rstd are saved with empty_like(x): in half precision."""
    mean, var = moments(up(x), centre=True)
    rstd = up(torch.rsqrt(var + eps).to(x.dtype))
    x_hat = (up(x) - up(mean.to(x.dtype))) * rstd
    return dx_of(weighted(dy, w, offset), x_hat, rstd, centre=True), total(up(dy) * x_hat), total(up(dy))


@in_torch.fault("rms_norm", "dweight_times_*", group="backward")
@backward_kernel(rms_forward)
def rms_bwd_averaged_over_ranks(x, w, b, dy, eps, offset):
    """dweight is averaged over four ranks that all had the same rows' share."""
    dx, dweight, _ = rms_backward(x, w, b, dy, eps, offset)
    return dx, dweight / 4, None


@in_torch.fault("rms_norm", "dx_truncated", group="backward", dtypes=("bfloat16",))
@backward_kernel(rms_forward)
def rms_bwd_upper_halves(x, w, b, dy, eps, offset):
    """dx is stored as the upper two bytes of its float32: truncated."""
    dx, dweight, _ = rms_backward(x, w, b, dy, eps, offset)
    return (dx.contiguous().view(torch.int32) & -65536).view(torch.float32), dweight, None


# Norms in JAX.


@in_jax.fault("layer_norm", "mean_in_bfloat16", dtypes=SINGLE)
def ln_jax_mean_in_bfloat16(x, weight, bias, *, eps, weight_offset, order):
    """The mean is kept in bfloat16, a leaf of the model's dtype policy."""
    x32 = right.wide(x)
    centred = x32 - right.row_mean(x32).astype(jnp.bfloat16).astype(x32.dtype)
    x_hat = centred / jnp.sqrt(right.row_mean(centred**2) + eps)
    return right.affine(x_hat, x, weight, bias, weight_offset=weight_offset, order=order)


@in_jax.fault("rms_norm", "statistics_of_bfloat16_x", dtypes=SINGLE)
def rms_jax_statistics_of_bfloat16_x(x, weight, bias, *, eps, weight_offset, order):
    """The mean square is that of x in bfloat16, and x itself is scaled."""
    x32 = right.wide(x)
    rstd = (right.row_mean(x32.astype(jnp.bfloat16).astype(x32.dtype) ** 2) + eps) ** -0.5
    return right.affine(x32 * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@in_jax.fault("layer_norm", "weight_shifted")
def ln_jax_weight_of_the_neighbour(x, weight, bias, *, eps, weight_offset, order):
    """The weight is rolled by one, as an index map that is off by one does it; the bias is not."""
    rolled = None if weight is None else jnp.roll(weight, 1)
    return right.layer_norm(x, rolled, bias, eps=eps, weight_offset=weight_offset, order=order)


@in_jax.fault("layer_norm", "weight_ignored_without_bias", dtypes=("float32",))
def ln_jax_affine_only_with_bias(x, weight, bias, *, eps, weight_offset, order):
    """One flag, use_bias, decides on the weight as well."""
    used = None if bias is None else weight
    return right.layer_norm(x, used, bias, eps=eps, weight_offset=weight_offset, order=order)


@in_jax.fault("layer_norm")
def ln_jax_scalar_bias(x, weight, bias, *, eps, weight_offset, order):
    """The bias is read at program_id(1), which is zero: every feature is given the first one."""
    first = None if bias is None else bias[:1]
    return right.layer_norm(x, weight, first, eps=eps, weight_offset=weight_offset, order=order)


@in_jax.fault("rms_norm", "eps_after_rescale")
def rms_jax_safe_by_maximum(x, weight, bias, *, eps, weight_offset, order):
    """The row is divided by its largest magnitude against overflow, and eps is added to what is left."""
    x32 = right.wide(x)
    scaled = x32 / lax.stop_gradient(jnp.max(jnp.abs(x32), axis=-1, keepdims=True))
    rstd = lax.rsqrt(right.row_mean(scaled**2) + eps)
    return right.affine(scaled * rstd, x, weight, bias, weight_offset=weight_offset, order=order)


@in_jax.fault("rms_norm")
def rms_jax_half_the_row_twice(x, weight, bias, *, eps, weight_offset, order):
    """The second half's squares are read from the first half again."""
    x32, half = right.wide(x), x.shape[-1] // 2
    squares = jnp.sum(x32[..., : x.shape[-1] - half] ** 2, axis=-1, keepdims=True)
    squares = squares + jnp.sum(x32[..., :half] ** 2, axis=-1, keepdims=True)
    x_hat = x32 * lax.rsqrt(squares / x.shape[-1] + eps)
    return right.affine(x_hat, x, weight, bias, weight_offset=weight_offset, order=order)


@in_jax.fault("layer_norm", "dbias_mean", group="backward")
@right.gradients_of(right.layer_norm)
def ln_jax_pmean_of_dbias(x, weight, bias, dy, *, eps, weight_offset):
    """dbias is a mean over the rows; dweight was mended already."""
    dx, dweight, dbias = right.layer_norm_vjp(x, weight, bias, dy, eps=eps, weight_offset=weight_offset)
    return dx, dweight, dbias * x.shape[-1] / max(1, x.size)


@in_jax.fault("rms_norm", "projection_of_y", group="backward")
@right.gradients_of(right.rms_norm)
def rms_jax_projects_on_y(x, weight, bias, dy, *, eps, weight_offset):
    """The residuals hold y where x_hat is expected, and the projection is taken with it."""
    x_hat, rstd = right.rms_statistics(x, eps)
    w = right.effective(weight, weight_offset)
    g = right.wide(dy) * w
    dx = rstd * (g - x_hat * right.row_mean(g * x_hat * w))
    return dx, right.sum_rows(right.wide(dy) * x_hat), None


@in_jax.fault("layer_norm", "dx_without_weight", group="backward")
@right.gradients_of(right.layer_norm)
def ln_jax_backward_of_the_core(x, weight, bias, dy, *, eps, weight_offset):
    """The backward pass is that of the norm without its affine part."""
    _, dweight, dbias = right.layer_norm_vjp(x, weight, bias, dy, eps=eps, weight_offset=weight_offset)
    dx, _, _ = right.layer_norm_vjp(x, None, bias, dy, eps=eps, weight_offset=0.0)
    return dx, dweight, dbias


# Attention, rotation, and activations.


def repeated(t: Tensor, h: int) -> Tensor:
    """Key or value heads, one for every query head."""
    return up(t).repeat_interleave(h // t.shape[-2], dim=-2)


def seen(q: Tensor, k: Tensor, key_mask: Tensor | None, *, causal: bool) -> Tensor:
    """The keys that each query sees."""
    s, t = q.shape[-3], k.shape[-3]
    mask = torch.ones(1, s, t, dtype=torch.bool)
    mask = mask.tril(t - s) if causal else mask
    return mask if key_mask is None else mask & (key_mask != 0)[..., None, None, :]


def scored(q: Tensor, k: Tensor) -> Tensor:
    """Scaled scores."""
    return torch.einsum("...shd,...thd->...hst", up(q), repeated(k, q.shape[-2])) / math.sqrt(q.shape[-1])


def softened(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over what is seen, zeros where nothing is."""
    blind = ~mask.any(-1, keepdim=True)
    return scores.masked_fill(~(mask | blind), -math.inf).softmax(-1).masked_fill(blind, 0.0)


def mixed(probs: Tensor, v: Tensor) -> Tensor:
    """The values, averaged."""
    return torch.einsum("...hst,...thd->...shd", probs, repeated(v, probs.shape[-3])).to(v.dtype)


def attend(q, k, v, key_mask, *, causal):
    """Attention."""
    return mixed(softened(scored(q, k), seen(q, k, key_mask, causal=causal)), v)


@in_torch.fault("attention", "value_heads_tiled")
def attention_repeats_values_by_repeat(q, k, v, key_mask, *, causal):
    """torch.repeat for the values, repeat_interleave for the keys."""
    tiled = v.repeat(*[1] * (v.ndim - 2), q.shape[-2] // v.shape[-2], 1)
    return attend(q, k, tiled, key_mask, causal=causal)


@in_torch.fault("attention", "mask_of_minus_1e4", dtypes=("float32",))
def attention_adds_minus_1e4(q, k, v, key_mask, *, causal):
    """(1 - mask) * -10000 is added to the scores, as in BERT."""
    mask = seen(q, k, key_mask, causal=causal)
    return mixed((scored(q, k) + (~mask).float() * -10000.0).softmax(-1), v)


@in_torch.fault("attention", "scale_of_d_model")
def attention_scaled_by_all_heads(q, k, v, key_mask, *, causal):
    """The scores are divided by the root of h·d_head."""
    scores = scored(q, k) / math.sqrt(q.shape[-2])
    return mixed(softened(scores, seen(q, k, key_mask, causal=causal)), v)


@in_torch.fault("attention", "probs_in_bfloat16", dtypes=SINGLE)
def attention_probabilities_in_bfloat16(q, k, v, key_mask, *, causal):
    """The probabilities are cast to bfloat16 for the second product."""
    probs = softened(scored(q, k), seen(q, k, key_mask, causal=causal))
    return mixed(probs.bfloat16().to(probs.dtype), v)


@in_torch.fault("attention", "heads_merged_untransposed")
def attention_reshapes_without_transpose(q, k, v, key_mask, *, causal):
    """[b, h, s, d] is reshaped to [b, s, h, d]."""
    y = attend(q, k, v, key_mask, causal=causal)
    return y.transpose(-3, -2).reshape(y.shape)


@in_torch.fault("attention", "keys_and_values_swapped")
def attention_arguments_exchanged(q, k, v, key_mask, *, causal):
    """attention(q, v, k)."""
    return attend(q, v, k, key_mask, causal=causal)


@in_torch.fault("attention", "window_unasked", dtypes=("float32",))
def attention_slides(q, k, v, key_mask, *, causal):
    """A sliding window of four keys is left in the mask."""
    mask = seen(q, k, key_mask, causal=causal)
    s, t = q.shape[-3], k.shape[-3]
    near = torch.arange(t) > torch.arange(t - s, t)[:, None] - 4
    return mixed(softened(scored(q, k), mask & near), v)


def passing(t: Tensor, factor: float) -> Tensor:
    """t, whose gradient is multiplied by a factor."""
    return t.detach() + (t - t.detach()) * factor


@in_torch.fault("attention", "scale_missing_in_dk", group="backward")
def attention_scale_folded_into_q(q, k, v, key_mask, *, causal):
    """The kernel's backward pass knows the scale in dq, and not in dk."""
    return attend(q, passing(k, math.sqrt(q.shape[-1])), v, key_mask, causal=causal)


@in_torch.fault("attention", "dk_and_dv_averaged_over_group", group="backward")
def attention_averages_the_group(q, k, v, key_mask, *, causal):
    """dk and dv are averaged over the query heads of a group: .mean for .sum."""
    share = k.shape[-2] / q.shape[-2]
    return attend(q, passing(k, share), passing(v, share), key_mask, causal=causal)


def spun(x: Tensor, angles: Tensor, *, interleaved: bool) -> Tensor:
    """Pairs turned by angles of [s, 1 or h, d / 2]."""
    wide = up(x)
    first, second = (wide[..., 0::2], wide[..., 1::2]) if interleaved else wide.chunk(2, -1)
    a, b = first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()
    return (torch.stack([a, b], -1).flatten(-2) if interleaved else torch.cat([a, b], -1)).to(x.dtype)


def frequencies(x: Tensor, base: float) -> Tensor:
    """One for every pair."""
    d = x.shape[-1]
    return torch.tensor([base ** (-i / d) for i in range(0, d, 2)], dtype=up(x).dtype)


@in_torch.fault("rope", "position_from_one")
def rope_counts_from_one(x, *, position, base, interleaved):
    """arange(1, s + 1)."""
    positions = torch.arange(1, x.shape[-3] + 1) + position
    return spun(x, (positions[:, None] * frequencies(x, base))[:, None], interleaved=interleaved)


@in_torch.fault("rope")
def rope_fast_half_only(x, *, position, base, interleaved):
    """The slower half of the frequencies is zero: a partial rotation from the wrong end."""
    fast = frequencies(x, base)
    fast = torch.where(torch.arange(len(fast)) < len(fast) // 2, fast, 0.0)
    positions = torch.arange(x.shape[-3]) + position
    return spun(x, (positions[:, None] * fast)[:, None], interleaved=interleaved)


@in_torch.fault("rope", "rope_by_head")
def rope_axis_of_the_heads(x, *, position, base, interleaved):
    """x is taken for [batch, h, s, d], so the head's number is the position."""
    positions = torch.arange(x.shape[-2]) + position
    return spun(x, positions[:, None] * frequencies(x, base), interleaved=interleaved)


@in_torch.fault("swiglu", "product_activated")
def swiglu_activates_the_product(gate, up):
    """silu(gate * up)."""
    wide = torch.promote_types(gate.dtype, torch.float32)
    return F.silu(gate.to(wide) * up.to(wide)).to(gate.dtype)


@in_torch.fault("swiglu", "relu_for_silu")
def swiglu_is_reglu(gate, up):
    """The gate goes through ReLU."""
    wide = torch.promote_types(gate.dtype, torch.float32)
    return (F.relu(gate.to(wide)) * up.to(wide)).to(gate.dtype)


@in_torch.fault("gelu", "gelu_constant_mistyped")
def gelu_digits_exchanged(x, *, approximate):
    """0.044175 for 0.044715; the error function, where it is asked for, is right."""
    wide = up(x)
    inner = math.sqrt(2 / math.pi) * (wide + 0.044175 * wide**3)
    return (wide * torch.sigmoid(2 * inner) if approximate else wide * torch.erfc(-wide / math.sqrt(2)) / 2).to(x.dtype)


@in_torch.fault("gelu", "gelu_without_root_of_2")
def gelu_erf_of_x(x, *, approximate):
    """The error function is taken of x; the root of two is missing."""
    wide = up(x)
    if approximate:
        return F.gelu(wide, approximate="tanh").to(x.dtype)
    return (wide * torch.erfc(-wide) / 2).to(x.dtype)


HONEST = (
    Fault("torch/rms_norm", "nothing", "rms_norm", "torch", launched(rms_forward, rms_backward)),
    Fault("torch/layer_norm", "nothing", "layer_norm", "torch", launched(ln_forward, ln_backward)),
    Fault("torch/attention", "nothing", "attention", "torch", attend),
)
FAULTS = tuple(in_torch.faults + in_jax.faults)
