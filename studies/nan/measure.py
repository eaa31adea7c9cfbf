"""A model that turns NaN, trained again with every remedy: its layers step by step, and where it broke."""

import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from conformance.numbers.rounding import DType
from conformance.numbers.tensors import read_dump
from conformance.tools.locating.locate import Location, locate
from impl_torch import PreLNBlock
from impl_torch.dump import dump_activations
from studies.language_model import CONFIG, LanguageModel, Placement
from studies.nan.opened import Opened
from studies.training import HELD_OUT, read_text, training

Init = Literal["small", "Kaiming", "Xavier", "normal"]

LAYERS = 16
NARROW = replace(CONFIG, d_model=32, d_head=8, d_ff=88)  # float16 is slow on a CPU that has no instructions for it
BATCH = 4
LAST = 10  # steps, over which the final loss is averaged
RATE, LOWER = 1e-2, 5e-3


@dataclass(frozen=True)
class Setup:
    """One training run; without any remedy it has no norm, a high rate from the first step on, and float16."""

    remedy: str = "none"
    placement: Placement = "none"
    init: Init = "small"
    rate: float = RATE
    warm_up: int = 0
    clip: float | None = None
    dtype: DType = "float16"
    steps: int = 100
    seed: int = 0


CHANGES: dict[str, dict[str, Any]] = {
    "none": {},
    "Pre-LN, RMSNorm": {"placement": "pre"},
    "lower rate, warm-up": {"rate": 1e-3, "warm_up": 20},
    "Kaiming": {"init": "Kaiming"},
    "Xavier": {"init": "Xavier"},
    "clipping": {"clip": 1.0},
    "bfloat16": {"dtype": "bfloat16"},
}
ALL = "all together"
REMEDIES = CHANGES | {ALL: {name: value for change in CHANGES.values() for name, value in change.items()}}
CHECKS: dict[str, dict[str, Any]] = {"float32": {"dtype": "float32"}, "broad": {"init": "normal"}}
DTYPES = ("none", "bfloat16", "float32")  # float16, and the others

NOT_BROKEN: dict[str, Any] = {
    "first": None,
    "layer": None,
    "weights_finite": None,
    "in_float32": None,
    "statistics": [],
    "layer_std": [],
}


def setups(quick: bool) -> Sequence[Setup]:
    """Every remedy alone and all together, for five seeds; for one where it is to be quick, and as long as it takes to tell."""
    seeds, steps, learning = (1, 12, 80) if quick else (5, 100, 100)
    changes = REMEDIES | CHECKS
    high = [Setup(name, **changes[name], steps=learning if name == ALL else steps) for name in changes]
    lower = [replace(setup, rate=LOWER) for setup in high if setup.remedy in DTYPES]
    return [replace(setup, seed=seed) for setup in high + lower for seed in range(seeds)]


def measure(setup: Setup) -> dict[str, Any]:
    """Train until the loss is not finite, or for as many steps as there are; then look where it broke."""
    with one_thread():
        torch.manual_seed(setup.seed)
        model = build(setup)
        watch = Watch(model)
        steps = training(
            model,
            rate=setup.rate,
            warm_up=setup.warm_up,
            clip=setup.clip or inf,
            batch=BATCH,
            dtype=getattr(torch, setup.dtype),
        )
        losses, underflow = list[float](), 0.0
        for step in islice(steps, setup.steps):
            if not isfinite(step.loss):
                break
            losses.append(step.loss)
            underflow = underflow if losses[1:] else zeros(model)
        survived = len(losses)
        found = {
            "survived": survived,
            "final": _digits(sum(losses[-LAST:]) / LAST) if survived == setup.steps else None,
            "unigram": _digits(unigram_entropy()),
            "underflow": _digits(underflow) if losses else None,
            "loss": _short(losses),
            "peak": _short(max(peaks) for _, peaks in watch.layers[:survived]),
        }
        return found | (NOT_BROKEN if survived == setup.steps else located(setup, watch))


