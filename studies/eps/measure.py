"""RMSNorm with statistics in x's dtype and in float32, element by element against the golden's intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from conformance.numbers.rounding import HALF, NUMPY_DTYPES, DType, store, ulp
from conformance.ops.norms.cases import NormCase
from conformance.ops.norms.expected import expected_outputs
from conformance.ops.norms.golden import norm_values
from conformance.question.dialects import Dialect
from impl_torch import rms_norm

Array = np.ndarray
Statistics = Literal["in x's dtype", "in float32"]

DTYPES: tuple[DType, ...] = ("float16", "bfloat16", "float32")
EPS = (1e-5, 1e-6, 1e-8, 1e-12)
SCALES = (0.0, *(float(f"1e{power}") for power in range(-8, 5)))
STATISTICS: tuple[Statistics, ...] = get_args(Statistics)
WIDTH = 512  # MiniMind-small's

# From harmless to fatal; an output is called by the worst thing that happened to any of its elements.
OUTCOMES = ("right", "rounded", "off", "zero", "infinite", "NaN")
ROUNDED = 4  # ulps: what the few roundings of a formula may come to; what is further off has lost digits elsewhere


@dataclass(frozen=True)
class Setup:
    """One call: rows of normal deviates times `scale`, in a dtype; a scale of 0 is a row of zeros."""

    dtype: DType
    statistics: Statistics
    eps: float
    scale: float
    seed: int


def setups(quick: bool) -> Sequence[Setup]:
    """All of them, for three draws; for one where it is to be quick."""
    return [Setup(*one) for one in product(DTYPES, STATISTICS, EPS, SCALES, range(1 if quick else 3))]


def measure(setup: Setup, rows: int = 16) -> dict[str, Any]:
    """What became of the elements of y, and why."""
    eps = float(np.float32(setup.eps))  # the number that float32 has of it, for all alike
    deviates = np.random.default_rng(setup.seed).normal(size=(rows, WIDTH))
    x = store(setup.scale * deviates, setup.dtype)
    tensor = torch.from_numpy(x.astype(np.float32)).to(getattr(torch, setup.dtype))  # exact: x is of that dtype already
    y, why = _in_the_dtype_of(tensor, eps) if setup.statistics == "in x's dtype" else (rms_norm(tensor, eps=eps), "")
    found = _compared(setup, x, eps, y.to(torch.float64).numpy())
    return found | {"why": "" if found["outcome"] == "right" else why}


def _in_the_dtype_of(x: Tensor, eps: float) -> tuple[Tensor, str]:
    """MiniMind's RMSNorm, its `.float()` taken out; and the worst that happened on the way."""
    squares = x.pow(2)
    mean_square = squares.mean(dim=-1, keepdim=True)
    with_eps = mean_square + eps
    y = x * torch.rsqrt(with_eps)
    events = {
        "a square overflows": squares.isinf(),
        "the sum of the squares overflows": mean_square.isinf(),
        "eps and the squares underflow to zero": with_eps == 0,
        "the squares underflow to zero": (mean_square == 0) & (x != 0).any(dim=-1, keepdim=True),
        "the mean square plus eps is subnormal": with_eps < torch.finfo(x.dtype).tiny,
    }
    return y, next((event for event, seen in events.items() if seen.any()), "every step is rounded")


def _compared(setup: Setup, x: Array, eps: float, y: Array) -> dict[str, Any]:
    """The elements outside the golden's intervals, by kind; the worst error of those that are finite."""
    dialect = Dialect("scale_then_cast" if setup.dtype in HALF else "either_order")
    case = NormCase("eps", "eps", x.shape, eps, weight="absent", bias=False, dialect=dialect, dtype=setup.dtype)
    norm, _ = norm_values(case, {"x": x, "dy": np.ones(x.shape, NUMPY_DTYPES[setup.dtype])})
    expected = expected_outputs(case.dtype, norm, dialect, {"y": setup.dtype})["y"]
    outside, nearest = ~expected.admits(y), expected.nearest.astype(np.float64)
    error = np.where(outside, np.abs(y - norm.y) / ulp(norm.y, setup.dtype), 0.0)
    kinds = {
        "NaN": np.isnan(y),
        "infinite": np.isinf(y),
        "zero": outside & (y == 0) & (nearest != 0),
        "off": outside & (error > ROUNDED),
        "rounded": outside,
    }
    finite = error[np.isfinite(y)]
    return {
        "outcome": next((kind for kind, seen in kinds.items() if seen.any()), "right"),
        "outside": round(float(np.mean(outside)), 6),
        "error": float(f"{np.max(finite):.4g}") if finite.size else None,
        "rms": float(f"{np.sqrt(np.mean(np.square(norm.y))):.4g}"),
    }
