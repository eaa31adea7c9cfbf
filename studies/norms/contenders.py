"""What is compared, by the name that the figures have for it: norms, by whose code they are computed, and roots."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

import impl_torch

EPS = 1e-5  # for all alike; torch.nn.RMSNorm's own default is the machine epsilon

Root = Literal["rsqrt", "1/sqrt", "division by sqrt"]


class NotedRMSNorm(nn.Module):
    """The notes' RMSNorm, line by line, its backward pass left to autograd; by `rsqrt`, or another way to the same."""

    def __init__(self, width: int, root: Root = "rsqrt") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.root: Root = root

    def forward(self, x: Tensor) -> Tensor:
        """Statistics in float32; cast, then scale."""
        wide = x.float()
        mean_square = wide.pow(2).mean(dim=-1, keepdim=True) + EPS  # *batch 1
        return self.weight * self._normed(wide, mean_square).type_as(x)

    def _normed(self, x: Tensor, mean_square: Tensor) -> Tensor:
        match self.root:
            case "rsqrt":
                return x * torch.rsqrt(mean_square)
            case "1/sqrt":
                return x * (1 / torch.sqrt(mean_square))
            case "division by sqrt":
                return x / torch.sqrt(mean_square)


class BatchNorm(nn.Module):
    """BatchNorm1d in training, which takes rows and their features: the statistics are every feature's over all rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """All axes but the last are one."""
        return self.norm(x.flatten(end_dim=-2)).view_as(x)


class Rsqrt(nn.Module):
    """The root alone, of every element."""

    def forward(self, x: Tensor) -> Tensor:
        """One pass."""
        return torch.rsqrt(x)


class OneOverSqrt(nn.Module):
    """The same in two steps."""

    def forward(self, x: Tensor) -> Tensor:
        """Two passes, where nothing fuses them."""
        return 1 / torch.sqrt(x)


def _none(width: int) -> nn.Module:
    return nn.Identity()


NOTED, OURS, TORCHS = "RMSNorm, the notes' formula", "RMSNorm, impl_torch", "RMSNorm, torch.nn"
OUR_LAYER_NORM, LAYER_NORM = "LayerNorm, impl_torch", "LayerNorm, torch.nn"
BATCH_NORM, NONE = "BatchNorm, torch.nn", "no norm"
ONE_OVER, DIVISION = "the notes' formula by 1/sqrt", "the notes' formula by division"
RSQRT_ALONE, ONE_OVER_ALONE = "rsqrt alone", "1/sqrt alone"

CONTENDERS: Mapping[str, Callable[[int], nn.Module]] = {
    NOTED: NotedRMSNorm,
    OURS: partial(impl_torch.RMSNorm, eps=EPS),
    TORCHS: partial(nn.RMSNorm, eps=EPS),
    OUR_LAYER_NORM: partial(impl_torch.LayerNorm, eps=EPS),
    LAYER_NORM: partial(nn.LayerNorm, eps=EPS),
    BATCH_NORM: BatchNorm,
    NONE: _none,
    ONE_OVER: partial(NotedRMSNorm, root="1/sqrt"),
    DIVISION: partial(NotedRMSNorm, root="division by sqrt"),
    RSQRT_ALONE: lambda width: Rsqrt(),
    ONE_OVER_ALONE: lambda width: OneOverSqrt(),
}
"""A module of so many features, by its name."""
