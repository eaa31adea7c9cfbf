"""What the faults in PyTorch share, all of it right: the compute dtype, the affine step, and how a fault is kept."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from conformance.case import Op
from conformance.rounding import DTYPES, DType
from tests.judge.written.fault import Fault

HALF: tuple[DType, ...] = ("bfloat16", "float16")
WIDE: tuple[DType, ...] = ("float32", "float64")

Run = Callable[..., Any]


class Written:
    """The faults of one op, kept as they are written: a function's name is the fault's id, its docstring says what it does."""

    def __init__(self, op: Op) -> None:
        self.op: Op = op
        self.faults: list[Fault] = []

    def __call__(
        self, *names: str, group: Literal["all", "forward", "backward"] = "all", dtypes: tuple[DType, ...] = DTYPES
    ) -> Callable[[Run], Run]:
        """Keep a fault under the right `names`; twice, where another dtype makes other names right."""

        def keep(run: Run) -> Run:
            of_dtypes = "" if dtypes == DTYPES else f"/{'_'.join(dtypes)}"
            id_ = f"torch/{self.op}/{run.__name__}{of_dtypes}"
            self.faults.append(Fault(id_, (run.__doc__ or "").strip(), self.op, "torch", run, names, group, dtypes))
            return run

        return keep


def honest(op: Op, run: Run) -> Fault:
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
