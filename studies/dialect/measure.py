"""Both cast orders on the same input, as a layer and as all norms of a trained model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from conformance.numbers.rounding import DType, ulp
from impl_torch import rms_norm
from studies.dialect.model import evaluate, train

Subject = Literal["weights of one", "powers of two", "weights near one", "normal weights", "a trained model"]

SUBJECTS: tuple[Subject, ...] = get_args(Subject)
MODEL: Subject = "a trained model"
DTYPES: tuple[DType, ...] = ("bfloat16", "float16", "float32")
THEN, NOW = "cast_then_scale", "scale_then_cast"
WIDTH = 512  # MiniMind-small's
STEPS = 300


@dataclass(frozen=True)
class Setup:
    """A layer with such weights, or a model trained for so many steps; `weight_dtype` is that of the parameters."""

    subject: Subject
    dtype: DType
    weight_dtype: DType
    steps: int
    seed: int


def setups(quick: bool) -> Sequence[Setup]:
    """All of them for three seeds; where it is to be quick for two, and a model that has learnt less."""
    seeds, steps = (2, 60) if quick else (3, STEPS)
    layers = [
        Setup(subject, dtype, weight_dtype, 0, seed)
        for subject, dtype in product(SUBJECTS[:-1], DTYPES)
        for weight_dtype in dict.fromkeys((dtype, DTYPES[-1]))
        for seed in range(seeds)
    ]
    return [*layers, *(Setup(MODEL, dtype, dtype, steps, seed) for dtype in DTYPES for seed in range(seeds))]


def measure(setup: Setup) -> dict[str, Any]:
    """How many outputs differ, the dtypes, and a model's losses."""
    if setup.subject != MODEL:
        then, now = _layers(setup)
        return _differences(setup, then, now) | {"loss_then": None, "loss_now": None, "loss_float32": None}
    model = train(setup.steps, setup.seed)
    evaluated = partial(evaluate, model)
    (loss_then, then), (loss_now, now) = (evaluated(order, getattr(torch, setup.dtype)) for order in (THEN, NOW))
    loss_float32, _ = evaluated(THEN, torch.float32)
    losses = {"loss_then": loss_then, "loss_now": loss_now, "loss_float32": loss_float32}
    return _differences(setup, then, now) | {name: round(loss, 7) for name, loss in losses.items()}


def _layers(setup: Setup) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(setup.seed)
    x = torch.randn(256, WIDTH, generator=rng).to(getattr(torch, setup.dtype))
    drawn = torch.randn(WIDTH, generator=rng)
    match setup.subject:
        case "powers of two":
            drawn = torch.exp2(drawn.round())
        case "weights near one":
            drawn = 1 + drawn / 10
        case "normal weights":
            pass
        case _:
            drawn = torch.ones(WIDTH)
    weight = drawn.to(getattr(torch, setup.weight_dtype))
    return rms_norm(x, weight, order=THEN), rms_norm(x, weight, order=NOW)


def _differences(setup: Setup, then: Tensor, now: Tensor) -> dict[str, Any]:
    """The share of outputs that differ once they have x's dtype, and by how much."""
    a, b = (tensor.to(getattr(torch, setup.dtype)).double().numpy() for tensor in (then, now))
    ulps = np.abs(a - b) / ulp(np.maximum(np.abs(a), np.abs(b)), setup.dtype)
    return {
        "differ": round(float(np.mean(a != b)), 6),
        "apart": float(f"{np.sqrt(np.mean(np.square(a - b)) / np.mean(np.square(a))):.4g}"),
        "ulps": None if setup.subject == MODEL else float(np.max(ulps)),
        "dtype_then": str(then.dtype).removeprefix("torch."),
        "dtype_now": str(now.dtype).removeprefix("torch."),
    }
