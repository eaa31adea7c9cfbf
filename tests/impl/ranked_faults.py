"""Norms on several ranks in plain torch, over gloo, by autograd; and what people do wrong who write them.

Served as `tests.impl.ranked_faults:Faulty`: a case's name begins with the fault that it is answered with.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from examples.ranks import Sum, Whole
from impl_torch.port import TorchPort


class Honest(TorchPort):
    """Each step that ranks have to agree about is a method, for a fault to alter."""

    name = "torch on ranks"
    splits = ("rows", "features")
    orders = ("scale_then_cast",)
    weight_offsets = (0,)

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=False)
        self.compiles = False
        dist.init_process_group("gloo")
        self.size = dist.get_world_size()

    def rms_norm(self, x: Tensor, weight: Tensor | None, *, eps: float, **_: Any) -> Tensor:
        row = wide(x)
        return self.scaled(row * self.rstd(row, eps), weight, None).to(x.dtype)

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, **_: Any) -> Tensor:
        centred = wide(x) - self.mean(wide(x))
        return self.scaled(centred * self.rstd(centred, eps), weight, bias).to(x.dtype)

    def batch_norm(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        training: bool,
        momentum: float = 0.0,
        unbiased: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert training
        mean = self.mean(wide(x))
        centred = wide(x) - mean
        var = self.variance(wide(x), centred)
        y = self.scaled(centred * self.root(var, eps), weight, bias).to(x.dtype)
        rows = self.rows(x)
        kept = var * (rows / (rows - 1)) if unbiased else var
        moved = [(1 - momentum) * old + momentum * new.flatten() for old, new in ((running_mean, mean), (running_var, kept))]
        return y, *moved

    @property
    def reduces(self) -> bool:
        """Whether what the statistics are over is split."""
        return self.call.split == ("rows" if self.call.op == "batch_norm" else "features")

    def sum(self, a: Tensor) -> Tensor:
        """Over what the statistics are, of all ranks."""
        own = a.sum(self.axes(a), keepdim=True)
        return Sum.apply(own) if self.reduces else own

    def mean(self, a: Tensor) -> Tensor:
        return self.sum(a) / (self.sum(torch.ones_like(a)) if self.reduces else self.own_count(a))

    def variance(self, x: Tensor, centred: Tensor) -> Tensor:
        return self.mean(centred.square())

    def rstd(self, row: Tensor, eps: float) -> Tensor:
        return self.root(self.mean(row.square()), eps)

    def root(self, mean_square: Tensor, eps: float) -> Tensor:
        return torch.rsqrt(mean_square + eps)

    def rows(self, x: Tensor) -> float:
        """The number of a batch's rows."""
        own = torch.tensor(float(self.own_count(x)))
        return float(Sum.apply(own)) if self.reduces else float(own)

    def scaled(self, x_hat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y = x_hat if weight is None else x_hat * self.parameter(weight, x_hat.dtype)
        return y if bias is None else y + self.parameter(bias, x_hat.dtype)

    def parameter(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        return Whole.apply(a.to(dtype)) if self.call.split == "rows" else a.to(dtype)

    def axes(self, a: Tensor) -> tuple[int, ...]:
        return tuple(range(a.ndim - 1)) if self.call.op == "batch_norm" else (-1,)

    def own_count(self, a: Tensor) -> int:
        return a[..., 0].numel() if self.call.op == "batch_norm" else a.shape[-1]

    def averaged(self, a: Tensor) -> Tensor:
        return Sum.apply(a) / self.size


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class OwnStatistics(Honest):
    """torch.nn.BatchNorm where SyncBatchNorm belongs; exllamav3#141."""

    reduces = False


class MeanOfMeans(Honest):
    """pytorch#22192."""

    def mean(self, a: Tensor) -> Tensor:
        own = a.sum(self.axes(a), keepdim=True) / self.own_count(a)
        return self.averaged(own) if self.reduces else own


class MeanOfVariances(Honest):
    def variance(self, x: Tensor, centred: Tensor) -> Tensor:
        own = x.var(self.axes(x), unbiased=False, keepdim=True)
        return self.averaged(own) if self.reduces else own


class MeanOfRstds(Honest):
    """Where the averaged mean square belongs."""

    def rstd(self, row: Tensor, eps: float) -> Tensor:
        own = self.root(row.square().mean(-1, keepdim=True), eps)
        return self.averaged(own) if self.reduces else own


class OverOwnWidth(Honest):
    def mean(self, a: Tensor) -> Tensor:
        return self.sum(a) / self.own_count(a)


class EpsOfEveryRank(Honest):
    def root(self, mean_square: Tensor, eps: float) -> Tensor:
        return super().root(mean_square, eps * self.size if self.reduces else eps)


class SumsInStorage(Honest):
    """The all-reduce is in the dtype of the activations."""

    def mean(self, a: Tensor) -> Tensor:
        if not self.reduces:
            return super().mean(a)
        own = a.sum(self.axes(a), keepdim=True).to(getattr(torch, self.call.dtype))
        return Sum.apply(own).to(a.dtype) / self.call.shape[-1]


class UnbiasedByOwnRows(Honest):
    """R/(R - 1) with R the rows of a rank."""

    def rows(self, x: Tensor) -> float:
        return self.own_count(x)


class WeightNotSplit(Honest):
    """Parameters are broadcast from rank 0, as those that are whole are."""

    def parameter(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        first = a.detach().clone()
        dist.broadcast(first, 0)
        return super().parameter(a + (first - a).detach(), dtype)


class NotReduced(Honest):
    """Megatron-LM#1446."""

    def parameter(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        return a.to(dtype)


class Averaged(Honest):
    """gpt-neox#1259."""

    def parameter(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        whole = super().parameter(a, dtype)
        return whole / self.size + (whole - whole / self.size).detach() if self.call.split == "rows" else whole


class ReducedTwice(Honest):
    """Megatron-LM#1528: by the layer, and by the optimizer once more."""

    def parameter(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        return Whole.apply(super().parameter(a, dtype)) if self.call.split == "rows" else a.to(dtype)


class ReducedInHalf(Honest):
    """pytorch#190626: the gradient is reduced in the dtype of the parameter."""

    def parameter(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        return (Whole.apply(a) if self.call.split == "rows" else a).to(dtype)


class Faulty(Honest):
    """Any of them."""

    def run(self, call: Any, given: Any) -> Any:
        self.__class__ = globals()[call.case.rpartition("/")[2].partition("-")[0]]
        try:
            return self.run(call, given)
        finally:
            self.__class__ = Faulty
