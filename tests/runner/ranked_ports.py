"""Norms on several ranks in NumPy, summed by the standard library alone, and what can go wrong with ranks.

Served as `tests.runner.ranked_ports:Class`.
"""

import os
import signal
import time
from multiprocessing.connection import Client, Listener
from typing import Any

import numpy as np

from conformance.port import Port

Array = np.ndarray


class Ranks:
    """All ranks, each joined to rank 0, which adds up what they send it."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if self.rank:
            self.others = [_patiently(address)]
            self.others[0].send(self.rank)
        else:
            with Listener(address, backlog=self.size) as listener:
                accepted = [listener.accept() for _ in range(self.size - 1)]
            self.others = sorted(accepted, key=lambda other: other.recv())  # sums are in the order of ranks

    def sum(self, a: Array) -> Array:
        """The sum over all ranks, the same on each to the bit."""
        if self.rank:
            self.others[0].send(a)
            return self.others[0].recv()
        total = a + np.zeros_like(a)
        for other in self.others:
            total = total + other.recv()
        for other in self.others:
            other.send(total)
        return total


def _patiently(address: tuple[str, int]) -> Any:
    until = time.monotonic() + 10
    while True:
        try:
            return Client(address)
        except ConnectionRefusedError:
            assert time.monotonic() < until, "rank 0 does not listen"
            time.sleep(0.01)


class Honest(Port):
    """Both norms with gradients; each step that ranks have to agree about is a method, for a mistake to alter."""

    name = "numpy on ranks"
    splits = ("rows", "features")
    orders = ("scale_then_cast",)
    weight_offsets = (0,)

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        self.ranks = Ranks()

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float) -> Array:
        return self.forward(x, weight, None, eps, centred=False)[0]

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, *, eps: float) -> Array:
        return self.forward(x, weight, bias, eps, centred=True)[0]

    def mean(self, a: Array) -> Array:
        """The mean of rows, of which each rank may have a part."""
        if self.call.split == "rows":
            return a.mean(axis=-1, keepdims=True)
        return self.ranks.sum(a.sum(axis=-1, keepdims=True)) / a.dtype.type(self.call.shape[-1])

    def mean_of_g(self, a: Array) -> Array:
        """The same, in the backward pass."""
        return self.mean(a)

    def rstd(self, row: Array, eps: float) -> Array:
        """1 / sqrt(mean square + eps)."""
        return 1 / np.sqrt(self.mean(row * row) + row.dtype.type(eps))

    def summed(self, a: Array, dtype: Any) -> Array:
        """The gradient of a parameter, from this rank's rows: over all ranks where rows are split, then rounded."""
        return (self.ranks.sum(a) if self.call.split == "rows" else a).astype(dtype)

    @np.errstate(all="ignore")
    def forward(
        self, x: Array, weight: Array | None, bias: Array | None, eps: float, *, centred: bool
    ) -> tuple[Array, Array, Array]:
        compute = np.float64 if x.dtype == np.float64 else np.float32
        row = x.astype(compute)
        row = row - self.mean(row) if centred else row  # *batch d
        rstd = self.rstd(row, eps)  # *batch 1
        x_hat = row * rstd  # *batch d
        y = x_hat if weight is None else x_hat * weight.astype(compute)
        y = y if bias is None else y + bias.astype(compute)
        return y.astype(x.dtype), x_hat, rstd

    @np.errstate(all="ignore")
    def vjp(self, function: Any, inputs: tuple, dy: Array, constants: dict[str, Any]) -> tuple[Array, tuple]:
        x, weight, bias = inputs if len(inputs) == 3 else (*inputs, None)
        centred = function == self.layer_norm
        y, x_hat, rstd = self.forward(x, weight, bias, constants["eps"], centred=centred)
        compute, batch = x_hat.dtype, tuple(range(x.ndim - 1))
        dy = dy.astype(compute)
        g = dy if weight is None else dy * weight.astype(compute)  # *batch d
        shift = self.mean_of_g(g) if centred else 0  # *batch 1
        dx = rstd * (g - shift - x_hat * self.mean_of_g(g * x_hat))  # *batch d
        dweight = None if weight is None else self.summed((dy * x_hat).sum(axis=batch), weight.dtype)  # d
        dbias = None if bias is None else self.summed(dy.sum(axis=batch), bias.dtype)  # d
        return y, (dx.astype(x.dtype), dweight, dbias)[: len(inputs)]


