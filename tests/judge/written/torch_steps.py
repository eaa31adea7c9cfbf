"""What the faults in PyTorch share, all of it right.

The compute dtype, the affine step, both norms, a forward and a backward pass written apart, and how a fault is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor

from conformance.numbers.rounding import DTYPES, DType
from tests.judge.written.fault import Fault

HALF: tuple[DType, ...] = ("bfloat16", "float16")
WIDE: tuple[DType, ...] = ("float32", "float64")

Run = Callable[..., Any]

SAME: dict[DType, tuple[tuple[str, str], ...]] = {
    "float64": (
        ("tail_missing_from_statistics", "statistics_of_first_32"),
        ("columns_past_4_not_written", "columns_past_32_not_written"),
    ),
    "float32": (("eps_of_storage_dtype", "eps_of_float32"),),
    "bfloat16": tuple(
        (f"{step}_in_storage_dtype", f"{step}_in_bfloat16") for step in ("weight", "mean", "squares", "mean_square", "rstd")
    ),
    "float16": (
        ("squares_in_storage_dtype", "squares_in_float16"),
        ("tail_missing_from_statistics", "statistics_of_first_32"),
        ("columns_past_4_not_written", "columns_past_32_not_written"),
    ),
}
"""Mistakes that are one and the same in a dtype: the storage dtype has a name, and in some all rows have 33 features."""


class Written:
    """The faults of one op, kept as they are written: a function's name is the fault's id, its docstring says what it does."""

    def __init__(self, op: str) -> None:
        self.op: str = op
        self.faults: list[Fault] = []

    def __call__(
        self, *names: str, group: Literal["all", "forward", "backward"] = "all", dtypes: tuple[DType, ...] = DTYPES
    ) -> Callable[[Run], Run]:
        """Keep a fault under the right `names`; more than once, where a dtype makes other names right too."""

        def keep(run: Run) -> Run:
            by_names: dict[tuple[str, ...], list[DType]] = {}
            for dtype in dtypes:
                by_names.setdefault(_with_same(names, dtype), []).append(dtype)
            for right, among in by_names.items():
                id_ = "/".join(("torch", self.op, run.__name__, *([] if len(among) == len(DTYPES) else ["_".join(among)])))
                what = (run.__doc__ or "").strip()
                self.faults.append(Fault(id_, what, self.op, "torch", run, right, group, tuple(among)))
            return run

        return keep


def _with_same(names: tuple[str, ...], dtype: DType) -> tuple[str, ...]:
    """The names, and those that mean the same in a dtype."""
    same = [pair for pair in SAME[dtype] if set(pair) & set(names)]
    return tuple(dict.fromkeys((*names, *(name for pair in same for name in pair))))


def honest(op: str, run: Run) -> Fault:
    """Code that does nothing wrong."""
    return Fault(f"torch/{op}/{run.__name__}", (run.__doc__ or "").strip(), op, "torch", run)


def upcast(x: Tensor) -> Tensor:
    """x in the compute dtype: float32, or float64 for float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def scale(x_hat: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, weight_offset: float, order: str) -> Tensor:
    """y = x_hat · (weight + offset) + bias, with x_hat or y cast to x's dtype, as the order says."""
    if order == "cast_then_scale":
        return _scale_last(x_hat.to(x.dtype), weight, bias, weight_offset)
    y = x_hat
    if weight is not None:
        y = y * (upcast(weight) + weight_offset)
    if bias is not None:
        y = y + upcast(bias)
    return y.to(x.dtype)


def _scale_last(x_hat: Tensor, weight: Tensor | None, bias: Tensor | None, weight_offset: float) -> Tensor:
    """In the dtype of the parameters; one plus weight is added up in the compute dtype."""
    if weight is None:
        return x_hat if bias is None else x_hat + bias
    y = x_hat * (upcast(weight) + weight_offset if weight_offset else weight)
    return (y if bias is None else y + bias).to(weight.dtype)


def rms_norm(x: Tensor, weight: Tensor | None, bias: None, *, eps: float, **dialect: Any) -> Tensor:
    """RMSNorm: the forward pass beside which a backward pass is written."""
    rows = upcast(x)
    return scale(rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + eps), x, weight, None, **dialect)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, **dialect: Any) -> Tensor:
    """LayerNorm: the forward pass beside which a backward pass is written."""
    centred = upcast(x) - upcast(x).mean(-1, keepdim=True)
    return scale(centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps), x, weight, bias, **dialect)


