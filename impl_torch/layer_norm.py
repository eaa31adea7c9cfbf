"""LayerNorm (Ba, Kiros & Hinton 2016, arXiv:1607.06450) for PyTorch."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from impl_torch.kernels import in_triton, triton_norm
from impl_torch.ranks import check_ranks, row_means, total
from impl_torch.rows import (
    cast,
    check_order,
    check_rows,
    compute_dtype,
    flatten_trailing,
    operand,
    output_dtype,
    round_to,
    split,
    sum_rows,
)


def layer_norm(
    x: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    *,
    eps: float = 1e-5,
    order: str = "scale_then_cast",
    weight_offset: float = 0.0,
    dtype: torch.dtype | None = None,
    group_size: int | None = None,
    kernel: str | None = None,
    process_group: ProcessGroup | None = None,
    rows_group: ProcessGroup | None = None,
) -> Float[Tensor, "*batch d"]:
    r"""Centre every row, divide it by its standard deviation, then scale and shift.

    $$ y_i = (w_i + o)\, \hat x_i + b_i, \qquad \hat x_i = (x_i - \mu) / \sqrt{\sigma^2 + \varepsilon} $$

    x is [*batch, d], weight and bias [d] or None. Statistics and sums are in float32 (float64 for float64), forward and
    backward; the variance is the mean square of the centred row. `order`, `dtype`, `group_size`, `kernel`, `process_group` and
    `rows_group` are as in `rms_norm`; the bias is added before the last rounding. Raises as `rms_norm` does.
    """
    check_order(order)
    check_rows(x, weight=weight, bias=bias)
    check_ranks(group_size, process_group)
    if in_triton(kernel, x, process_group, rows_group):
        settings: Any = {"eps": eps, "order": order, "weight_offset": weight_offset, "dtype": dtype or x.dtype}
        settings["group_size"] = group_size
        return triton_norm(x, None, weight, bias, **settings, centred=True)[0]
    rows, weight, bias = split(group_size, x, weight, bias)
    numbers = operand(eps, x), operand(weight_offset, x)
    y, _, _ = _LayerNorm.apply(rows, weight, bias, *numbers, order, dtype or x.dtype, process_group, rows_group)
    return y if group_size is None else y.flatten(-2)


class LayerNorm(nn.Module):
    """`layer_norm` over the trailing axes `normalized_shape`, with `weight` and `bias`; a drop-in for `torch.nn.LayerNorm`."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        order: str = "scale_then_cast",
        weight_offset: float = 0.0,
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        check_order(order)
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.order = order
        self.weight_offset = weight_offset
        self.group_size = group_size
        for name, present in {"weight": elementwise_affine, "bias": elementwise_affine and bias}.items():
            parameter = nn.Parameter(torch.empty(self.normalized_shape, device=device, dtype=dtype)) if present else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the effective weight to ones and the bias to zeros."""
        if self.weight is not None:
            nn.init.constant_(self.weight, 1.0 - self.weight_offset)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Normalise x of shape [*batch, *normalized_shape]; raises `ValueError` if x ends otherwise.

        `dtype` is as in `layer_norm`.
        """
        rows = flatten_trailing(x, self.normalized_shape)
        weight, bias = (None if p is None else p.reshape(-1) for p in (self.weight, self.bias))
        y = layer_norm(
            rows,
            weight,
            bias,
            eps=self.eps,
            order=self.order,
            weight_offset=self.weight_offset,
            dtype=dtype,
            group_size=self.group_size,
        )
        return y.reshape(x.shape)

    def extra_repr(self) -> str:
        offset = f", weight_offset={self.weight_offset}" if self.weight_offset else ""
        affine = f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        groups = f", group_size={self.group_size}" if self.group_size else ""
        return f"{self.normalized_shape}, eps={self.eps}, {affine}, order={self.order!r}{offset}{groups}"


class _LayerNorm(torch.autograd.Function):
    """Saves x, weight, mean and rstd and recomputes x_hat; mean and rstd have gradients, so that second derivatives hold."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        weight_offset: float,
        order: str,
        dtype: torch.dtype,
        process_group: ProcessGroup | None,
        rows_group: ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        compute, y_dtype = compute_dtype(x), output_dtype(order, dtype, weight, bias)
        (mean,) = row_means(x.to(compute), group=process_group)  # *batch 1
        centred = x.to(compute) - mean  # *batch d
        (var,) = row_means(centred.square(), group=process_group)  # *batch 1
        rstd = torch.rsqrt(var + eps)  # *batch 1
        x_hat = centred * rstd  # *batch d
        y = cast(round_to(x_hat, dtype), compute) if order == "cast_then_scale" else x_hat
        if weight is not None:
            y = y * (weight.to(compute) + weight_offset)  # *batch d
        if bias is not None:
            y = y + bias.to(compute)  # *batch d
        return cast(y, y_dtype), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, bias, _, ctx.weight_offset, _, _, ctx.process_group, ctx.rows_group = inputs
        _, mean, rstd = output
        ctx.bias_dtype, ctx.bias_ndim = (None, 0) if bias is None else (bias.dtype, bias.ndim)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - a cotangent for every output
        ctx: Any, dy: Tensor | None, dmean: Tensor | None, drstd: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        compute = compute_dtype(x)
        x_hat = (x.to(compute) - mean) * rstd  # *batch d
        dx, dweight, dbias = None, None, None
        if dy is not None:
            dy = dy.to(compute)
            g = dy if weight is None else dy * (weight.to(compute) + ctx.weight_offset)  # *batch d
            shift, projection = row_means(g, g * x_hat, group=ctx.process_group)  # *batch 1
            dx = rstd * (g - shift - x_hat * projection)  # *batch d
            if weight is not None and ctx.needs_input_grad[1]:
                dweight = total(sum_rows(dy * x_hat, weight.ndim), ctx.rows_group).to(weight.dtype)  # d
            if ctx.needs_input_grad[2]:
                dbias = total(sum_rows(dy, ctx.bias_ndim), ctx.rows_group).to(ctx.bias_dtype)  # d
        if dmean is not None:  # this and the next only where the backward pass is itself differentiated
            through_mean = (dmean / x.shape[-1]).expand(x.shape)
            dx = through_mean if dx is None else dx + through_mean
        if drstd is not None:
            through_rstd = -drstd * rstd.square() * x_hat / x.shape[-1]
            dx = through_rstd if dx is None else dx + through_rstd
        return None if dx is None else dx.to(x.dtype), dweight, dbias, *[None] * 6