class OnVictim(Honest):
    """Goes wrong on rank 1, in the case `zero_rows`."""

    def run(self, call, given):
        if call.rank == 1 and "/zero_rows." in call.case:
            self.fail()
        return super().run(call, given)

    def fail(self) -> None:
        raise NotImplementedError


class Raises(OnVictim):
    def fail(self) -> None:
        raise ValueError("no zeros here")


class Dies(OnVictim):
    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(OnVictim):
    def fail(self) -> None:
        time.sleep(1000)


class AnswersAnother(OnVictim):
    def run(self, call, given):
        if call.rank == 1 and "/zero_rows." in call.case:
            object.__setattr__(call, "id", 4711)
        return super(OnVictim, self).run(call, given)


class DiesAtBirth(Honest):
    """Rank 1 ends before it has said hello, which rank 0 waits for."""

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        if os.environ["RANK"] == "1":
            os._exit(5)
        super().__init__(device, jit=jit)


class WholeY(Honest):
    """Rank 1 returns two rows too many."""

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float) -> Array:
        y = super().rms_norm(x, weight, eps=eps)
        return np.concatenate([y, y]) if self.call.rank else y

    def vjp(self, function: Any, inputs: tuple, dy: Array, constants: dict[str, Any]) -> tuple[Array, tuple]:
        return function(*inputs, **constants), super().vjp(function, inputs, dy, constants)[1]


# Wrong by arithmetic: what people do who sum over ranks.


class DweightOfOwnRows(Honest):
    def summed(self, a: Array, dtype: Any) -> Array:
        return a.astype(dtype)


class DweightAveraged(Honest):
    def summed(self, a: Array, dtype: Any) -> Array:
        return super().summed(a / a.dtype.type(self.ranks.size), dtype) if self.call.split == "rows" else a.astype(dtype)


class DweightSummedTwice(Honest):
    def summed(self, a: Array, dtype: Any) -> Array:
        return super().summed(self.ranks.sum(a) if self.call.split == "rows" else a, dtype)


class DweightSummedInStorage(Honest):
    def summed(self, a: Array, dtype: Any) -> Array:
        return super().summed(a.astype(dtype), dtype)


class OwnStatistics(Honest):
    def mean(self, a: Array) -> Array:
        return a.mean(axis=-1, keepdims=True)

    def mean_of_g(self, a: Array) -> Array:
        return super().mean(a)


class OwnMeansInBackward(Honest):
    def mean_of_g(self, a: Array) -> Array:
        return a.mean(axis=-1, keepdims=True)


class MeanOfMeans(Honest):
    """Parts of 17 and of 16 features count alike."""

    def mean(self, a: Array) -> Array:
        own = a.mean(axis=-1, keepdims=True)
        return own if self.call.split == "rows" else self.ranks.sum(own) / a.dtype.type(self.ranks.size)


class RstdsAveraged(Honest):
    def rstd(self, row: Array, eps: float) -> Array:
        own = 1 / np.sqrt((row * row).mean(axis=-1, keepdims=True) + row.dtype.type(eps))
        return own if self.call.split == "rows" else self.ranks.sum(own) / row.dtype.type(self.ranks.size)


class EpsOnEveryRank(Honest):
    def rstd(self, row: Array, eps: float) -> Array:
        return super().rstd(row, eps * self.ranks.size if self.call.split == "features" else eps)


class OwnWidth(Honest):
    def mean(self, a: Array) -> Array:
        mean = super().mean(a)
        return mean if self.call.split == "rows" else mean * a.dtype.type(self.call.shape[-1] / a.shape[-1])


# Wrong by arithmetic that has nothing to do with ranks, though two of them would make the same numbers of one split.


class EpsTwice(Honest):
    def rstd(self, row: Array, eps: float) -> Array:
        return super().rstd(row, 2 * eps)


class DweightTwice(Honest):
    def summed(self, a: Array, dtype: Any) -> Array:
        return super().summed(2 * a, dtype)


class Mistaken(Honest):
    """Makes the mistake that a case's name begins with, so that one group of processes makes them all."""

    def run(self, call, given):
        mistake = call.case.rpartition("/")[2].partition("-")[0]
        self.__class__ = globals()[mistake]
        try:
            return self.run(call, given)
        finally:
            self.__class__ = Mistaken
