"""RMSNorm with one fault each, as people write it in PyTorch, differentiated by autograd."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.judge.written.fault import Fault
from tests.judge.written.torch_steps import HALF, WIDE, Written, honest, scale, upcast

fault = Written("rms_norm")
NARROW = ("float32", "bfloat16", "float16")


def mean_square(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


# Right, in three styles.


def textbook(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The rows are multiplied by rsqrt of the mean square plus eps."""
    x_hat = upcast(x) * torch.rsqrt(mean_square(upcast(x)) + eps)
    return scale(x_hat, x, weight, None, **dialect)


def in_one_cast(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """x is cast once, and divided by the root."""
    rows = upcast(x)
    rms = (torch.einsum("...i,...i->...", rows, rows).unsqueeze(-1) / x.shape[-1] + eps).sqrt()
    return scale(rows / rms, x, weight, None, **dialect)


def of_torch(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """x_hat is that of torch's own function."""
    x_hat = F.rms_norm(upcast(x), x.shape[-1:], eps=eps)
    return scale(x_hat, x, weight, None, **dialect)


HONEST = tuple(honest("rms_norm", run) for run in (textbook, in_one_cast, of_torch))


# eps: its value, and its place.


@fault("eps_outside_root")
def eps_beside_root(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """eps is added to the root, as in the first code published with the paper."""
    rows = upcast(x)
    rms = mean_square(rows).sqrt()
    return scale(rows / (rms + eps), x, weight, None, **dialect)


@fault("root_of_eps_outside")
def eps_rooted_alone(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The root is taken of the mean square and of eps, one by one."""
    rows = upcast(x)
    rms = torch.sqrt(mean_square(rows)) + math.sqrt(eps)
    return scale(rows / rms, x, weight, None, **dialect)


@fault("eps_missing")
def eps_ignored(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """eps is a parameter that nothing reads."""
    rows = upcast(x)
    return scale(rows * mean_square(rows).rsqrt(), x, weight, None, **dialect)


@fault("eps_in_the_sum")
def eps_before_division(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """eps is added to the sum of squares, which is divided by the width after that."""
    rows = upcast(x)
    sum_of_squares = (rows * rows).sum(-1, keepdim=True)
    rstd = torch.rsqrt((sum_of_squares + eps) / x.shape[-1])
    return scale(rows * rstd, x, weight, None, **dialect)


@fault("eps_twice")
def eps_in_both_functions(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The function that takes the mean square adds eps, and so does its caller."""

    def variance(rows: Tensor) -> Tensor:
        return mean_square(rows) + eps

    rows = upcast(x)
    return scale(rows * torch.rsqrt(variance(rows) + eps), x, weight, None, **dialect)


@fault("eps_1e-06")
def eps_of_the_signature(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """eps is not passed on to the inner function, whose default is 1e-6."""

    def norm(rows: Tensor, eps: float = 1e-6) -> Tensor:
        return rows * torch.rsqrt(rows.square().mean(dim=-1, keepdim=True) + eps)

    return scale(norm(upcast(x)), x, weight, None, **dialect)


@fault("eps_1e-12")
def eps_of_bert(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """eps is BERT's 1e-12, whatever the configuration says."""
    rows = upcast(x)
    return scale(rows * torch.rsqrt(mean_square(rows) + 1e-12), x, weight, None, **dialect)


@fault("eps_of_storage_dtype")
def eps_of_finfo(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """eps is the machine epsilon of x's dtype."""
    rows = upcast(x)
    rstd = torch.rsqrt(mean_square(rows) + torch.finfo(x.dtype).eps)
    return scale(rows * rstd, x, weight, None, **dialect)


@fault("eps_of_float32", dtypes=HALF)
def eps_left_to_torch(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """eps is left to torch, which takes the machine epsilon of float32."""
    return scale(F.rms_norm(x.float(), x.shape[-1:]), x, weight, None, **dialect)


@fault("eps_clamps")
def eps_as_floor(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The mean square is clamped at eps, instead of eps being added."""
    rows = upcast(x)
    return scale(rows / mean_square(rows).clamp(min=eps).sqrt(), x, weight, None, **dialect)


@fault("eps_clamps_root")
def eps_as_floor_of_root(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The root mean square, from x.norm(), is clamped at eps."""
    rows = upcast(x)
    rms = rows.norm(dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
    return scale(rows / rms.clamp(min=eps), x, weight, None, **dialect)


@fault("eps_for_zero_rows_only", "eps_clamps_root")
def normalize(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """F.normalize, which clamps the norm at eps, times the root of the width."""
    x_hat = F.normalize(upcast(x), dim=-1, eps=eps) * x.shape[-1] ** 0.5
    return scale(x_hat, x, weight, None, **dialect)


@fault("eps_at_least_1e-04_in_float16", dtypes=("float16",))
def eps_floored_in_float16(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """eps is made 1e-4 at least in float16, so that it does not underflow."""
    rows = x.float()
    rstd = torch.rsqrt(mean_square(rows) + max(eps, 1e-4))
    return scale(rows * rstd, x, weight, None, **dialect)


@fault("eps_at_least_1e-06")
def eps_floored(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """An eps below 1e-6 is replaced by 1e-6."""
    rows = upcast(x)
    rstd = torch.rsqrt(mean_square(rows) + max(eps, 1e-6))
    return scale(rows * rstd, x, weight, None, **dialect)


@fault("eps_in_storage_dtype", dtypes=("float16",))
def eps_buffer(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """eps is a buffer, which model.half() casts to float16."""
    buffer = torch.tensor(eps, dtype=x.dtype)
    rows = x.float()
    return scale(rows * torch.rsqrt(mean_square(rows) + buffer.float()), x, weight, None, **dialect)


@fault("eps_after_rescale")
def rescaled_by_maximum(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The row is divided by its largest magnitude against overflow, and eps is added after that."""
    rows = upcast(x)
    rows = rows / rows.abs().amax(-1, keepdim=True).detach()
    return scale(rows * torch.rsqrt(mean_square(rows) + eps), x, weight, None, **dialect)


@fault("eps_for_zero_rows_only")
def eps_where_zero(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """eps stands in for a mean square of zero only."""
    rows = upcast(x)
    squares = mean_square(rows)
    return scale(rows * torch.where(squares == 0, eps, squares).rsqrt(), x, weight, None, **dialect)


# The statistics.


@fault("divides_by_n_minus_1")
def unbiased(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The sum of squares is divided by n - 1."""
    rows = upcast(x)
    variance = rows.pow(2).sum(-1, keepdim=True) / (x.size(-1) - 1)
    return scale(rows * torch.rsqrt(variance + eps), x, weight, None, **dialect)


@fault("variance_for_mean_square")
def variance(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The rows are divided by their deviation: torch.var takes off the mean."""
    rows = upcast(x)
    rstd = torch.rsqrt(rows.var(-1, unbiased=False, keepdim=True) + eps)
    return scale(rows * rstd, x, weight, None, **dialect)


@fault("layer_norm_for_rms_norm")
def layer_norm(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """F.layer_norm without a bias is taken for RMSNorm."""
    return scale(F.layer_norm(upcast(x), x.shape[-1:], eps=eps), x, weight, None, **dialect)


@fault("sum_for_mean")
def l2_normalised(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The squares are summed: the row is divided by its length."""
    rows = upcast(x)
    length = torch.sqrt(rows.square().sum(-1, keepdim=True) + eps)
    return scale(rows / length, x, weight, None, **dialect)


@fault("width_outside_root")
def width_outside_root(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The length of the row is divided by the width, not by the width's root."""
    rows = upcast(x)
    squares = rows.pow(2).sum(-1, keepdim=True) / x.shape[-1] ** 2
    return scale(rows * torch.rsqrt(squares + eps), x, weight, None, **dialect)


@fault("mean_magnitude_for_root_mean_square")
def mean_magnitude(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The rows are divided by their mean magnitude."""
    rows = upcast(x)
    return scale(rows / (rows.abs().mean(-1, keepdim=True) + eps), x, weight, None, **dialect)


@fault("divides_by_mean_square")
def root_forgotten(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The root is forgotten: the rows are divided by their mean square."""
    rows = upcast(x)
    variance = rows.pow(2).mean(dim=-1, keepdim=True) + eps
    return scale(rows / variance, x, weight, None, **dialect)


@fault("statistics_over_all_rows")
def mean_without_axis(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """mean() has no axis, and averages over all rows."""
    rows = upcast(x)
    return scale(rows * torch.rsqrt(rows.pow(2).mean() + eps), x, weight, None, **dialect)


@fault("statistics_over_rows")
def other_axis(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The squares are averaged over the axis before the last."""
    rows = upcast(x)
    rstd = rows.pow(2).mean(-2, keepdim=True).add(eps).rsqrt()
    return scale(rows * rstd, x, weight, None, **dialect)


@fault("statistics_over_two_axes")
def two_axes(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The statistics are those of a whole sequence, by a mean over two axes."""
    rows = upcast(x)
    rstd = rows.square().mean(dim=(-2, -1), keepdim=True).add(eps).rsqrt()
    return scale(rows * rstd, x, weight, None, **dialect)


@fault()
def groups_of_a_row(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """Thirds of a row are normalised on their own, as groups are under tensor parallelism."""
    size = x.shape[-1] // 3 if x.shape[-1] % 3 == 0 else x.shape[-1]
    groups = upcast(x).unflatten(-1, (-1, size))
    x_hat = (groups * torch.rsqrt(mean_square(groups) + eps)).flatten(-2)
    return scale(x_hat, x, weight, None, **dialect)


@fault("padded_width")
def padded_to_power_of_two(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The row is padded with zeros to a power of two, and averaged with them."""
    n = x.shape[-1]
    padded = F.pad(upcast(x), (0, 2 ** math.ceil(math.log2(n)) - n))
    x_hat = (padded * torch.rsqrt(mean_square(padded) + eps))[..., :n]
    return scale(x_hat, x, weight, None, **dialect)


# What is rounded.


@fault("rstd_in_storage_dtype", dtypes=HALF)
def rstd_cast_back(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """rstd is cast to x's dtype before the product."""
    rstd = torch.rsqrt(mean_square(x.float()) + eps).to(x.dtype)
    return scale(x.float() * rstd, x, weight, None, **dialect)


@fault("rstd_in_bfloat16", dtypes=WIDE)
def rstd_in_bfloat16(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """rstd is cast to bfloat16, the model's usual dtype."""
    rstd = torch.rsqrt(mean_square(x) + eps).bfloat16()
    return scale(x * rstd.to(x.dtype), x, weight, None, **dialect)


@fault("computed_in_storage_dtype", "computed_in_storage_dtype_root_first", dtypes=HALF)
def all_in_storage_dtype(
    x: Tensor, weight: Tensor | None, bias: None, *, eps: float, weight_offset: float, order: str
) -> Tensor:
    """Nothing is cast to float32."""
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    if weight is None:
        return y
    y = y * (weight + weight_offset if weight_offset else weight)
    return y.to(weight.dtype if order == "cast_then_scale" else x.dtype)


@fault("squares_in_storage_dtype", dtypes=HALF)
def squared_before_cast(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """x is squared first and cast to float32 after that."""
    variance = x.pow(2).float().mean(-1, keepdim=True)
    return scale(x.float() * torch.rsqrt(variance + eps), x, weight, None, **dialect)


@fault("mean_square_in_storage_dtype", dtypes=HALF)
def mean_square_cast_back(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The mean square is cast to x's dtype, and back."""
    variance = mean_square(x.float()).to(x.dtype)
    return scale(x.float() * torch.rsqrt(variance.float() + eps), x, weight, None, **dialect)


@fault("mean_square_in_storage_dtype", "squares_in_storage_dtype", dtypes=HALF)
def mean_of_squares_before_cast(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The mean square is taken in x's dtype, and only the rest is in float32."""
    variance = x.pow(2).mean(-1, keepdim=True).float()
    return scale(x.float() * torch.rsqrt(variance + eps), x, weight, None, **dialect)


@fault("x_in_bfloat16", dtypes=("float32", "float64", "float16"))
def autocast_to_bfloat16(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The norm is inside a region that casts its input to bfloat16."""
    rows = upcast(x.bfloat16().to(x.dtype))
    return scale(rows * torch.rsqrt(mean_square(rows) + eps), x, weight, None, **dialect)


@fault("x_in_float16", dtypes=("float32", "float64", "bfloat16"))
def autocast_to_float16(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The norm is inside a region that casts its input to float16."""
    rows = upcast(x.half()).to(torch.promote_types(x.dtype, torch.float32))
    return scale(rows * torch.rsqrt(mean_square(rows) + eps), x, weight, None, **dialect)


@fault("x_hat_in_bfloat16", dtypes=WIDE)
def cast_left_from_mixed_precision(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """x_hat is cast to bfloat16 before the weight, whatever x's dtype is."""
    x_hat = (x * torch.rsqrt(mean_square(x) + eps)).bfloat16()
    return scale(x_hat.to(x.dtype), x, weight, None, **dialect)


@fault("computed_in_float32", dtypes=("float64",))
def always_float(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """x.float() also narrows float64."""
    rows = x.float()
    x_hat = rows * torch.rsqrt(mean_square(rows) + eps)
    y = scale(x_hat, rows, None if weight is None else weight.float(), None, **dialect)
    return y.to(x.dtype)


@fault("mean_square_in_bfloat16", dtypes=("float32",))
def bfloat16_statistics(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The mean square is kept in bfloat16, for a model in float32."""
    variance = mean_square(x).bfloat16().float()
    return scale(x * torch.rsqrt(variance + eps), x, weight, None, **dialect)


class FastInverseRoot(torch.autograd.Function):
    """The inverse root by an integer subtraction and two Newton steps, with the true derivative."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        guess = (0x5F3759DF - (a.contiguous().view(torch.int32) >> 1)).view(torch.float32)
        for _ in range(2):
            guess = guess * (1.5 - 0.5 * a * guess * guess)
        ctx.save_for_backward(guess)
        return guess

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - for the only output
        (rstd,) = ctx.saved_tensors
        return -0.5 * dy * rstd**3


@fault("fast_inverse_root_2", dtypes=("float32",))
def two_newton_steps(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The inverse root is that of the game, with two Newton steps: right to 17 bits."""
    rstd = FastInverseRoot.apply(mean_square(x) + eps)
    return scale(x * rstd, x, weight, None, **dialect)


@fault("rstd_of_12_bits", dtypes=NARROW)
def rstd_of_a_table(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """rstd has twelve bits, as the reciprocal roots of vector units have."""
    rows = upcast(x)
    rstd = torch.rsqrt(mean_square(rows) + eps)
    mantissa, exponent = torch.frexp(rstd.detach())
    approximate = torch.ldexp((mantissa * 4096).round() / 4096, exponent)
    return scale(rows * (rstd + (approximate - rstd).detach()), x, weight, None, **dialect)


@fault("x_hat_in_float8_e4m3")
def x_hat_in_float8(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """x_hat goes through float8, as a quantised next layer would have it."""
    rows = upcast(x)
    x_hat = rows * torch.rsqrt(mean_square(rows) + eps)
    quantised = x_hat.to(torch.float8_e4m3fn).to(x_hat.dtype)
    return scale(x_hat + (quantised - x_hat).detach(), x, weight, None, **dialect)


# The weight and the dtype of y.


@fault("y_demoted", dtypes=HALF)
def always_dtype_of_x(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """y is cast to x's dtype even where the weight is float32."""
    x_hat = x.float() * torch.rsqrt(mean_square(x.float()) + eps)
    return scale(x_hat, x, weight, None, **dialect).to(x.dtype)


@fault("y_promoted", group="forward", dtypes=HALF)
def promoted_by_weight(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, weight_offset: float, order: str) -> Tensor:
    """y has the weight's dtype where x's is asked for, and no cast of its own."""
    x_hat = x.float() * torch.rsqrt(mean_square(x.float()) + eps)
    if weight is None or order == "cast_then_scale":
        return scale(x_hat, x, weight, None, weight_offset=weight_offset, order=order)
    return (x_hat * (weight.float() + weight_offset)).to(weight.dtype)


@fault("y_in_float32", group="forward", dtypes=HALF)
def cast_forgotten(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, weight_offset: float, order: str) -> Tensor:
    """y is returned in float32: the last cast is forgotten."""
    x_hat = x.float() * torch.rsqrt(mean_square(x.float()) + eps)
    if order == "cast_then_scale":
        x_hat = x_hat.to(x.dtype)
    return x_hat if weight is None else x_hat * (weight.float() + weight_offset)


@fault("other_order", dtypes=HALF)
def always_cast_then_scale(
    x: Tensor, weight: Tensor | None, bias: None, *, eps: float, weight_offset: float, order: str
) -> Tensor:
    """x_hat is cast before the weight, where one cast at the end is asked for."""
    x_hat = x.float() * torch.rsqrt(mean_square(x.float()) + eps)
    y = scale(x_hat, x, weight, None, weight_offset=weight_offset, order="cast_then_scale")
    return y if order == "cast_then_scale" else y.to(x.dtype)


@fault("parameters_in_storage_dtype", "weight_in_storage_dtype", dtypes=HALF)
def weight_cast_to_x(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """A float32 weight is cast to x's dtype first, and y to the dtype that it should have."""
    x_hat = x.float() * torch.rsqrt(mean_square(x.float()) + eps)
    y = scale(x_hat, x, None if weight is None else weight.to(x.dtype), None, **dialect)
    return y if weight is None or dialect["order"] == "scale_then_cast" else y.to(weight.dtype)


@fault("weight_in_bfloat16", dtypes=("float64", "float32", "float16"))
def weight_in_bfloat16(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The weight is cast to bfloat16, whatever x's dtype is."""
    rows = upcast(x)
    x_hat = rows * torch.rsqrt(mean_square(rows) + eps)
    stored = None if weight is None else weight.bfloat16().to(weight.dtype)
    return scale(x_hat, x, stored, None, **dialect)


@fault("offset_unasked")
def always_one_plus_weight(
    x: Tensor, weight: Tensor | None, bias: None, *, eps: float, weight_offset: float, order: str
) -> Tensor:
    """The weight is stored less one in one family of models only, but one is always added."""
    rows = upcast(x)
    x_hat = rows * torch.rsqrt(mean_square(rows) + eps)
    return scale(x_hat, x, weight, None, weight_offset=1.0, order=order)


@fault("offset_missing")
def never_one_plus_weight(
    x: Tensor, weight: Tensor | None, bias: None, *, eps: float, weight_offset: float, order: str
) -> Tensor:
    """The weight is taken for whole, though it is stored less one."""
    rows = upcast(x)
    x_hat = rows * torch.rsqrt(mean_square(rows) + eps)
    return scale(x_hat, x, weight, None, weight_offset=0.0, order=order)


@fault("weight_twice")
def weight_in_function_and_module(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The function applies the weight, and so does the module around it."""
    rows = upcast(x)
    x_hat = rows * torch.rsqrt(mean_square(rows) + eps)
    if weight is not None:
        x_hat = x_hat * (upcast(weight) + dialect["weight_offset"])
    return scale(x_hat, x, weight, None, **dialect)


@fault("normalised_twice")
def normalised_before_the_norm(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """The kernel before it normalises already, without a weight."""
    rows = upcast(x)
    for _ in range(2):
        rows = rows * torch.rsqrt(mean_square(rows) + eps)
    return scale(rows, x, weight, None, **dialect)


@fault("nan_swallowed")
def nan_masked(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """NaN is filled with zero, so that training goes on."""
    rows = upcast(x.masked_fill(x.isnan(), 0.0))
    return scale(rows * torch.rsqrt(mean_square(rows) + eps), x, weight, None, **dialect)


# What autograd is kept from.


@fault("statistics_held_constant", "projection_missing", group="backward")
def statistics_without_gradient(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """rstd is computed under no_grad, to spare memory."""
    rows = upcast(x)
    with torch.no_grad():
        rstd = torch.rsqrt(mean_square(rows) + eps)
    return scale(rows * rstd, x, weight, None, **dialect)


FAULTS: tuple[Fault, ...] = tuple(fault.faults)
