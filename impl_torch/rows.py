"""What the norms share: dtypes, a cast that holds under every compiler, and rows along the last axis."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of statistics and sums: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def check_order(order: str) -> None:
    """Raise `ValueError` unless the order is one of the two."""
    if order not in ("cast_then_scale", "scale_then_cast"):
        raise ValueError(f"order is {order!r}; it must be 'cast_then_scale' or 'scale_then_cast'")


def check_rows(x: Tensor, **parameters: Tensor | None) -> None:
    """Raise unless x is of floating point (`TypeError`) and every parameter has the shape of one row (`ValueError`)."""
    if not x.dtype.is_floating_point:
        raise TypeError(f"x is {x.dtype}; it must be of floating point")
    for name, parameter in parameters.items():
        if parameter is not None and parameter.shape != x.shape[-1:]:
            expected = list(x.shape[-1:])
            raise ValueError(f"{name} has shape {list(parameter.shape)}; with x of shape {list(x.shape)} it must be {expected}")


def output_dtype(order: str, dtype: torch.dtype, *parameters: Tensor | None) -> torch.dtype:
    """y's dtype: the given one, or the promoted one where the weight multiplies last."""
    for parameter in parameters:
        if order == "cast_then_scale" and parameter is not None:
            dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype


def operand(number: float, x: Tensor) -> float | Tensor:
    """The number; under the compiler, a tensor, with which an `autograd.Function` can be called more than once in a graph.

    With `dynamic=True` a float is symbolic, and torch 2.13 binds it to the first call alone: the second is an internal error.
    """
    return x.new_zeros((), dtype=compute_dtype(x)) + number if torch.compiler.is_compiling() else number


def cast(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast what an `autograd.Function` may return; a tensor that has the dtype already is returned as it is.

    `to` would return it too, but torch.compile up to 2.12 takes an output that is another's alias for one without a
    gradient: every gradient is zero, and nothing is said.
    """
    return y if y.dtype == dtype else y.to(dtype)


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast x to dtype and round it there, even where the compiler would rather keep float32.

    Inductor fuses a cast to half precision into the float32 expression around it and drops the rounding, unless its
    option `emulate_precision_casts` is set: `cast_then_scale` silently becomes `scale_then_cast`. It cannot look
    through integer arithmetic on the bits.
    """
    rounded = cast(x, dtype)
    return (rounded.view(torch.int16) + 0).view(dtype) if dtype in HALF else rounded


def as_stored(x: Tensor) -> Tensor:
    """x as memory holds it, for whatever reads it next; its gradient passes as it is.

    A kernel that Inductor fuses for a GPU goes on with what it stores as it was before it was rounded; on a CPU it does not.
    """
    return _AsStored.apply(x) if x.dtype in HALF else x


def sum_rows(a: Tensor, kept: int = 1) -> Tensor:
    """Sum [*batch, d] over every axis but the last; or, of [*batch, groups, g], but the last two."""
    # By axes: where sizes are symbols, to reshape costs the compiler a division and its guards. An empty tuple means all axes.
    return a.sum(dim=tuple(range(a.ndim - kept))) if a.ndim > kept else a


def groups_of(group_size: int | None, x: Tensor) -> int:
    """How many groups a row has. Raises `ValueError` for a group that does not divide the last axis."""
    if group_size is None:
        return 1
    if group_size < 1 or x.shape[-1] % group_size:
        raise ValueError(f"group_size is {group_size}; with x of shape {list(x.shape)} it must divide {x.shape[-1]}")
    return x.shape[-1] // group_size


def split(group_size: int | None, x: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    """x as [*batch, groups, g] and parameters as [groups, g], whose norm is that of every group; as they are without groups.

    Raises `ValueError` for a group that does not divide the last axis.
    """
    groups_of(group_size, x)
    if group_size is None:
        return x, *parameters
    return tuple(each if each is None else each.unflatten(-1, (-1, group_size)) for each in (x, *parameters))


def flatten_trailing(x: Tensor, normalized_shape: Sequence[int]) -> Tensor:
    """[*batch, *normalized_shape] to [*batch, d]. Raises `ValueError` if x does not end in the shape."""
    batch = x.ndim - len(normalized_shape)
    if tuple(x.shape[batch:]) != tuple(normalized_shape):
        raise ValueError(f"x has shape {list(x.shape)}; it must end in the normalized shape {list(normalized_shape)}")
    return x if len(normalized_shape) == 1 else x.flatten(start_dim=batch)


class _AsStored(torch.autograd.Function):
    """`round_to`, whose integers have no gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return round_to(x, x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return dy
