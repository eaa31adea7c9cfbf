"""A case's tensors in parts, one for each rank, and the parts of its outputs joined."""

from collections.abc import Mapping, Sequence

import numpy as np

from conformance.question.case import Case, split_over_ranks

Array = np.ndarray


class PartError(ValueError):
    """A rank's outputs that cannot be joined with the others'; the message names the rank."""


def bounds(size: int, ranks: int) -> tuple[slice, ...]:
    """What each rank has of an axis: parts of ⌈size / ranks⌉, the last of them shorter or empty, as those of `torch.chunk`.

    >>> bounds(5, 4)
    (slice(0, 2, None), slice(2, 4, None), slice(4, 5, None), slice(5, 5, None))
    """
    part = -(-size // ranks)
    return tuple(slice(min(rank * part, size), min((rank + 1) * part, size)) for rank in range(ranks))


def axis(case: Case, shape: tuple[int, ...]) -> int | None:
    """The axis along which a case's tensor of this shape is split; None for one that every rank has whole.

    Rows are split along the first axis of what is as large as the batch, features along the last of what has x's width.
    """
    split = split_over_ranks(case.layout)
    if split == "rows" and len(shape) > 1:
        return 0
    if split == "features" and shape[-1:] == case.shape[-1:]:
        return len(shape) - 1
    return None


def cut(case: Case, tensors: Mapping[str, Array], ranks: int) -> tuple[dict[str, Array], ...]:
    """A case's tensors as each rank has them."""
    return tuple({name: _part(case, tensor, rank, ranks) for name, tensor in tensors.items()} for rank in range(ranks))


def join(case: Case, parts: Sequence[Mapping[str, Array]], asked: Sequence[str]) -> dict[str, Array]:
    """The outputs of all ranks as one; of what each has whole, rank 0's. Raises `PartError` for an output of another shape."""
    _check(case, parts, asked)
    joined: dict[str, Array] = {}
    for name in asked:
        along = axis(case, case.output_shape(name))
        of_ranks = [part[name] for part in parts]
        joined[name] = of_ranks[0] if along is None else np.concatenate(of_ranks, axis=along)
    return joined


def whole(case: Case, parts: Sequence[Mapping[str, Array]], asked: Sequence[str]) -> dict[str, tuple[Array, ...]]:
    """The outputs that every rank has whole, as each returned them."""
    return {name: tuple(part[name] for part in parts) for name in asked if axis(case, case.output_shape(name)) is None}


def _check(case: Case, parts: Sequence[Mapping[str, Array]], asked: Sequence[str]) -> None:
    ranks = len(parts)
    for name in asked:
        expected = case.output_shape(name)
        for rank, part in enumerate(parts):
            if name not in part:
                raise PartError(f"rank {rank}: output {name!r} is missing: it returned {', '.join(sorted(part)) or 'nothing'}")
            shape = _shape(case, expected, rank, ranks)
            if part[name].shape != shape:
                raise PartError(f"rank {rank}: {name} has shape {list(part[name].shape)}; its part is {list(shape)}")
            if part[name].dtype != parts[0][name].dtype:
                raise PartError(f"rank {rank}: {name} is {part[name].dtype}; on rank 0 it is {parts[0][name].dtype}")


def _part(case: Case, tensor: Array, rank: int, ranks: int) -> Array:
    along = axis(case, tensor.shape)
    return tensor if along is None else tensor[(slice(None),) * along + (bounds(tensor.shape[along], ranks)[rank],)]


def _shape(case: Case, shape: tuple[int, ...], rank: int, ranks: int) -> tuple[int, ...]:
    """The shape of a rank's part of what has this shape in all."""
    along = axis(case, shape)
    if along is None:
        return shape
    of_rank = bounds(shape[along], ranks)[rank]
    return (*shape[:along], of_rank.stop - of_rank.start, *shape[along + 1 :])
