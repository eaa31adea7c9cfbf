"""RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467) for PyTorch."""

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


def rms_norm(
    x: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None = None,
    *,
    eps: float = 1e-5,
    order: str = "cast_then_scale",
    weight_offset: float = 0.0,
    dtype: torch.dtype | None = None,
    group_size: int | None = None,
    kernel: str | None = None,
    process_group: ProcessGroup | None = None,
    rows_group: ProcessGroup | None = None,
) -> Float[Tensor, "*batch d"]:
    r"""Divide every row by its root mean square, then scale.

    $$ y_i = (w_i + o)\, \hat x_i, \qquad \hat x_i = x_i / \sqrt{\tfrac1d \textstyle\sum_j x_j^2 + \varepsilon} $$

    x is [*batch, d], weight [d] or None. Statistics and sums are in float32 (float64 for float64), forward and backward.
    `order="cast_then_scale"` rounds x_hat to `dtype` before the weight multiplies it, and a float32 weight promotes y;
    `"scale_then_cast"` rounds once, and y has `dtype`. That is x's own unless given, as for a float32 sum of half-precision
    numbers.
    With a `group_size` the mean square is that of so many neighbouring features, each group's own.
    `kernel` is "triton", "torch", or None: then Triton's for CUDA tensors, where it is installed.
    Where features are split over the ranks of a `process_group`, x and weight are this rank's parts, and the statistics are
    summed over the ranks. Where rows are split over those of a `rows_group`, dweight is summed over them before it is rounded;
    without it dweight is that of this rank's rows, as `DistributedDataParallel` and FSDP take it. Both are for first
    derivatives, and not for Triton.
    Raises `ValueError` for another order or kernel, a weight of another shape, a group that does not divide d or is split,
    `TypeError` for an x that is not of floating point.
    """
    check_order(order)
    check_rows(x, weight=weight)
    check_ranks(group_size, process_group)
    if in_triton(kernel, x, process_group, rows_group):
        settings: Any = {"eps": eps, "order": order, "weight_offset": weight_offset, "dtype": dtype or x.dtype}
        settings["group_size"] = group_size
        return triton_norm(x, None, weight, None, **settings, centred=False)[0]
    rows, weight = split(group_size, x, weight)
    y, _ = _RMSNorm.apply(
        rows, weight, operand(eps, x), operand(weight_offset, x), order, dtype or x.dtype, process_group, rows_group
    )
    return y if group_size is None else y.flatten(-2)


class RMSNorm(nn.Module):
    """`rms_norm` over the trailing axes `normalized_shape`, with a learned `weight`; a drop-in for `torch.nn.RMSNorm`.

    `eps` is a number here; torch's default is the machine epsilon of x's dtype, another function for every dtype.
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        order: str = "cast_then_scale",
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
        weight = nn.Parameter(torch.empty(self.normalized_shape, device=device, dtype=dtype)) if elementwise_affine else None
        self.register_parameter("weight", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the effective weight to ones."""
        if self.weight is not None:
            nn.init.constant_(self.weight, 1.0 - self.weight_offset)

    def forward(self, x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Normalise x of shape [*batch, *normalized_shape]; raises `ValueError` if x ends otherwise.

        `dtype` is as in `rms_norm`.
        """
        rows = flatten_trailing(x, self.normalized_shape)
        weight = None if self.weight is None else self.weight.reshape(-1)
        y = rms_norm(
            rows,
            weight,
            eps=self.eps,
            order=self.order,
            weight_offset=self.weight_offset,
            dtype=dtype,
            group_size=self.group_size,
        )
        return y.reshape(x.shape)

    def extra_repr(self) -> str:
        offset = f", weight_offset={self.weight_offset}" if self.weight_offset else ""
        affine = f"elementwise_affine={self.elementwise_affine}"
        groups = f", group_size={self.group_size}" if self.group_size else ""
        return f"{self.normalized_shape}, eps={self.eps}, {affine}, order={self.order!r}{offset}{groups}"


class _RMSNorm(torch.autograd.Function):
    """Saves x, weight and rstd and recomputes x_hat; rstd is an output with a gradient, so that second derivatives hold."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        eps: float,
        weight_offset: float,
        order: str,
        dtype: torch.dtype,
        process_group: ProcessGroup | None,
        rows_group: ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        compute, y_dtype = compute_dtype(x), output_dtype(order, dtype, weight)
        (mean_square,) = row_means(x.to(compute).square(), group=process_group)  # *batch 1
        rstd = torch.rsqrt(mean_square + eps)  # *batch 1
        x_hat = x.to(compute) * rstd  # *batch d
        y = cast(round_to(x_hat, dtype), compute) if order == "cast_then_scale" else x_hat
        if weight is not None:
            y = y * (weight.to(compute) + weight_offset)  # *batch d
        return cast(y, y_dtype), rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, _, ctx.weight_offset, _, _, ctx.process_group, ctx.rows_group = inputs
        _, rstd = output
        ctx.save_for_backward(x, weight, rstd)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - a cotangent for every output
        ctx: Any, dy: Tensor | None, drstd: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        compute = compute_dtype(x)
        x_hat = x.to(compute) * rstd  # *batch d
        dx, dweight = None, None
        if dy is not None:
            dy = dy.to(compute)
            g = dy if weight is None else dy * (weight.to(compute) + ctx.weight_offset)  # *batch d
            (projection,) = row_means(g * x_hat, group=ctx.process_group)  # *batch 1
            dx = rstd * (g - x_hat * projection)  # *batch d
            if weight is not None and ctx.needs_input_grad[1]:
                dweight = total(sum_rows(dy * x_hat, weight.ndim), ctx.rows_group).to(weight.dtype)  # d
        if drstd is not None:  # only where the backward pass is itself differentiated
            through_rstd = -drstd * rstd.square() * x_hat / x.shape[-1]
            dx = through_rstd if dx is None else dx + through_rstd
        return None if dx is None else dx.to(x.dtype), dweight, *[None] * 6
