"""LayerNorm with one fault each, as people write it in PyTorch, differentiated by autograd."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.judge.written.fault import Fault
from tests.judge.written.torch_steps import HALF, WIDE, Written, honest, scale, upcast

fault = Written("layer_norm")
Parameter = Tensor | None


def row_mean(a: Tensor) -> Tensor:
    return a.mean(-1, keepdim=True)


def centre(x: Tensor) -> Tensor:
    """The rows less their means, in the compute dtype; x is cast once."""
    rows = upcast(x)
    return rows - row_mean(rows)


def normalised(x: Tensor, eps: float) -> Tensor:
    """x_hat, in the compute dtype."""
    centred = centre(x)
    return centred * torch.rsqrt(row_mean(centred.square()) + eps)


# Right, in four styles.


def textbook(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The mean, the variance around it, and the division, one after the other."""
    rows = upcast(x)
    mean = rows.mean(dim=-1, keepdim=True)
    var = (rows - mean).pow(2).mean(dim=-1, keepdim=True)
    return scale((rows - mean) / torch.sqrt(var + eps), x, weight, bias, **dialect)


def by_var_mean(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """Both statistics come from torch.var_mean."""
    rows = upcast(x)
    var, mean = torch.var_mean(rows, dim=-1, unbiased=False, keepdim=True)
    return scale((rows - mean) * (var + eps).rsqrt(), x, weight, bias, **dialect)


def of_torch(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """x_hat is that of torch's own function, in the compute dtype."""
    return scale(F.layer_norm(upcast(x), x.shape[-1:], eps=eps), x, weight, bias, **dialect)


def centred_by_a_projection(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The row is centred once more after the mean is taken off, which takes off what rounding left."""
    centred = upcast(x) - row_mean(upcast(x))
    centred = centred - row_mean(centred)
    return scale(centred * torch.rsqrt(row_mean(centred * centred) + eps), x, weight, bias, **dialect)


HONEST = tuple(honest("layer_norm", run) for run in (textbook, by_var_mean, of_torch, centred_by_a_projection))


# Right too: x is cast more than once, so autograd rounds the paths of dx one by one, in its own order, before it adds them.


def cast_twice(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """x is cast for the mean, and again for the row that it is taken off."""
    centred = upcast(x) - upcast(x).mean(-1, keepdim=True)
    return scale(centred * torch.rsqrt(row_mean(centred.pow(2)) + eps), x, weight, bias, **dialect)


def cast_three_times(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """x is cast for the mean, for the variance, and for the numerator."""
    mean = upcast(x).mean(-1, keepdim=True)
    var = upcast(x).var(-1, unbiased=False, keepdim=True)
    return scale((upcast(x) - mean) / torch.sqrt(var + eps), x, weight, bias, **dialect)


HONEST_IN_SEVERAL_CASTS = tuple(honest("layer_norm", run) for run in (cast_twice, cast_three_times))


# eps: its value, and its place.


@fault("eps_outside_root", "divides_by_n_minus_1")
def annotated_transformer(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """x.std() divides by n - 1, and eps is added to it."""
    rows = upcast(x)
    x_hat = (rows - rows.mean(-1, keepdim=True)) / (rows.std(-1, keepdim=True) + eps)
    return scale(x_hat, x, weight, bias, **dialect)


@fault("eps_outside_root")
def eps_beside_root(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """eps is added to the standard deviation."""
    centred = centre(x)
    std = row_mean(centred**2).sqrt()
    return scale(centred / (std + eps), x, weight, bias, **dialect)


@fault("eps_missing")
def eps_ignored(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """eps is accepted and not used."""
    rows = upcast(x)
    std, mean = torch.std_mean(rows, dim=-1, unbiased=False, keepdim=True)
    return scale((rows - mean) / std, x, weight, bias, **dialect)


@fault("eps_1e-05")
def eps_of_torch(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """eps is not passed on to F.layer_norm, whose default is 1e-5."""
    return scale(F.layer_norm(upcast(x), x.shape[-1:]), x, weight, bias, **dialect)


@fault("eps_0.001")
def eps_of_keras(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """eps is 1e-3, as the model was in Keras."""
    return scale(F.layer_norm(upcast(x), x.shape[-1:], eps=1e-3), x, weight, bias, **dialect)


@fault("eps_1e-12")
def eps_of_bert(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """eps is 1e-12, as in BERT."""
    centred = centre(x)
    return scale(centred / torch.sqrt(row_mean(centred.pow(2)) + 1e-12), x, weight, bias, **dialect)


@fault("eps_in_the_sum")
def eps_before_division(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """eps is added to the sum of squares, which is divided by the width after that."""
    centred = centre(x)
    var = ((centred * centred).sum(-1, keepdim=True) + eps) / x.shape[-1]
    return scale(centred * var.rsqrt(), x, weight, bias, **dialect)


@fault("eps_clamps")
def eps_as_floor(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The variance is clamped at eps, instead of eps being added."""
    centred = upcast(x) - row_mean(upcast(x))
    return scale(centred * row_mean(centred.square()).clamp_min(eps).rsqrt(), x, weight, bias, **dialect)


@fault("eps_at_least_1e-04_in_float16", dtypes=("float16",))
def eps_floored_in_float16(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """eps is made 1e-4 at least in float16, so that it does not underflow."""
    return scale(normalised(x, max(eps, 1e-4)), x, weight, bias, **dialect)


@fault("eps_in_storage_dtype", dtypes=("float16",))
def eps_buffer(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """eps is a buffer, which model.half() casts to float16."""
    return scale(normalised(x, torch.tensor(eps, dtype=x.dtype).item()), x, weight, bias, **dialect)


@fault("eps_of_storage_dtype")
def eps_of_finfo(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """eps is the machine epsilon of x's dtype."""
    return scale(normalised(x, torch.finfo(x.dtype).eps), x, weight, bias, **dialect)


@fault("eps_after_rescale")
def rescaled_by_maximum(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The row is divided by its largest magnitude against overflow, and eps is added after that."""
    rows = upcast(x)
    rows = rows / rows.abs().amax(-1, keepdim=True).detach()
    return scale(normalised(rows, eps), x, weight, bias, **dialect)


# The statistics.


@fault("divides_by_n_minus_1")
def unbiased(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """torch.var divides by n - 1 unless it is told not to."""
    rows = upcast(x)
    var, mean = torch.var_mean(rows, -1, keepdim=True)
    return scale((rows - mean) * torch.rsqrt(var + eps), x, weight, bias, **dialect)


@fault("one_pass_variance")
def one_pass(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The variance is the mean of squares less the square of the mean."""
    rows = upcast(x)
    mean = rows.mean(-1, keepdim=True)
    var = rows.pow(2).mean(-1, keepdim=True) - mean.pow(2)
    return scale((rows - mean) * torch.rsqrt(var + eps), x, weight, bias, **dialect)


@fault("one_pass_variance")
def one_pass_clamped(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The variance is taken in one pass, and made zero where it comes out less."""
    rows = upcast(x)
    mean, mean_square = rows.mean(-1, keepdim=True), (rows * rows).mean(-1, keepdim=True)
    var = torch.relu(mean_square - mean * mean)
    return scale((rows - mean) / (var + eps).sqrt(), x, weight, bias, **dialect)


@fault("not_centred")
def rms_norm(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """F.rms_norm and a bias are taken for LayerNorm."""
    return scale(F.rms_norm(upcast(x), x.shape[-1:], eps=eps), x, weight, bias, **dialect)


@fault("mean_square_for_variance")
def mean_square(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The mean is taken off after the mean square was taken."""
    rows = upcast(x)
    rstd = torch.rsqrt(row_mean(rows.pow(2)) + eps)
    return scale((rows - row_mean(rows)) * rstd, x, weight, bias, **dialect)


@fault("mean_left_in_values")
def mean_left(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The mean is in the variance only, and not taken off the row."""
    rows = upcast(x)
    return scale(rows / torch.sqrt(rows.var(-1, unbiased=False, keepdim=True) + eps), x, weight, bias, **dialect)


@fault("divides_by_mean_square")
def root_forgotten(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The root is forgotten: the row is divided by its variance."""
    rows = upcast(x)
    var, mean = torch.var_mean(rows, dim=-1, correction=0, keepdim=True)
    return scale((rows - mean) / (var + eps), x, weight, bias, **dialect)


@fault("sum_for_mean")
def length_for_deviation(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The centred row is divided by its length."""
    centred = centre(x)
    length = (centred.square().sum(-1, keepdim=True) + eps).sqrt()
    return scale(centred / length, x, weight, bias, **dialect)


@fault("mean_magnitude_for_root_mean_square")
def mean_deviation(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The row is divided by its mean absolute deviation."""
    centred = centre(x)
    return scale(centred / (row_mean(centred.abs()) + eps), x, weight, bias, **dialect)


@fault("statistics_over_all_rows")
def no_axis(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """mean() and var() have no axis, and take all rows together."""
    rows = upcast(x)
    return scale((rows - rows.mean()) * torch.rsqrt(rows.var(unbiased=False) + eps), x, weight, bias, **dialect)


@fault()
def variance_without_axis(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The mean is a row's, but the variance is that of all rows together."""
    centred = centre(x)
    return scale(centred * torch.rsqrt(centred.pow(2).mean() + eps), x, weight, bias, **dialect)


@fault("statistics_over_rows")
def other_axis(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The statistics are taken over the positions, as BatchNorm takes them."""
    rows = upcast(x)
    var, mean = torch.var_mean(rows, dim=-2, unbiased=False, keepdim=True)
    return scale((rows - mean) * torch.rsqrt(var + eps), x, weight, bias, **dialect)


@fault("statistics_over_two_axes")
def normalized_shape_of_two_axes(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """normalized_shape has the axis of the positions too."""
    return scale(F.layer_norm(upcast(x), x.shape[-2:], eps=eps), x, weight, bias, **dialect)


@fault()
def group_norm(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """Every row is normalised in three groups."""
    n = x.shape[-1]
    rows = upcast(x).reshape(-1, n)
    x_hat = F.group_norm(rows, 3 if n % 3 == 0 and n > 3 else 1, eps=eps).reshape(x.shape)
    return scale(x_hat, x, weight, bias, **dialect)


@fault("padding_in_variance")
def padding_not_masked_again(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The row is padded with zeros, which become minus the mean once it is taken off, and are squared."""
    n = x.shape[-1]
    padded = F.pad(upcast(x), (0, 2 ** math.ceil(math.log2(n)) - n))
    centred = padded - padded.sum(-1, keepdim=True) / n
    var = centred.square().sum(-1, keepdim=True) / n
    return scale((centred * torch.rsqrt(var + eps))[..., :n], x, weight, bias, **dialect)


@fault("padding_in_mean")
def mean_over_padding(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The mean is taken over the padded row, the variance over the row."""
    n = x.shape[-1]
    rows = upcast(x)
    centred = rows - F.pad(rows, (0, 2 ** math.ceil(math.log2(n)) - n)).mean(-1, keepdim=True)
    return scale(centred * torch.rsqrt(row_mean(centred.square()) + eps), x, weight, bias, **dialect)


@fault("padding_in_statistics")
def padded_row(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The row is padded to a power of two, normalised with its padding, and cut."""
    n = x.shape[-1]
    padded = F.pad(upcast(x), (0, 2 ** math.ceil(math.log2(n)) - n))
    return scale(normalised(padded, eps)[..., :n], x, weight, bias, **dialect)


# What is rounded.


@fault("mean_in_storage_dtype", dtypes=HALF)
def mean_before_cast(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The mean is taken in x's dtype."""
    centred = x.float() - x.mean(-1, keepdim=True)
    return scale(centred * torch.rsqrt(row_mean(centred.pow(2)) + eps), x, weight, bias, **dialect)


@fault("centred_in_storage_dtype", dtypes=HALF)
def centred_cast_back(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The row less its mean is cast to x's dtype, and back."""
    centred = (x.float() - row_mean(x.float())).to(x.dtype).float()
    return scale(centred * torch.rsqrt(row_mean(centred.pow(2)) + eps), x, weight, bias, **dialect)


@fault("mean_in_storage_dtype", "centred_in_storage_dtype", dtypes=HALF)
def centred_before_cast(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The mean is taken, and taken off, before the cast to float32."""
    centred = (x - x.mean(-1, keepdim=True)).float()
    return scale(centred * torch.rsqrt(row_mean(centred.pow(2)) + eps), x, weight, bias, **dialect)


@fault("rstd_in_storage_dtype", dtypes=HALF)
def rstd_cast_back(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """rstd is cast to x's dtype before the product."""
    centred = centre(x)
    rstd = torch.rsqrt(row_mean(centred.pow(2)) + eps).to(x.dtype)
    return scale(centred * rstd, x, weight, bias, **dialect)


@fault("rstd_in_bfloat16", dtypes=WIDE)
def rstd_in_bfloat16(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """rstd is cast to bfloat16, the model's usual dtype."""
    var, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
    return scale((x - mean) * torch.rsqrt(var + eps).bfloat16(), x, weight, bias, **dialect)


@fault("mean_square_in_storage_dtype", dtypes=HALF)
def variance_cast_back(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The variance is cast to x's dtype, and back."""
    centred = centre(x)
    var = row_mean(centred * centred).to(x.dtype).float()
    return scale(centred * torch.rsqrt(var + eps), x, weight, bias, **dialect)


@fault("mean_in_storage_dtype", "rstd_in_storage_dtype", dtypes=HALF)
def both_statistics_cast_back(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The mean and rstd are kept in x's dtype, and used as they are kept."""
    var, mean = torch.var_mean(x.float(), -1, unbiased=False, keepdim=True)
    mean, rstd = mean.to(x.dtype), torch.rsqrt(var + eps).to(x.dtype)
    return scale((x.float() - mean.float()) * rstd.float(), x, weight, bias, **dialect)


@fault("mean_in_bfloat16", "mean_square_in_bfloat16", dtypes=("float32",))
def bfloat16_statistics(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The mean and the variance are kept in bfloat16, for a model in float32."""
    var, mean = (statistic.bfloat16().float() for statistic in torch.var_mean(x, -1, unbiased=False, keepdim=True))
    return scale((x - mean) * torch.rsqrt(var + eps), x, weight, bias, **dialect)


@fault("computed_in_storage_dtype", "computed_in_storage_dtype_root_first", dtypes=HALF)
def all_in_storage_dtype(
    x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, weight_offset: float, order: str
) -> Tensor:
    """Nothing is cast to float32."""
    centred = x - x.mean(-1, keepdim=True)
    x_hat = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    if weight is None or bias is None:
        return x_hat
    y = x_hat * (weight + weight_offset if weight_offset else weight) + bias
    return y.to(weight.dtype if order == "cast_then_scale" else x.dtype)


@fault("squares_in_storage_dtype", dtypes=HALF)
def squares_cast_back(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The squares are stored in x's dtype before they are averaged."""
    centred = centre(x)
    squares = centred.pow(2).to(x.dtype)
    return scale(centred * torch.rsqrt(row_mean(squares.float()) + eps), x, weight, bias, **dialect)


@fault("x_in_bfloat16", dtypes=("float32", "float64", "float16"))
def autocast_to_bfloat16(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The norm is inside a region that casts its input to bfloat16."""
    return scale(normalised(x.bfloat16().to(x.dtype), eps), x, weight, bias, **dialect)


@fault("computed_in_float32", dtypes=("float64",))
def always_float(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The function casts to float32 and back, whatever it is given."""
    parameters = (None if each is None else each.float() for each in (weight, bias))
    return scale(normalised(x.float(), eps), x.float(), *parameters, **dialect).to(x.dtype)


@fault("x_in_float32", dtypes=("float64",))
def loaded_as_float(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """x alone is cast to float32, and all that follows is in float64."""
    return scale(normalised(x.float().double(), eps), x, weight, bias, **dialect)


@fault("y_in_bfloat16", dtypes=WIDE)
def y_through_bfloat16(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """y is cast to bfloat16 for the next layer, and promoted again."""
    return scale(normalised(x, eps), x, weight, bias, **dialect).bfloat16().to(x.dtype)


@fault("y_in_float16", dtypes=WIDE)
def y_through_float16(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """y is cast to float16 for the next layer, and back."""
    y = scale(normalised(x, eps), x, weight, bias, **dialect)
    return y.half().to(y.dtype)


@fault(dtypes=HALF)
def shift_in_storage_dtype(
    x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, weight_offset: float, order: str
) -> Tensor:
    """y is x times a slope plus an intercept, and both are cast to x's dtype."""
    var, mean = torch.var_mean(x.float(), -1, unbiased=False, keepdim=True)
    rstd = torch.rsqrt(var + eps)
    if weight is None or bias is None:
        return ((x.float() - mean) * rstd).to(x.dtype)
    slope = rstd * (weight.float() + weight_offset)
    intercept = bias.float() - mean * slope
    y = x.float() * slope.to(x.dtype) + intercept.to(x.dtype)
    return y.to(weight.dtype if order == "cast_then_scale" else x.dtype)


# Weight, bias, and the dtype of y.


@fault("y_demoted", dtypes=HALF)
def always_dtype_of_x(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """y is cast to x's dtype even where the parameters are float32."""
    return scale(normalised(x, eps), x, weight, bias, **dialect).type_as(x)


@fault("y_in_float32", group="forward", dtypes=HALF)
def cast_forgotten(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, weight_offset: float, order: str) -> Tensor:
    """y is returned in float32: the last cast is forgotten."""
    x_hat = normalised(x, eps)
    if order == "cast_then_scale":
        x_hat = x_hat.to(x.dtype)
    if weight is None or bias is None:
        return x_hat
    return x_hat * (weight.float() + weight_offset) + bias.float()


@fault("other_order", dtypes=HALF)
def always_cast_then_scale(
    x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, weight_offset: float, order: str
) -> Tensor:
    """x_hat is cast before the weight, where one cast at the end is asked for."""
    y = scale(normalised(x, eps), x, weight, bias, weight_offset=weight_offset, order="cast_then_scale")
    return y if order == "cast_then_scale" else y.to(x.dtype)


@fault("weight_in_bfloat16", dtypes=("float64", "float32", "float16"))
def weight_in_bfloat16(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The weight is cast to bfloat16, whatever x's dtype is."""
    stored = None if weight is None else weight.bfloat16().to(weight.dtype)
    return scale(normalised(x, eps), x, stored, bias, **dialect)


@fault("bias_twice")
def bias_in_function_and_module(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The function adds the bias, and so does the module around it."""
    y = scale(normalised(x, eps), x, weight, bias, **dialect)
    return y if bias is None else (y + bias).to(y.dtype)


@fault("bias_scaled")
def bias_before_weight(
    x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, weight_offset: float, order: str
) -> Tensor:
    """The bias is added before the weight multiplies."""
    x_hat = normalised(x, eps)
    if bias is not None:
        x_hat = x_hat + upcast(bias)
    return scale(x_hat, x, weight, None, weight_offset=weight_offset, order=order)


@fault("weight_and_bias_swapped")
def arguments_swapped(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """Weight and bias are passed in the other order."""
    return scale(normalised(x, eps), x, bias, weight, **dialect)


@fault("offset_twice")
def offset_by_converter_and_model(
    x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, weight_offset: float, order: str
) -> Tensor:
    """The converter of the checkpoint added one to the weight, and the model adds it again."""
    converted = None if weight is None else upcast(weight) + weight_offset
    y = scale(normalised(x, eps), x, converted, bias, weight_offset=weight_offset, order=order)
    return y.to(x.dtype if weight is None or order == "scale_then_cast" else weight.dtype)


# What autograd is kept from.


@fault("statistics_held_constant", group="backward")
def statistics_without_gradient(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """Both statistics are computed under no_grad."""
    with torch.no_grad():
        var, mean = torch.var_mean(upcast(x), -1, unbiased=False, keepdim=True)
    return scale((upcast(x) - mean) * torch.rsqrt(var + eps), x, weight, bias, **dialect)


@fault("projection_missing", group="backward")
def variance_detached(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The variance is detached, the mean is not."""
    centred = centre(x)
    rstd = torch.rsqrt(row_mean(centred.detach() ** 2) + eps)
    return scale(centred * rstd, x, weight, bias, **dialect)


@fault("shift_missing", group="backward")
def mean_detached(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, **dialect: Any) -> Tensor:
    """The mean is detached, the variance is not."""
    centred = upcast(x) - row_mean(upcast(x)).detach()
    return scale(centred * torch.rsqrt(row_mean(centred.square()) + eps), x, weight, bias, **dialect)


@fault(
    "statistics_saved_in_storage_dtype",
    "mean_saved_in_storage_dtype",
    "rstd_saved_in_storage_dtype",
    "parameter_gradients_accumulated_in_storage_dtype",
    group="backward",
    dtypes=HALF,
)
def native_on_cpu(x: Tensor, weight: Parameter, bias: Parameter, *, eps: float, weight_offset: float, order: str) -> Tensor:
    """torch's own function on a CPU saves both statistics in x's dtype, and adds up dweight in it."""
    if order == "scale_then_cast" and not weight_offset and weight is not None and weight.dtype == x.dtype:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return scale(normalised(x, eps), x, weight, bias, weight_offset=weight_offset, order=order)


FAULTS: tuple[Fault, ...] = tuple(fault.faults)
