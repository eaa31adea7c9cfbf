"""What the norms need where tensors are split over the ranks of a process group: means of rows, gradients of what is whole."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

Communicate = Callable[[Tensor, ProcessGroup], Tensor]


def check_ranks(group_size: int | None, process_group: ProcessGroup | None) -> None:
    """Raise `ValueError` for groups of features that are split over ranks."""
    if group_size is not None and process_group is not None:
        raise ValueError(f"group_size is {group_size}, and a process_group splits the features that groups are of")


def total(a: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum over the ranks of a group, the same on each; `a` itself without one. It has no gradient of its own."""
    if group is None:
        return settled(a)
    summed = a.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed, group=group)
    return summed


def settled(a: Tensor) -> Tensor:
    """A DTensor with the sums over ranks made that it has put off, before it is rounded; any other tensor as it is."""
    placements: Any = getattr(a, "placements", ())
    if not any(each.is_partial() for each in placements):
        return a
    from torch.distributed.tensor import Replicate

    made: Any = [Replicate() if each.is_partial() else each for each in placements]
    return a.redistribute(placements=made)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def row_means(*of: Tensor, group: ProcessGroup | None = None) -> tuple[Tensor, ...]:
    """The means over the last axis, which is kept: [*batch, d] to [*batch, 1].

    With a group the last axis is split over its ranks, in parts of any widths, and all means take one sum: the widths travel
    with the rows.
    """
    if group is None:
        return tuple(settled(each.mean(dim=-1, keepdim=True)) for each in of)
    sums = torch.cat([each.sum(dim=-1, keepdim=True) for each in of], dim=-1)  # *batch k
    width = sums.new_zeros(1) + of[0].shape[-1]  # 1
    everything = total(torch.cat([sums.flatten(), width]), group)
    means = (everything[:-1] / everything[-1]).reshape(sums.shape)  # *batch k
    return means.split(1, dim=-1)


def summed(a: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum over the ranks, as a part of each rank's own computation: its cotangent is summed over them, too."""
    return a if group is None else _Collective.apply(a, group, total, total)


def whole(parameter: Tensor, group: ProcessGroup | None) -> Tensor:
    """A parameter that every rank has whole, and uses on rows of its own: its cotangent is summed over the ranks."""
    return parameter if group is None else _Collective.apply(parameter, group, _itself, total)


def gathered(a: Tensor, group: ProcessGroup | None) -> Tensor:
    """A sequence of which each rank has an even part, whole on all of them, [*batch, s / ranks, d] to [*batch, s, d].

    Each rank reads all of it, so its cotangent is summed over them, and each is given its own part.
    """
    return a if group is None else _Collective.apply(a, group, _all_gather, _reduce_scatter)


def scattered(a: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum over the ranks of a whole sequence, of which each is given its part: [*batch, s, d] to [*batch, s / ranks, d]."""
    return a if group is None else _Collective.apply(a, group, _reduce_scatter, _all_gather)


def _itself(a: Tensor, group: ProcessGroup) -> Tensor:
    return a.view_as(a)


def _all_gather(a: Tensor, group: ProcessGroup) -> Tensor:
    parts = [torch.empty_like(a, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, a.contiguous(), group)
    return torch.cat(parts, dim=-2)


def _reduce_scatter(a: Tensor, group: ProcessGroup) -> Tensor:
    parts = [part.contiguous() for part in a.chunk(dist.get_world_size(group), dim=-2)]
    own = torch.empty_like(parts[0])
    dist.reduce_scatter(own, parts, group=group)
    return own


class _Collective(torch.autograd.Function):
    """One function of a tensor and a group forward, and one of the cotangent backward."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, group: ProcessGroup, there: Communicate, back: Communicate) -> Tensor:
        ctx.group, ctx.back = group, back
        return there(a, group)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.back(cotangent, ctx.group), None, None, None
