"""What the notes say of depth, judged by the study's figures."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from studies.figures import Array, Figures, short, spread
from studies.study import Claim, Finding

NOTED = {1: 0.85, 2: 0.62, 3: 0.38, 8: 0.016}  # the notes' deviation by layer; the input's is 1.00
CLOSE = 1.2  # a factor within which a figure of the notes is met
STEADY = 1.5  # a factor within which activations keep their size
ALIVE = 100.0  # a factor within which 50 layers keep what they are given
DEEP = 50


def after(figures: Figures, layer: int, column: str = "activation_std", **stack: Any) -> Array:
    """A deviation after a layer, 0 being the input, for every seed."""
    return figures.values(column, **stack)[:, layer]


def within(factor: float, values: Array, target: float = 1.0) -> bool:
    """Whether every value is within a factor of the target."""
    return bool(np.all((target / factor <= values) & (values <= target * factor)))


def fade(figures: Figures) -> Iterator[Finding]:
    """The notes' own figures, in torch's initialisation; that it goes on; and that it is so for the others."""
    plain: dict[str, Any] = {"norm": "none", "residual": False}
    for layer, noted in NOTED.items():
        std = after(figures, layer, **plain, init="default", layers=8)
        text = f"default initialisation, after layer {layer}: {spread(std)}; the notes have {noted}"
        yield Finding(within(CLOSE, std, noted), text)
    eighth, last = (after(figures, layer, **plain, init="default", layers=DEEP) for layer in (8, DEEP))
    signal = after(figures, 8, "signal_std", **plain, init="default", layers=DEEP)
    text = f"and on: after layer {DEEP} {spread(last)}, after layer 8 {spread(eighth)}"
    yield Finding(bool(np.all(last < eighth / 2)), f"{text}, {spread(signal)} of which depends on the input")
    for init in ("Kaiming", "Xavier"):
        std = after(figures, 8, **plain, init=init, layers=8)
        yield Finding(bool(np.all(std < 0.5)), f"{init}, after layer 8: {spread(std)}")
    std = after(figures, 8, norm="none", residual=True, init="default", layers=8)
    yield Finding(bool(np.all(std < 0.5)), f"default initialisation with residuals, after layer 8: {spread(std)}")


def steady(figures: Figures) -> Iterator[Finding]:
    """After the last layer what it was after the first, whatever the depth and the initialisation."""
    for norm, residual in product(("RMSNorm", "LayerNorm"), (False, True)):
        rows = figures.where(norm=norm, residual=residual)
        ratios = np.array([row["activation_std"][-1] / row["activation_std"][1] for row in rows])
        depths = "/".join(str(layers) for layers in figures.choices("layers"))
        text = (
            f"{norm}, {_with(residual)}: after the last of {depths} layers {spread(ratios)} times what it was after the first"
        )
        yield Finding(within(STEADY, ratios), text)


def initialised(figures: Figures) -> Iterator[Finding]:
    """50 layers without a norm pass on activations and gradients."""
    for init, residual in product(("Kaiming", "Xavier"), (False, True)):
        stack: dict[str, Any] = {"norm": "none", "init": init, "residual": residual, "layers": DEEP}
        last, gradient = after(figures, DEEP, **stack), after(figures, 0, "gradient_std", **stack)
        text = f"activations {spread(last)} after layer {DEEP}, gradients {spread(gradient)} at the input"
        yield Finding(within(ALIVE, last) and within(ALIVE, gradient), f"{init}, {_with(residual)}: {text}")


def clean(figures: Figures) -> Iterator[Finding]:
    """The gradient comes through 50 layers, and without a norm it does not."""
    for norm in ("RMSNorm", "LayerNorm", "none"):
        gradient = after(figures, 0, "gradient_std", norm=norm, residual=True, layers=DEEP)
        name = "no norm" if norm == "none" else norm
        text = (
            f"{name}, with residuals: gradients {spread(gradient)} at the input of {DEEP} layers, whatever the initialisation"
        )
        yield Finding(within(ALIVE, gradient) is (norm != "none"), text)


def unaided(figures: Figures) -> Iterator[Finding]:
    """The gradient comes through 50 layers without residuals."""
    for norm in ("RMSNorm", "LayerNorm", "BatchNorm"):
        gradient = after(figures, 0, "gradient_std", norm=norm, residual=False, layers=DEEP)
        rate = np.median(after(figures, 1, "gradient_std", norm=norm, residual=False, layers=DEEP)) ** (1 / (DEEP - 1))
        text = (
            f"{norm}: gradients {spread(gradient)} at the input of {DEEP} layers, {short(float(rate))} times as large with each"
        )
        yield Finding(within(ALIVE, gradient), text)


def _with(residual: bool) -> str:
    return "with residuals" if residual else "without residuals"


CLAIMS = (
    Claim("Without a norm activations fade: 1.00, 0.85, 0.62, 0.38, … 0.016 after layer 8", fade),
    Claim("With RMSNorm or LayerNorm they keep their size, however deep", steady, "asked here"),
    Claim("Kaiming or Xavier initialisation keeps a deep stack alive without a norm", initialised),
    Claim("A norm in front of every layer keeps the residual path clean", clean),
    Claim("A norm lets gradients through without residuals, BatchNorm as well as the other two", unaided, "asked here"),
)
