"""Kernels with one fault each, written in PyTorch: blocks, lanes, masks, partial sums, memory and what is kept between calls.

A kernel is a forward pass that saves its statistics, or does not, beside a backward pass of its own.
"""

import itertools
import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.judge.written.fault import Fault
from tests.judge.written.torch_steps import (
    HALF,
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
BLOCK = 32  # features, or rows, that a loop takes at once
LANES = 4  # features that a vector instruction takes at once


def power_of_two(n: int) -> int:
    return 2 ** math.ceil(math.log2(n))


def row_mean(a: Tensor) -> Tensor:
    return a.mean(-1, keepdim=True)


def lanes_past_the_end(x: Tensor, lanes: int) -> Tensor:
    """[*batch, lanes]: every row as so many lanes read it without a mask; zeros lie beyond the last row."""
    rows = upcast(x)
    n, memory = x.shape[-1], F.pad(rows.reshape(-1), (0, lanes))
    starts = n * torch.arange(x.numel() // n)
    return memory[starts[:, None] + torch.arange(lanes)].reshape(*x.shape[:-1], lanes)


def of_rms(rows: Tensor, rstd: Tensor, x: Tensor, weight: Parameter, **dialect: Any) -> Triple:
    """What a kernel of RMSNorm returns and saves: y, a mean of zero, and rstd."""
    return scale(rows * rstd, x, weight, None, **dialect), torch.zeros_like(rstd), rstd


def of_layer(rows: Tensor, mean: Tensor, rstd: Tensor, x: Tensor, weight: Parameter, bias: Parameter, **dialect: Any) -> Triple:
    """What a kernel of LayerNorm returns and saves: y, the mean, and rstd."""
    return scale((rows - mean) * rstd, x, weight, bias, **dialect), mean, rstd


def first_features(size: int, a: Tensor) -> Tensor:
    """a with zeros past its first features."""
    return F.pad(a[..., :size], (0, max(0, a.shape[-1] - size)))


# Right, block by block.


@forward_of_rms_norm
def rms_in_blocks(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The squares are added up block by block."""
    rows = upcast(x)
    total = torch.zeros_like(rows[..., :1])
    for block in rows.split(BLOCK, -1):
        total += block.square().sum(-1, keepdim=True)
    return of_rms(rows, torch.rsqrt(total / x.shape[-1] + eps), x, weight, **dialect)


def moments(rows: Tensor, parts: tuple[Tensor, ...], delta_counts: bool = True) -> Pair:
    """The mean and the variance, merged of those of the parts of a row by Chan's formula."""
    count, mean, m2 = 0, torch.zeros_like(rows[..., :1]), torch.zeros_like(rows[..., :1])
    for part in parts:
        k, part_mean = part.shape[-1], row_mean(part)
        delta = part_mean - mean
        m2 = m2 + (part - part_mean).square().sum(-1, keepdim=True)
        if delta_counts:
            m2 = m2 + delta.square() * (count * k / (count + k))
        mean = mean + delta * (k / (count + k))
        count += k
    return mean, m2 / count


@forward_of_layer_norm
def layer_by_welford(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """The moments of blocks are merged."""
    rows = upcast(x)
    mean, var = moments(rows, rows.split(BLOCK, -1))
    return of_layer(rows, mean, torch.rsqrt(var + eps), x, weight, bias, **dialect)


HONEST = (honest("rms_norm", rms_in_blocks), honest("layer_norm", layer_by_welford))


# RMSNorm: lanes past the end of a row.


@rms_fault("tail_not_masked")
@forward_of_rms_norm
def rms_tail_not_masked(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The load has no mask: lanes up to a power of two read the next row, and their squares are added."""
    lanes = lanes_past_the_end(x, power_of_two(x.shape[-1]))
    rstd = torch.rsqrt(lanes.square().sum(-1, keepdim=True) / x.shape[-1] + eps)
    return of_rms(upcast(x), rstd, x, weight, **dialect)


@rms_fault("tail_not_masked_128", group="forward")
@forward_of_rms_norm
def rms_tail_of_128_not_masked(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The last block of 128 lanes reads the next rows; the backward pass takes its own statistics."""
    n = x.shape[-1]
    lanes = lanes_past_the_end(x, math.ceil(n / 128) * 128)
    rstd = torch.rsqrt(lanes.square().sum(-1, keepdim=True) / n + eps)
    return scale(upcast(x) * rstd, x, weight, None, **dialect)


@rms_fault("padding_of_ones")
@forward_of_rms_norm
def rms_masked_with_ones(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The masked load has 1.0 for its other value, as that of the weight has."""
    n, rows = x.shape[-1], upcast(x)
    lanes = F.pad(rows, (0, power_of_two(n) - n), value=1.0)
    rstd = torch.rsqrt(lanes.square().sum(-1, keepdim=True) / n + eps)
    return of_rms(rows, rstd, x, weight, **dialect)


@rms_fault()
@forward_of_rms_norm
def rms_divided_by_whole_blocks(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The sum of squares is divided by the number of lanes, a multiple of 128, not of features."""
    rows = upcast(x)
    lanes = math.ceil(x.shape[-1] / 128) * 128
    rstd = torch.rsqrt(rows.square().sum(-1, keepdim=True) / lanes + eps)
    return of_rms(rows, rstd, x, weight, **dialect)


@rms_fault("padding_of_ones_128", group="forward")
@forward_of_rms_norm
def rms_block_of_128_masked_with_ones(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """A block of 128 lanes is loaded with 1.0 past the row; the backward pass takes its own statistics."""
    n, rows = x.shape[-1], upcast(x)
    lanes = F.pad(rows, (0, math.ceil(n / 128) * 128 - n), value=1.0)
    return scale(rows * torch.rsqrt(lanes.square().sum(-1, keepdim=True) / n + eps), x, weight, None, **dialect)


# RMSNorm: blocks of features.


def cut_backward(size: int, saved: Saved, dy: Tensor) -> Pair:
    """The backward pass of a block of so many features, and zeros elsewhere."""
    dy, x_hat = first_features(size, upcast(dy)), first_features(size, saved.x_hat)
    g = dy * saved.weight
    projection = (g * x_hat).sum(-1, keepdim=True) / dy.shape[-1]
    return first_features(size, saved.rstd * (g - x_hat * projection)), sum_rows(dy * x_hat)


def cut_forward(size: int, x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The forward pass of a block of so many features, and zeros elsewhere."""
    rows = first_features(size, upcast(x))
    rstd = torch.rsqrt(rows.square().sum(-1, keepdim=True) / x.shape[-1] + eps)
    return of_rms(rows, rstd, x, weight, **dialect)


@rms_fault("row_cut_at_32")
@partial(forward_of_rms_norm, backward=partial(cut_backward, 32))
def rms_block_of_32(x: Tensor, weight: Parameter, bias: None, **given: Any) -> Triple:
    """One block of 32 lanes takes a row, however wide it is."""
    return cut_forward(32, x, weight, bias, **given)


@rms_fault("row_cut_at_64", dtypes=("float32", "bfloat16"))
@partial(forward_of_rms_norm, backward=partial(cut_backward, 64))
def rms_block_of_64(x: Tensor, weight: Parameter, bias: None, **given: Any) -> Triple:
    """One block of 64 lanes takes a row, however wide it is."""
    return cut_forward(64, x, weight, bias, **given)


@rms_fault("statistics_of_first_32")
@forward_of_rms_norm
def rms_statistics_of_one_block(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The sum of squares is that of the first block; the output is written in a loop over all."""
    rows = upcast(x)
    total = rows[..., :BLOCK].square().sum(-1, keepdim=True)
    return of_rms(rows, torch.rsqrt(total / x.shape[-1] + eps), x, weight, **dialect)


@rms_fault("statistics_of_last_32")
@forward_of_rms_norm
def rms_total_overwritten(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The loop over blocks has = for +=."""
    rows = upcast(x)
    total = torch.zeros_like(rows[..., :1])
    for block in rows.split(BLOCK, -1):
        total = block.square().sum(-1, keepdim=True)
    return of_rms(rows, torch.rsqrt(total / x.shape[-1] + eps), x, weight, **dialect)


@rms_fault("statistics_of_each_32")
def rms_each_block_by_itself(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """Every block of 32 features is normalised by itself."""
    blocks = [block * torch.rsqrt(row_mean(block.square()) + eps) for block in upcast(x).split(BLOCK, -1)]
    return scale(torch.cat(blocks, -1), x, weight, None, **dialect)


@rms_fault()
@forward_of_rms_norm
def rms_mean_of_block_means(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The mean squares of the blocks are averaged, though the last block is shorter."""
    rows = upcast(x)
    means = torch.cat([row_mean(block.square()) for block in rows.split(BLOCK, -1)], -1)
    rstd = torch.rsqrt(row_mean(means) + eps)
    return of_rms(rows, rstd, x, weight, **dialect)


@rms_fault("tail_missing_from_statistics")
@forward_of_rms_norm
def rms_remainder_of_lanes_missing(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The sum of squares is taken four features at a time, without the remainder."""
    n, rows = x.shape[-1], upcast(x)
    vectors = rows[..., : n // LANES * LANES].unflatten(-1, (n // LANES, LANES))
    total = vectors.square().sum((-2, -1)).unsqueeze(-1)
    return of_rms(rows, torch.rsqrt(total / n + eps), x, weight, **dialect)


@rms_fault()
@forward_of_rms_norm
def rms_lanes_loaded_as_one(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The vector load of the sum's loop fills four lanes with the first one's value."""
    rows = upcast(x)
    total = rows[..., ::LANES].repeat_interleave(LANES, -1)[..., : x.shape[-1]].square().sum(-1, keepdim=True)
    return of_rms(rows, torch.rsqrt(total / x.shape[-1] + eps), x, weight, **dialect)


@rms_fault(group="forward")
@forward_of_rms_norm
def rms_butterfly_one_step_short(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The shuffles among 32 lanes begin at 8, so each half of the lanes has a sum of its own."""
    rows, n = upcast(x), x.shape[-1]
    feature = torch.arange(n)
    upper = (feature % 32 >= 16).to(rows.dtype)
    of_upper = (rows.square() * upper).sum(-1, keepdim=True)
    of_lower = (rows.square() * (1 - upper)).sum(-1, keepdim=True)
    total = upper * of_upper + (1 - upper) * of_lower
    return scale(rows * torch.rsqrt(total / n + eps), x, weight, None, **dialect)


@rms_fault("columns_past_4_not_written", group="forward")
@forward_of_rms_norm
def rms_remainder_not_written(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """y is written four features at a time, without the remainder."""
    y = rms_norm(x, weight, None, eps=eps, **dialect)
    return first_features(x.shape[-1] // LANES * LANES, y)


def whole_blocks_backward(saved: Saved, dy: Tensor) -> Pair:
    """dx is written for whole blocks only."""
    dx, dweight = rms_norm_backward(saved, dy)
    return first_features(dy.shape[-1] // BLOCK * BLOCK, dx), dweight


@rms_fault("columns_past_32_not_written")
@partial(forward_of_rms_norm, backward=whole_blocks_backward)
def rms_blocks_rounded_down(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The grid has n // 32 blocks a row, for y and for dx."""
    y = rms_norm(x, weight, None, eps=eps, **dialect)
    return first_features(x.shape[-1] // BLOCK * BLOCK, y)


def spoil_next_rows(a: Tensor) -> Tensor:
    """a as a loop leaves it that writes rows in pairs of features, the last row first."""
    n = a.shape[-1]
    written = F.pad(a.reshape(-1), (0, 1))
    if n % 2:
        written[n::n] = 0.0
    return written[:-1].reshape(a.shape)


def pairs_backward(saved: Saved, dy: Tensor) -> Pair:
    """dx is written in pairs of features, without a mask."""
    dx, dweight = rms_norm_backward(saved, dy)
    return spoil_next_rows(dx), dweight


@rms_fault("next_row_spoilt")
@partial(forward_of_rms_norm, backward=pairs_backward)
def rms_pairs_not_masked(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """y and dx are written in pairs of features: a row of odd width spoils the next one's first."""
    return spoil_next_rows(rms_norm(x, weight, None, eps=eps, **dialect))


@rms_fault("squares_accumulated_in_storage_dtype", dtypes=HALF)
@forward_of_rms_norm
def rms_accumulator_of_x(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The accumulator is made like x, and the squares are added to it one by one."""
    rows = x.float()
    total = torch.zeros_like(x[..., :1])
    for feature in rows.split(1, -1):
        total = (total.float() + feature.square()).to(x.dtype)
    return of_rms(rows, torch.rsqrt(total.float() / x.shape[-1] + eps), x, weight, **dialect)


@rms_fault("squares_in_float16", dtypes=("float64", "float32", "bfloat16"))
@forward_of_rms_norm
def rms_squares_in_float16(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The squares are kept in a float16 tile."""
    rows = upcast(x)
    variance = row_mean(rows.square().half().to(rows.dtype))
    return of_rms(rows, torch.rsqrt(variance + eps), x, weight, **dialect)


# RMSNorm: rows, strides and the weight's place.


@rms_fault("last_row_not_written", group="forward")
@forward_of_rms_norm
def rms_grid_one_short(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The grid has one program too few, and the last row of y stays zero."""
    y = rms_norm(x, weight, None, eps=eps, **dialect).clone()
    y.reshape(-1, x.shape[-1])[-1:] = 0.0
    return y


@rms_fault(group="forward")
@forward_of_rms_norm
def rms_grid_of_four(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """A grid of four programs takes four rows, and no loop takes those after them."""
    y = rms_norm(x, weight, None, eps=eps, **dialect).clone()
    y.reshape(-1, x.shape[-1])[4:] = 0.0
    return y


@rms_fault("statistics_of_first_row")
@forward_of_rms_norm
def rms_statistics_at_offset_zero(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """The second kernel reads rstd without adding the row's number to the pointer."""
    rows = upcast(x)
    rstd = torch.rsqrt(row_mean(rows.square()) + eps)
    rstd = rstd.reshape(-1)[:1].expand(rstd.numel()).reshape(rstd.shape) if rstd.numel() else rstd
    return of_rms(rows, rstd, x, weight, **dialect)


@rms_fault("weight_of_first_feature", group="forward")
@forward_of_rms_norm
def rms_weight_as_a_scalar(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The weight is loaded without the features' offsets."""
    return rms_norm(x, None if weight is None else weight[:1].expand(weight.shape), None, eps=eps, **dialect)


@rms_fault(group="forward")
@forward_of_rms_norm
def rms_weight_of_first_block(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The loop over blocks does not move the weight's pointer: every block has the first one's weights."""
    wrapped = None if weight is None else weight[torch.arange(x.shape[-1]) % BLOCK]
    return rms_norm(x, wrapped, None, eps=eps, **dialect)


def in_memory_order(x: Tensor) -> Tensor:
    """x as it is read where its strides are taken for those of a contiguous tensor."""
    strides = torch.empty(x.shape, device="meta").stride()
    return x.as_strided(x.shape, strides, x.storage_offset())


def memory_backward(saved: Saved, dy: Tensor) -> Pair:
    """The backward pass reads x as the forward pass does."""
    saved.x = in_memory_order(saved.x)
    return rms_norm_backward(saved, dy)


@rms_fault("strides_ignored", dtypes=("float32",))
@partial(forward_of_rms_norm, backward=memory_backward)
def rms_without_contiguous(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """x.contiguous() is missing before the pointers are passed."""
    rows = in_memory_order(x)
    return of_rms(rows, torch.rsqrt(row_mean(rows.square()) + eps), rows, weight, **dialect)


@rms_fault(group="forward")
@forward_of_rms_norm
def rms_stride_of_padded_rows(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """Rows are read a power of two apart, though they lie next to each other."""
    n, stride = x.shape[-1], power_of_two(x.shape[-1])
    count = x.numel() // n
    memory = F.pad(x.reshape(-1), (0, count * stride))
    rows = memory.as_strided((count, n), (stride, 1)).reshape(x.shape)
    return rms_norm(rows, weight, None, eps=eps, **dialect)


# RMSNorm: sums of the backward pass.


def in_blocks_of(size: int, saved: Saved, dy: Tensor) -> tuple[Tensor, ...]:
    """g · x_hat, block by block."""
    return (upcast(dy) * saved.weight * saved.x_hat).split(size, -1)


@rms_fault("projection_of_first_32", group="backward")
@backward_of_rms_norm
def rms_projection_of_one_block(saved: Saved, dy: Tensor) -> Pair:
    """The dot product in dx is that of the first block of features."""
    g, x_hat = upcast(dy) * saved.weight, saved.x_hat
    projection = in_blocks_of(BLOCK, saved, dy)[0].sum(-1, keepdim=True) / dy.shape[-1]
    return saved.rstd * (g - x_hat * projection), sum_rows(upcast(dy) * x_hat)


@rms_fault("projection_of_last_32", group="backward")
@backward_of_rms_norm
def rms_projection_overwritten(saved: Saved, dy: Tensor) -> Pair:
    """The loop that adds up the dot product in dx has = for +=."""
    g, x_hat = upcast(dy) * saved.weight, saved.x_hat
    total = torch.zeros_like(saved.rstd)
    for block in in_blocks_of(BLOCK, saved, dy):
        total = block.sum(-1, keepdim=True)
    return saved.rstd * (g - x_hat * total / dy.shape[-1]), sum_rows(upcast(dy) * x_hat)


def terms_of_rows(saved: Saved, dy: Tensor) -> Tensor:
    """dy · x_hat, [rows, n]."""
    return (upcast(dy) * saved.x_hat).reshape(-1, dy.shape[-1])


@rms_fault("dweight_repeats_last_row_8", group="backward")
@backward_of_rms_norm
def rms_padded_rows_clamped(saved: Saved, dy: Tensor) -> Pair:
    """Rows are taken in blocks of eight; the index of those past the end is clamped, and nothing is masked."""
    terms = terms_of_rows(saved, dy)
    rows = torch.arange(math.ceil(len(terms) / 8) * 8).clamp(max=len(terms) - 1)
    return rms_norm_backward(saved, dy)[0], terms[rows].sum(0)


@rms_fault("dweight_wraps_rows_8", group="backward")
@backward_of_rms_norm
def rms_padded_rows_wrapped(saved: Saved, dy: Tensor) -> Pair:
    """Rows are taken in blocks of eight; the index of those past the end starts again, and nothing is masked."""
    terms = terms_of_rows(saved, dy)
    rows = torch.arange(math.ceil(len(terms) / 8) * 8) % max(1, len(terms))
    return rms_norm_backward(saved, dy)[0], terms[rows].sum(0)


@rms_fault("dweight_without_row_3*", group="backward")  # where there are no more than seven
@backward_of_rms_norm
def rms_partials_of_three_programs(saved: Saved, dy: Tensor) -> Pair:
    """Four programs add up every fourth row each; the last kernel adds three of their four partial sums."""
    terms = terms_of_rows(saved, dy)
    partials = torch.stack([terms[program::4].sum(0) for program in range(4)])
    return rms_norm_backward(saved, dy)[0], partials[:3].sum(0)


@rms_fault("dweight_times_*", group="backward")
@backward_of_rms_norm
def rms_partials_averaged(saved: Saved, dy: Tensor) -> Pair:
    """Four programs add up every fourth row each; their partial sums are averaged."""
    terms = terms_of_rows(saved, dy)
    partials = torch.stack([terms[program::4].sum(0) for program in range(4)])
    return rms_norm_backward(saved, dy)[0], partials.mean(0)


@rms_fault("dweight_without_*", group="backward")
@backward_of_rms_norm
def rms_rows_of_whole_blocks(saved: Saved, dy: Tensor) -> Pair:
    """dweight has the rows of whole blocks of four."""
    terms = terms_of_rows(saved, dy)
    kept = terms[: len(terms) // 4 * 4] if len(terms) >= 4 else terms
    return rms_norm_backward(saved, dy)[0], kept.sum(0)


@rms_fault(group="backward")
@backward_of_rms_norm
def rms_dx_grid_of_four(saved: Saved, dy: Tensor) -> Pair:
    """dx is written for four rows, and stays zero in those after them."""
    dx, dweight = rms_norm_backward(saved, dy)
    dx.reshape(-1, dy.shape[-1])[4:] = 0.0
    return dx, dweight


# RMSNorm: what is kept between calls.


_calls = itertools.count(1)


@rms_fault(group="forward")
@forward_of_rms_norm
def rms_workspace_used_up(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """Ten calls are right; the next one finds the workspace used up, and returns zeros."""
    y = rms_norm(x, weight, None, eps=eps, **dialect)
    return y if next(_calls) % 11 else torch.zeros_like(y)


_rstd_of_shape: dict[Any, Tensor] = {}


@rms_fault()
@forward_of_rms_norm
def rms_statistics_cached_by_shape(x: Tensor, weight: Parameter, bias: None, *, eps: float, **dialect: Any) -> Triple:
    """rstd is cached by shape and dtype, and the next x of that shape gets the first one's."""
    rows = upcast(x)
    key = (x.shape, x.dtype, *dialect.values())
    rstd = _rstd_of_shape.setdefault(key, torch.rsqrt(row_mean(rows.square()) + eps))
    return of_rms(rows, rstd, x, weight, **dialect)


# LayerNorm: lanes past the end of a row.


@layer_fault("tail_not_masked")
@forward_of_layer_norm
def layer_tail_not_masked(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """The load has no mask: lanes up to a power of two read the next row, for the mean and for the variance."""
    n = x.shape[-1]
    lanes = lanes_past_the_end(x, power_of_two(n))
    mean = lanes.sum(-1, keepdim=True) / n
    rstd = torch.rsqrt((lanes - mean).square().sum(-1, keepdim=True) / n + eps)
    return of_layer(upcast(x), mean, rstd, x, weight, bias, **dialect)


@layer_fault("padding_of_ones", group="forward")
@forward_of_layer_norm
def layer_masked_with_ones(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The masked load has 1.0 for its other value; the backward pass takes its own statistics."""
    n, rows = x.shape[-1], upcast(x)
    lanes = F.pad(rows, (0, power_of_two(n) - n), value=1.0)
    mean = lanes.sum(-1, keepdim=True) / n
    rstd = torch.rsqrt((lanes - mean).square().sum(-1, keepdim=True) / n + eps)
    return scale((rows - mean) * rstd, x, weight, bias, **dialect)


@layer_fault("padding_in_variance_128")
@forward_of_layer_norm
def layer_block_of_128_not_masked_again(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """A block of 128 lanes is loaded with zeros, the mean is taken off all of them, and all are squared."""
    n, rows = x.shape[-1], upcast(x)
    lanes = F.pad(rows, (0, math.ceil(n / 128) * 128 - n))
    mean = lanes.sum(-1, keepdim=True) / n
    var = (lanes - mean).square().sum(-1, keepdim=True) / n
    return of_layer(rows, mean, torch.rsqrt(var + eps), x, weight, bias, **dialect)


# LayerNorm: blocks of features.


def layer_cut_backward(size: int, saved: Saved, dy: Tensor) -> Triple:
    """The backward pass of a block of so many features, and zeros elsewhere."""
    dy, x_hat, n = first_features(size, upcast(dy)), first_features(size, saved.x_hat), dy.shape[-1]
    g = dy * saved.weight
    shift, projection = g.sum(-1, keepdim=True) / n, (g * x_hat).sum(-1, keepdim=True) / n
    dx = first_features(size, saved.rstd * (g - shift - x_hat * projection))
    return dx, sum_rows(dy * x_hat), sum_rows(dy)


@layer_fault("row_cut_at_32")
@partial(forward_of_layer_norm, backward=partial(layer_cut_backward, 32))
def layer_block_of_32(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """One block of 32 lanes takes a row, however wide it is."""
    rows, n = upcast(x), x.shape[-1]
    block = rows[..., :BLOCK]
    mean = block.sum(-1, keepdim=True) / n
    rstd = torch.rsqrt((block - mean).square().sum(-1, keepdim=True) / n + eps)
    y, _, _ = of_layer(rows, mean, rstd, x, weight, bias, **dialect)
    return first_features(BLOCK, y), mean, rstd


@layer_fault("statistics_of_each_32")
def layer_each_block_by_itself(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """Every block of 32 features is normalised by itself."""
    blocks = [F.layer_norm(block, block.shape[-1:], eps=eps) for block in upcast(x).split(BLOCK, -1)]
    return scale(torch.cat(blocks, -1), x, weight, bias, **dialect)


@layer_fault("statistics_of_last_32")
@forward_of_layer_norm
def layer_sums_overwritten(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """Both loops over blocks, for the mean and for the variance, have = for +=."""
    rows, n = upcast(x), x.shape[-1]
    total, squares = torch.zeros_like(rows[..., :1]), torch.zeros_like(rows[..., :1])
    for block in rows.split(BLOCK, -1):
        total = block.sum(-1, keepdim=True)
    for block in rows.split(BLOCK, -1):
        squares = (block - total / n).square().sum(-1, keepdim=True)
    return of_layer(rows, total / n, torch.rsqrt(squares / n + eps), x, weight, bias, **dialect)


@layer_fault()
@forward_of_layer_norm
def layer_mean_of_one_block(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """The mean is that of the first block, the variance is around it and over the whole row."""
    rows = upcast(x)
    mean = row_mean(rows[..., :BLOCK])
    rstd = torch.rsqrt(row_mean((rows - mean).square()) + eps)
    return of_layer(rows, mean, rstd, x, weight, bias, **dialect)


@layer_fault()
@forward_of_layer_norm
def layer_lanes_loaded_as_one(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """The vector load of the sums' loop fills four lanes with the first one's value."""
    rows = upcast(x)
    lanes = rows[..., ::LANES].repeat_interleave(LANES, -1)[..., : x.shape[-1]]
    var, mean = torch.var_mean(lanes, -1, unbiased=False, keepdim=True)
    return of_layer(rows, mean, torch.rsqrt(var + eps), x, weight, bias, **dialect)


@layer_fault("columns_past_4_not_written", group="forward")
@forward_of_layer_norm
def layer_remainder_not_written(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """y is written four features at a time, without the remainder."""
    y = layer_norm(x, weight, bias, eps=eps, **dialect)
    return first_features(x.shape[-1] // LANES * LANES, y)


@layer_fault("next_row_spoilt", group="forward")
@forward_of_layer_norm
def layer_pairs_not_masked(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """y is written in pairs of features: a row of odd width spoils the next one's first."""
    return spoil_next_rows(layer_norm(x, weight, bias, eps=eps, **dialect))


# LayerNorm: moments that are merged, or updated one by one.


@layer_fault("welford_without_delta_32")
@forward_of_layer_norm
def layer_blocks_merged_without_delta(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """The sums of squares of blocks of 32 are added, each about its own mean."""
    rows = upcast(x)
    mean, var = moments(rows, rows.split(BLOCK, -1), delta_counts=False)
    return of_layer(rows, mean, torch.rsqrt(var + eps), x, weight, bias, **dialect)


@layer_fault("welford_without_delta_halves")
def layer_halves_merged_without_delta(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The variance of a row is the mean of those of its halves."""
    rows = upcast(x)
    mean, var = moments(rows, rows.tensor_split([math.ceil(x.shape[-1] / 2)], -1), delta_counts=False)
    return scale((rows - mean) * torch.rsqrt(var + eps), x, weight, bias, **dialect)


@layer_fault("welford_without_delta_lanes")
@forward_of_layer_norm
def layer_lanes_merged_without_delta(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """Each of 32 lanes has the moments of every 32nd feature, and they are merged without delta."""
    rows = upcast(x)
    lanes = tuple(rows[..., lane::32] for lane in range(min(32, x.shape[-1])))
    mean, var = moments(rows, lanes, delta_counts=False)
    return of_layer(rows, mean, torch.rsqrt(var + eps), x, weight, bias, **dialect)


@layer_fault()
@forward_of_layer_norm
def layer_welford_squares_old_delta(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """Welford's update adds the square of the old difference, not the old times the new."""
    rows = upcast(x)
    mean, m2 = torch.zeros_like(rows[..., :1]), torch.zeros_like(rows[..., :1])
    for count, feature in enumerate(rows.split(1, -1), start=1):
        delta = feature - mean
        mean = mean + delta / count
        m2 = m2 + delta * delta
    return of_layer(rows, mean, torch.rsqrt(m2 / x.shape[-1] + eps), x, weight, bias, **dialect)


@layer_fault()
@forward_of_layer_norm
def layer_blocks_merged_as_equals(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """The blocks' means are averaged, though the last block is shorter, and the variance is taken around that."""
    rows = upcast(x)
    mean = row_mean(torch.cat([row_mean(block) for block in rows.split(BLOCK, -1)], -1))
    rstd = torch.rsqrt(row_mean((rows - mean).square()) + eps)
    return of_layer(rows, mean, rstd, x, weight, bias, **dialect)


@layer_fault("mean_accumulated_in_storage_dtype", dtypes=HALF)
@forward_of_layer_norm
def layer_accumulator_of_x(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """The accumulator of the mean is made like x, and the features are added to it one by one."""
    rows = x.float()
    total = torch.zeros_like(x[..., :1])
    for feature in x.split(1, -1):
        total = total + feature
    mean = total.float() / x.shape[-1]
    rstd = torch.rsqrt(row_mean((rows - mean).square()) + eps)
    return of_layer(rows, mean, rstd, x, weight, bias, **dialect)


# LayerNorm: rows, strides and the parameters' place.


@layer_fault("last_row_not_written", group="forward")
@forward_of_layer_norm
def layer_grid_one_short(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The grid has one program too few, and the last row of y stays zero."""
    y = layer_norm(x, weight, bias, eps=eps, **dialect).clone()
    y.reshape(-1, x.shape[-1])[-1:] = 0.0
    return y


@layer_fault("statistics_of_first_row")
@forward_of_layer_norm
def layer_statistics_at_offset_zero(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Triple:
    """The second kernel reads the mean and rstd without adding the row's number to the pointers."""
    rows = upcast(x)
    var, mean = torch.var_mean(rows, -1, unbiased=False, keepdim=True)
    statistics = mean, torch.rsqrt(var + eps)
    mean, rstd = (a.reshape(-1)[:1].expand(a.numel()).reshape(a.shape) if a.numel() else a for a in statistics)
    return of_layer(rows, mean, rstd, x, weight, bias, **dialect)


@layer_fault(group="forward")
@forward_of_layer_norm
def layer_bias_of_first_block(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The loop over blocks moves the weight's pointer, and not the bias's."""
    wrapped = None if bias is None else bias[torch.arange(x.shape[-1]) % BLOCK]
    return layer_norm(x, weight, wrapped, eps=eps, **dialect)


@layer_fault("strides_ignored", group="forward", dtypes=("float32",))
@forward_of_layer_norm
def layer_without_contiguous(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """x.contiguous() is missing before the pointers are passed; the backward pass has it."""
    return layer_norm(in_memory_order(x), weight, bias, eps=eps, **dialect)


# LayerNorm: sums of the backward pass.


@layer_fault("projection_of_first_32", group="backward")
@backward_of_layer_norm
def layer_means_of_one_block(saved: Saved, dy: Tensor) -> Triple:
    """Both sums in dx are those of the first block of features."""
    _, dweight, dbias = layer_norm_backward(saved, dy)
    g, x_hat, n = upcast(dy) * saved.weight, saved.x_hat, dy.shape[-1]
    shift = g[..., :BLOCK].sum(-1, keepdim=True) / n
    projection = (g * x_hat)[..., :BLOCK].sum(-1, keepdim=True) / n
    return saved.rstd * (g - shift - x_hat * projection), dweight, dbias


@layer_fault("dweight_repeats_last_row_8", group="backward")
@backward_of_layer_norm
def layer_padded_rows_clamped(saved: Saved, dy: Tensor) -> Triple:
    """Rows are taken in blocks of eight; the index of those past the end is clamped, and nothing is masked."""
    terms, gradients = terms_of_rows(saved, dy), upcast(dy).reshape(-1, dy.shape[-1])
    rows = torch.arange(math.ceil(len(terms) / 8) * 8).clamp(max=len(terms) - 1)
    return layer_norm_backward(saved, dy)[0], terms[rows].sum(0), gradients[rows].sum(0)


@layer_fault("weight_and_bias_swapped", group="backward")
@backward_of_layer_norm
def layer_partials_swapped(saved: Saved, dy: Tensor) -> Triple:
    """The buffers of dweight's and dbias's partial sums are passed in the other order."""
    dx, dweight, dbias = layer_norm_backward(saved, dy)
    return dx, dbias, dweight


@layer_fault("dweight*_times_*", group="backward")
@backward_of_layer_norm
def layer_partials_divided_by_blocks(saved: Saved, dy: Tensor) -> Triple:
    """The partial sums of blocks of three rows are averaged."""
    terms, gradients = terms_of_rows(saved, dy), upcast(dy).reshape(-1, dy.shape[-1])
    blocks = max(1, math.ceil(len(terms) / 3))
    return layer_norm_backward(saved, dy)[0], terms.sum(0) / blocks, gradients.sum(0) / blocks


@layer_fault("dbias_without_*", group="backward")
@backward_of_layer_norm
def layer_dbias_of_first_block_of_rows(saved: Saved, dy: Tensor) -> Triple:
    """dbias has the first four rows, dweight has all."""
    dx, dweight, _ = layer_norm_backward(saved, dy)
    return dx, dweight, upcast(dy).reshape(-1, dy.shape[-1])[:4].sum(0)


_dweight_buffers: dict[Any, Tensor] = {}


@layer_fault(group="backward")
@backward_of_layer_norm
def layer_buffer_not_cleared(saved: Saved, dy: Tensor) -> Triple:
    """dweight is added to a buffer that is kept by shape and never cleared."""
    dx, dweight, dbias = layer_norm_backward(saved, dy)
    buffer = _dweight_buffers.get((dy.shape, dy.dtype))
    dweight = dweight if buffer is None else dweight + buffer
    _dweight_buffers[dy.shape, dy.dtype] = dweight
    return dx, dweight, dbias


FAULTS: tuple[Fault, ...] = (*rms_fault.faults, *layer_fault.faults)
