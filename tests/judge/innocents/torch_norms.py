"""Norms as careful people write them in PyTorch: statistics in float32, and x cast as often as the line at hand needs it.

Autograd returns a gradient through every cast, rounds it to x's dtype, and adds it to those before.
"""

import torch
from torch import Tensor


def layer_norm_three_casts(x, weight, bias, *, eps, weight_offset, order):
    """One cast for the mean, one for the variance, one for the numerator."""
    mean = x.float().mean(-1, keepdim=True)
    var = (x.float() - mean).pow(2).mean(-1, keepdim=True)
    x_hat = (x.float() - mean) * torch.rsqrt(var + eps)
    return scaled(x_hat, x, weight, bias, weight_offset, order)


def layer_norm_centred_once(x, weight, bias, *, eps, weight_offset, order):
    """The deviations serve numerator and variance; the mean has a cast of its own."""
    centred = x.float() - x.float().mean(-1, keepdim=True)
    x_hat = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    return scaled(x_hat, x, weight, bias, weight_offset, order)


def layer_norm_mean_of_x(x, weight, bias, *, eps, weight_offset, order):
    """x is read in its storage dtype: the mean accumulates in float32, the subtraction promotes."""
    mean = x.mean(-1, keepdim=True, dtype=torch.float32)
    var = (x - mean).square().mean(-1, keepdim=True)
    x_hat = (x - mean) / torch.sqrt(var + eps)
    return scaled(x_hat, x, weight, bias, weight_offset, order)


def layer_norm_var_mean(x, weight, bias, *, eps, weight_offset, order):
    """Both statistics from one cast."""
    var, mean = torch.var_mean(x.float(), -1, keepdim=True, correction=0)
    x_hat = (x.float() - mean) * torch.rsqrt(var + eps)
    return scaled(x_hat, x, weight, bias, weight_offset, order)


def layer_norm_variance_first(x, weight, bias, *, eps, weight_offset, order):
    """The variance before the numerator, whose mean is taken anew."""
    var = x.float().var(-1, keepdim=True, unbiased=False)
    x_hat = (x.float() - x.float().mean(-1, keepdim=True)) * torch.rsqrt(var + eps)
    return scaled(x_hat, x, weight, bias, weight_offset, order)


def layer_norm_variance_last(x, weight, bias, *, eps, weight_offset, order):
    """The numerator before the variance."""
    centred = x.float() - x.float().mean(-1, keepdim=True)
    x_hat = centred * torch.rsqrt(x.float().var(-1, keepdim=True, unbiased=False) + eps)
    return scaled(x_hat, x, weight, bias, weight_offset, order)


def layer_norm_variance_apart(x, weight, bias, *, eps, weight_offset, order):
    """The numerator and its mean from one cast, the variance from another."""
    x32 = x.float()
    centred = x32 - x32.mean(-1, keepdim=True)
    x_hat = centred * torch.rsqrt(x.float().var(-1, keepdim=True, unbiased=False) + eps)
    return scaled(x_hat, x, weight, bias, weight_offset, order)


def layer_norm_square_as_product(x, weight, bias, *, eps, weight_offset, order):
    """The square is a product of two casts, so that either has half of its gradient."""
    mean = x.float().mean(-1, keepdim=True)
    var = ((x.float() - mean) * (x.float() - mean)).mean(-1, keepdim=True)
    x_hat = (x.float() - mean) * torch.rsqrt(var + eps)
    return scaled(x_hat, x, weight, bias, weight_offset, order)


def layer_norm_square_as_product_first(x, weight, bias, *, eps, weight_offset, order):
    """The same, before a numerator with a mean of its own."""
    mean = x.float().mean(-1, keepdim=True)
    var = ((x.float() - mean) * (x.float() - mean)).mean(-1, keepdim=True)
    x_hat = (x.float() - x.float().mean(-1, keepdim=True)) * torch.rsqrt(var + eps)
    return scaled(x_hat, x, weight, bias, weight_offset, order)


def rms_norm_two_casts(x, weight, _, *, eps, weight_offset, order):
    """One cast for the mean square, one for the numerator."""
    mean_square = x.float().pow(2).mean(-1, keepdim=True)
    return scaled(x.float() * torch.rsqrt(mean_square + eps), x, weight, None, weight_offset, order)


def rms_norm_promoted(x, weight, _, *, eps, weight_offset, order):
    """x is read in its storage dtype where rstd, a float32 tensor, promotes it."""
    mean_square = x.float().square().mean(-1, keepdim=True)
    return scaled(x * torch.rsqrt(mean_square + eps), x, weight, None, weight_offset, order)


def rms_norm_square_as_product(x, weight, _, *, eps, weight_offset, order):
    """The square is a product of two casts."""
    mean_square = (x.float() * x.float()).mean(-1, keepdim=True)
    return scaled(x.float() / torch.sqrt(mean_square + eps), x, weight, None, weight_offset, order)


def batch_norm_three_casts(x, weight, bias, *, eps, running_mean, running_var, training, momentum=0.0, unbiased=False):
    """BatchNorm with one cast for the mean, one for the variance, one for the numerator."""
    axes = tuple(range(x.ndim - 1))
    if not training:
        return affine((x.float() - running_mean) * torch.rsqrt(running_var + eps), x, weight, bias)
    mean = x.float().mean(axes)
    var = (x.float() - mean).pow(2).mean(axes)
    y = affine((x.float() - mean) * torch.rsqrt(var + eps), x, weight, bias)
    rows = x.numel() // x.shape[-1]
    kept = var * (rows / (rows - 1)) if unbiased else var
    return y, (1 - momentum) * running_mean + momentum * mean, (1 - momentum) * running_var + momentum * kept


def scaled(x_hat: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, weight_offset: float, order: str) -> Tensor:
    """Scale and shift x_hat in the dialect that is asked for."""
    if order != "cast_then_scale":
        return affine(x_hat, x, None if weight is None else weight.float() + weight_offset, bias)
    y = x_hat.to(x.dtype)
    if weight is not None:
        y = y * (weight.float() + weight_offset if weight_offset else weight)
    if bias is not None:
        y = y + bias
    return y if weight is None else y.to(torch.promote_types(x.dtype, weight.dtype))


def affine(x_hat: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift in float32, then cast once."""
    y = x_hat if weight is None else x_hat * weight
    return (y if bias is None else y + bias).to(x.dtype)