@dataclass
class Saved:
    """What a forward pass leaves to the backward pass.

    x, y, bias and the `stored` weight are as they were passed. The weight, offset included, the mean and rstd are in the
    compute dtype; an absent weight is ones.
    """

    x: Tensor
    y: Tensor
    stored: Tensor | None
    weight: Tensor
    bias: Tensor | None
    mean: Tensor
    rstd: Tensor
    eps: float

    @property
    def x_hat(self) -> Tensor:
        """The normalised rows, in the compute dtype."""
        return (upcast(self.x) - self.mean) * self.rstd


def sum_rows(a: Tensor) -> Tensor:
    """The sum over every axis but the last."""
    return a.reshape(-1, a.shape[-1]).sum(0)


def rms_norm_backward(saved: Saved, dy: Tensor) -> tuple[Tensor, Tensor]:
    """dx and dweight."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    dx = saved.rstd * (g - x_hat * (g * x_hat).mean(-1, keepdim=True))
    return dx, sum_rows(dy * x_hat)


def layer_norm_backward(saved: Saved, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight and dbias."""
    dy, x_hat = upcast(dy), saved.x_hat
    g = dy * saved.weight
    dx = saved.rstd * (g - g.mean(-1, keepdim=True) - x_hat * (g * x_hat).mean(-1, keepdim=True))
    return dx, sum_rows(dy * x_hat), sum_rows(dy)


def backward_of_rms_norm(backward: Run) -> Run:
    """A backward pass `backward(saved, dy) -> dx, dweight`, beside a forward pass that is right."""
    return _joined(rms_norm, backward, backward, centred=False)


def backward_of_layer_norm(backward: Run) -> Run:
    """A backward pass `backward(saved, dy) -> dx, dweight, dbias`, beside a forward pass that is right."""
    return _joined(layer_norm, backward, backward, centred=True)


def forward_of_rms_norm(forward: Run, backward: Run = rms_norm_backward) -> Run:
    """A forward pass, beside a backward pass that is right unless another is given.

    The forward pass returns y, and the backward pass takes its own statistics; or y, the mean and rstd, which are saved.
    """
    return _joined(forward, backward, forward, centred=False)


def forward_of_layer_norm(forward: Run, backward: Run = layer_norm_backward) -> Run:
    """As `forward_of_rms_norm`."""
    return _joined(forward, backward, forward, centred=True)


def _joined(forward: Run, backward: Run, named: Run, *, centred: bool) -> Run:
    @wraps(named)
    def run(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, **dialect: Any) -> Any:
        return _Joined.apply(x, weight, bias, forward, backward, centred, eps, dialect)

    return run


class _Joined(torch.autograd.Function):
    """A forward and a backward pass that do not know of each other, as a kernel and an eager backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        forward: Run,
        backward: Run,
        centred: bool,
        eps: float,
        dialect: dict[str, Any],
    ) -> Tensor:
        rows = upcast(x)
        mean = rows.mean(-1, keepdim=True) if centred else torch.zeros_like(rows[..., :1])
        rstd = torch.rsqrt((rows - mean).pow(2).mean(-1, keepdim=True) + eps)
        made = forward(x, weight, bias, eps=eps, **dialect)
        y, mean, rstd = made if isinstance(made, tuple) else (made, mean, rstd)
        w = rows.new_ones(x.shape[-1]) if weight is None else upcast(weight) + dialect["weight_offset"]
        ctx.save_for_backward(x, y, weight, w, bias, mean, rstd)
        ctx.eps, ctx.backward_pass = eps, backward
        return y

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - a cotangent for the only output
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, y, stored, weight, bias, mean, rstd = ctx.saved_tensors
        dx, *of_parameters = ctx.backward_pass(Saved(x, y, stored, weight, bias, mean, rstd, ctx.eps), dy)
        dweight = None if stored is None else of_parameters[0].to(stored.dtype)
        dbias = None if bias is None else of_parameters[1].to(bias.dtype)
        return dx.to(x.dtype), dweight, dbias, None, None, None, None, None
