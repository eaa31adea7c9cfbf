"""A residual and a norm in one op for PyTorch, as every Pre-LN block runs it between layers."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed import ProcessGroup

from impl_torch.kernels import in_triton, triton_norm
from impl_torch.layer_norm import LayerNorm, layer_norm
from impl_torch.rms_norm import RMSNorm, rms_norm
from impl_torch.rows import as_stored, cast, check_rows, compute_dtype, flatten_trailing


def add_rms_norm(
    x: Float[Tensor, "*batch d"],
    residual: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None = None,
    *,
    eps: float = 1e-5,
    order: str = "cast_then_scale",
    weight_offset: float = 0.0,
    sum: str = "rounded",
    kernel: str | None = None,
    process_group: ProcessGroup | None = None,
    rows_group: ProcessGroup | None = None,
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
    r"""Add the residual to x; return RMSNorm of the sum, and the sum.

    $$ s = x + \mathrm{residual}, \qquad y = \mathrm{rms\_norm}(s), \qquad
       dx = d\mathrm{residual} = ds + d\mathrm{residual\_out} $$

    x, the residual, y and the sum are [*batch, d], weight [d] or None. Implementations differ in what the norm reads in half
    precision. With `sum="rounded"` it is the sum that is returned, rounded to x's dtype (Hugging Face's blocks, vLLM); with
    `"unrounded"` the float32 sum, which is rounded only where it is returned (FlashInfer); with `"float32"` the residual and
    the sum that is returned are float32 (Mamba). In float32 and float64 the three are one.
    y has the dtype that `rms_norm` of x has. `kernel`, `process_group` and `rows_group` are as in `rms_norm`.

    Raises `ValueError` for another sum and for a residual of another shape than x's, `TypeError` for a residual of another
    dtype, and as `rms_norm` does.
    """
    settings: Any = {"eps": eps, "order": order, "weight_offset": weight_offset, "dtype": x.dtype}
    groups: Any = {"process_group": process_group, "rows_group": rows_group}
    if in_triton(kernel, x, process_group, rows_group):
        check_residual(x, residual, sum)
        return triton_norm(x, residual, weight, None, **settings, centred=False, sum=sum)
    s, residual_out = added(x, residual, sum)
    y = rms_norm(s, weight, **settings, **groups, kernel=kernel)
    return y, residual_out


def add_layer_norm(
    x: Float[Tensor, "*batch d"],
    residual: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    *,
    eps: float = 1e-5,
    order: str = "scale_then_cast",
    weight_offset: float = 0.0,
    sum: str = "rounded",
    kernel: str | None = None,
    process_group: ProcessGroup | None = None,
    rows_group: ProcessGroup | None = None,
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
    r"""Add the residual to x; return LayerNorm of the sum, and the sum.

    $$ s = x + \mathrm{residual}, \qquad y = \mathrm{layer\_norm}(s), \qquad
       dx = d\mathrm{residual} = ds + d\mathrm{residual\_out} $$

    x, the residual, y and the sum are [*batch, d], weight and bias [d] or None. `sum`, `kernel`, `process_group`,
    `rows_group` and what is raised are as in `add_rms_norm`.
    """
    settings: Any = {"eps": eps, "order": order, "weight_offset": weight_offset, "dtype": x.dtype}
    groups: Any = {"process_group": process_group, "rows_group": rows_group}
    if in_triton(kernel, x, process_group, rows_group):
        check_residual(x, residual, sum)
        return triton_norm(x, residual, weight, bias, **settings, centred=True, sum=sum)
    s, residual_out = added(x, residual, sum)
    y = layer_norm(s, weight, bias, **settings, **groups, kernel=kernel)
    return y, residual_out


class AddRMSNorm(RMSNorm):
    """`add_rms_norm` over the trailing axes `normalized_shape`, with a learned `weight`.

    It takes what `RMSNorm` takes, and `sum`.
    """

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
        sum: str = "rounded",
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype, order=order, weight_offset=weight_offset)
        _check_sum(sum)
        self.sum = sum

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - it takes a residual too
        self, x: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the residual to x, both [*batch, *normalized_shape]; return the norm of the sum, and the sum.

        Raises `ValueError` if x ends otherwise, and as the function does.
        """
        rows, residuals = (flatten_trailing(each, self.normalized_shape) for each in (x, residual))
        weight = None if self.weight is None else self.weight.reshape(-1)
        settings: Any = {"eps": self.eps, "order": self.order, "weight_offset": self.weight_offset, "sum": self.sum}
        y, residual_out = add_rms_norm(rows, residuals, weight, **settings)
        return y.reshape(x.shape), residual_out.reshape(x.shape)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sum={self.sum!r}"


class AddLayerNorm(LayerNorm):
    """`add_layer_norm` over the trailing axes `normalized_shape`, with `weight` and `bias`.

    It takes what `LayerNorm` takes, and `sum`.
    """

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
        sum: str = "rounded",
    ) -> None:
        super().__init__(
            normalized_shape, eps, elementwise_affine, bias, device, dtype, order=order, weight_offset=weight_offset
        )
        _check_sum(sum)
        self.sum = sum

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - it takes a residual too
        self, x: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the residual to x, both [*batch, *normalized_shape]; return the norm of the sum, and the sum.

        Raises `ValueError` if x ends otherwise, and as the function does.
        """
        rows, residuals = (flatten_trailing(each, self.normalized_shape) for each in (x, residual))
        weight, bias = (None if p is None else p.reshape(-1) for p in (self.weight, self.bias))
        settings: Any = {"eps": self.eps, "order": self.order, "weight_offset": self.weight_offset, "sum": self.sum}
        y, residual_out = add_layer_norm(rows, residuals, weight, bias, **settings)
        return y.reshape(x.shape), residual_out.reshape(x.shape)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sum={self.sum!r}"


def added(x: Tensor, residual: Tensor, sum: str) -> tuple[Tensor, Tensor]:
    """The sum that the norm reads, and the one that is returned, both [*batch, d]; with "rounded" they are the same."""
    check_residual(x, residual, sum)
    compute = compute_dtype(x)
    s = x.to(compute) + residual.to(compute)  # *batch d
    residual_out = as_stored(cast(s, residual.dtype))  # *batch d
    return residual_out if sum == "rounded" else s, residual_out


def _check_sum(sum: str) -> None:
    """Raise `ValueError` unless the sum is one of the three."""
    if sum not in ("rounded", "unrounded", "float32"):
        raise ValueError(f"sum is {sum!r}; it must be 'rounded', 'unrounded' or 'float32'")


def check_residual(x: Tensor, residual: Tensor, sum: str) -> None:
    """Raise unless the residual has x's shape (`ValueError`) and the dtype that the sum asks for (`TypeError`)."""
    _check_sum(sum)
    check_rows(x)
    if residual.shape != x.shape:
        shape = list(x.shape)
        raise ValueError(f"residual has shape {list(residual.shape)}; with x of shape {shape} it must be {shape}")
    dtype = compute_dtype(x) if sum == "float32" else x.dtype
    if residual.dtype != dtype:
        raise TypeError(f"residual is {residual.dtype}; with x of {x.dtype} and sum={sum!r} it must be {dtype}")