def build(setup: Setup) -> LanguageModel:
    """The model before its first step; `normal` draws all matrices of its layers with a deviation of one."""
    if setup.init != "normal":
        return LanguageModel(NARROW, LAYERS, setup.placement, setup.init)
    model = LanguageModel(NARROW, LAYERS, setup.placement)
    for matrix in (parameter for parameter in model.stack.parameters() if parameter.ndim == 2):
        nn.init.normal_(matrix)
    return model


def zeros(model: LanguageModel) -> float:
    """The share of zeros among the gradients of the layers' matrices."""
    gradients = [p.grad.flatten() for p in model.stack.parameters() if p.ndim == 2 and p.grad is not None]
    return torch.cat(gradients).eq(0).double().mean().item()


class Watch:
    """Hooks that keep, for every step, each layer's deviation and largest magnitude; and what the last step began with."""

    def __init__(self, model: LanguageModel) -> None:
        self.layers: list[tuple[list[float], list[float]]] = []
        model.register_forward_pre_hook(self._begin)
        for block in model.stack.children():
            block.register_forward_hook(self._keep)

    def _begin(self, model: nn.Module, args: tuple[Tensor]) -> None:
        self.began = {name: tensor.clone() for name, tensor in model.state_dict().items()}, args[0]
        self.layers.append(([], []))

    def _keep(self, block: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
        values = y.detach().double()
        std, peak = self.layers[-1]
        std.append(values.std().item())
        peak.append(values.abs().max().item())


def located(setup: Setup, watch: Watch) -> dict[str, Any]:
    """The first activation that is not finite, what float32 has there, and every layer's statistics."""
    location = compared(setup, *watch.began)
    first = next(finding for finding in location.findings if finding.b and finding.b.broken)
    weights, _ = watch.began
    by_name = {finding.name: finding.b for finding in location.findings}
    layers = [statistics for layer in range(LAYERS) if (statistics := by_name[f"stack.{layer}"])]
    return {
        "first": first.name,
        "layer": next(layer for layer, statistics in enumerate(layers) if statistics.broken),
        "weights_finite": all(bool(tensor.isfinite().all()) for tensor in weights.values()),
        "in_float32": _digits(max(abs(first.a.min), abs(first.a.max))) if first.a and not first.a.broken else None,
        "statistics": [[_digits(v) for v in (s.mean, s.std, s.min, s.max, s.non_finite)] for s in layers],
        "layer_std": [[_digits(std) for std in deviations] for deviations, _ in watch.layers],
    }


def compared(setup: Setup, weights: dict[str, Tensor], text: Tensor) -> Location:
    """Dump a step in float32 and in the dtype of the run, and locate where they part; names in data-flow order."""
    model, dtype = build(setup), getattr(torch, setup.dtype)
    model.load_state_dict(weights)
    if setup.placement == "none":
        blocks = (block for block in model.stack if isinstance(block, PreLNBlock))
        model.register_module("stack", nn.Sequential(*map(Opened, blocks)))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        a, b = Path(folder) / "float32.safetensors", Path(folder) / f"{setup.dtype}.safetensors"
        dump_activations(model, a, text)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            dump_activations(model, b, text)
        first, second = read_dump(a).tensors, read_dump(b).tensors
        return locate(first, second, first)


def unigram_entropy() -> float:
    """The loss of who knows how often each byte occurs in the text that is trained on, and nothing else, in nats."""
    shares = torch.bincount(read_text()[:-HELD_OUT]).double() / (len(read_text()) - HELD_OUT)
    return -torch.special.xlogy(shares, shares).sum().item()


@contextmanager
def one_thread() -> Generator[None]:
    """Sums in one order, on however many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _short(values: Iterable[float]) -> list[float | None]:
    return [_digits(value) for value in values]


def _digits(value: float) -> float | None:
    """Four of them; JSON has neither NaN nor infinity."""
    return float(f"{value:.4g}") if isfinite(value) else None
