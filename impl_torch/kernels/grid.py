"""How kernels are laid over rows: what every launch of them decides."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TRITONS = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

NUMBERS = 2048  # that a program reads at once, of as many rows as that takes
HELD_FORWARD, HELD_BACKWARD = 16384, 8192  # numbers of a row that registers hold
WARPS = 16  # on a multiprocessor at once


def as_rows(tensor: Tensor) -> Tensor:
    """[*batch, d] as [rows, d], copied only where rows do not lie at equal distances, or their numbers not side by side."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def side_by_side(parameter: Tensor | None) -> Tensor | None:
    """A parameter, [d] or None, copied where its numbers do not lie side by side."""
    return None if parameter is None else parameter.contiguous()


def tile_of(width: int, held: int) -> dict[str, Any]:
    """How many rows and columns a program works on at once, and how it is compiled.

    The width alone says, so that a row has the same bits in any batch. A product and a sum may be rounded once: without a word
    on it, Triton's versions differ.
    """
    columns = min(triton.next_power_of_2(width), held)
    rows = max(1, NUMBERS // columns)
    warps = min(max(4, columns // 512), 16)
    return {"ROWS": rows, "COLUMNS": columns, "LONG": width > columns, "num_warps": warps, "enable_fp_fusion": True}


def persistent_programs(x: Tensor, n_rows: int, groups: int, tile: dict[str, Any]) -> int:
    """How many programs walk the rows of a group: as many as run at once, and no more than there are tiles.

    In the interpreter they are few, so that a program has rows to add up there too.
    """
    multiprocessors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
    at_once = multiprocessors * max(1, WARPS // tile["num_warps"])
    return min(triton.cdiv(n_rows, tile["ROWS"]), max(1, at_once // groups))
