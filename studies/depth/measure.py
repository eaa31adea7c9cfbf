"""Stacks of Linear and ReLU, normed in front: the deviation of activations and gradients, layer by layer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from impl_torch import LayerNorm, RMSNorm

Norm = Literal["none", "RMSNorm", "LayerNorm", "BatchNorm"]
Init = Literal["default", "Kaiming", "Xavier"]

NORMS: tuple[Norm, ...] = get_args(Norm)
INITS: tuple[Init, ...] = get_args(Init)
LAYERS = (8, 10, 20, 50)
WIDTH = 512  # MiniMind-small's


@dataclass(frozen=True)
class Setup:
    """One stack, fresh from its initialisation, and how many rows it is given."""

    norm: Norm
    init: Init
    residual: bool
    layers: int
    rows: int
    seed: int


def setups(quick: bool) -> Sequence[Setup]:
    """All of them, for five seeds; for two where it is to be quick, on fewer rows."""
    rows, seeds = (64, 2) if quick else (256, 5)
    return [Setup(*one) for one in product(NORMS, INITS, (False, True), LAYERS, (rows,), range(seeds))]


class Layer(nn.Module):
    """ReLU(W·norm(x) + b), added to x where there is a residual."""

    def __init__(self, norm: Norm, init: Init, residual: bool, width: int) -> None:
        super().__init__()
        self.norm = _norm(norm, width)
        self.linear = nn.Linear(width, width)
        self.residual = residual
        match init:
            case "default":  # torch's own: weights and biases uniform within 1/√width
                pass
            case "Kaiming":
                nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
                nn.init.zeros_(self.linear.bias)
            case "Xavier":
                nn.init.xavier_normal_(self.linear.weight)
                nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """One layer on."""
        y = torch.relu(self.linear(self.norm(x)))
        return x + y if self.residual else y


def _norm(norm: Norm, width: int) -> nn.Module:
    match norm:
        case "none":
            return nn.Identity()
        case "RMSNorm":
            return RMSNorm(width)
        case "LayerNorm":
            return LayerNorm(width)
        case "BatchNorm":
            return nn.BatchNorm1d(width)  # in training: the statistics of the batch


def measure(setup: Setup, width: int = WIDTH) -> dict[str, Any]:
    """The deviation after every layer, the input first, and that of the gradient of ⟨output, dy⟩ with a normal dy."""
    torch.manual_seed(setup.seed)
    stack = [Layer(setup.norm, setup.init, setup.residual, width).requires_grad_(False) for _ in range(setup.layers)]
    activations = [torch.randn(setup.rows, width).requires_grad_()]
    for layer in stack:
        activations.append(layer(activations[-1]))
    gradients = torch.autograd.grad(activations[-1], activations, torch.randn(setup.rows, width))
    signals = [x - x.mean(dim=0) for x in activations]  # without what is the same for every row
    named = {"activation_std": activations, "signal_std": signals, "gradient_std": gradients}
    return {name: _deviations(tensors) for name, tensors in named.items()}


def _deviations(tensors: Iterable[Tensor]) -> list[float]:
    """Over all elements, in float64, to four digits."""
    return [float(f"{tensor.detach().double().std().item():.4g}") for tensor in tensors]
