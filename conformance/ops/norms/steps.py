"""The numbers of one evaluation of a norm, by name, and how they may be rounded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from conformance.numbers.rounding import DType, Rounding
from conformance.ops.norms.values import Running, by_feature

Array = np.ndarray
Step = Literal[
    "x",
    "weight",
    "bias",
    "mean",
    "centred",
    "squares",
    "mean_square",
    "rstd",
    "x_hat",
    "normed",
    "y",
    "dy_x_hat",
    "dweight",
    "dbias",
]
Precision = DType | Literal["storage"] | int | Rounding
"""A dtype; x's own; a number of significant bits; or a dtype with a mode of rounding."""

NOTHING: Mapping = MappingProxyType({})


@dataclass(frozen=True)
class Steps:
    """The numbers of one evaluation, under the names that a mistake's alteration calls them by; they broadcast against x.

    `w` and `b` are what multiplies x_hat and what is added to it; `g` is dy times the weight of the backward pass. x and dy are
    what the norm is given, and y what it makes, whatever stands before it or after it.
    """

    x: Array
    dy: Array
    row_mean: Array
    centred: Array
    shifted: Array
    mean_square: Array
    rstd: Array
    x_hat: Array
    w: Array
    b: Array
    y: Array
    g: Array


Paths = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Batch:
    """What BatchNorm has besides: its running statistics, whether it normalises by the batch's own, and how it moves them.

    `updates` is whether it is asked to move them, and c = `correction`(R) makes a variance of R rows the one that it keeps.
    """

    mean: Array
    var: Array
    training: bool
    updates: bool
    momentum: float
    correction: Callable[[int], float]
    update: Callable[[Array, Array, float], Array] = lambda old, new, momentum: (1 - momentum) * old + momentum * new
    kept: Callable[[Array, float], Array] = lambda var, eps: var  # what of the batch's variance is kept
    statistic: Callable[[Array, int], Array] = by_feature  # and of a statistic that is not the same in every row

    def running(self, mean: Array, var: Array, rows: int, eps: float) -> Running:
        """The running statistics after a batch of R rows with this mean and biased variance, each [d]."""
        correction = self.correction(rows)
        return Running(
            mean=self.update(self.mean, mean, self.momentum),
            var=self.update(self.var, self.kept(correction * var, eps), self.momentum),
            old_mean=self.mean,
            old_var=self.var,
            share=self.momentum,
            var_share=self.momentum * correction,
        )
