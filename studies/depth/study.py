"""The study `depth`."""

from itertools import product
from typing import Any

import numpy as np

from studies.depth.claims import CLAIMS, after
from studies.depth.measure import measure, setups
from studies.depth.picture import draw
from studies.figures import Figures, short
from studies.study import Study, Table


def tables(figures: Figures) -> tuple[Table, ...]:
    """For every norm and initialisation, by depth: what is left after the last layer, and of the gradient at the input."""
    return tuple(_table(figures, residual) for residual in figures.choices("residual"))


def _table(figures: Figures, residual: bool) -> Table:
    depths = figures.choices("layers")
    body: list[list[str]] = []
    for norm, init in product(figures.choices("norm"), figures.choices("init")):
        stack: dict[str, Any] = {"norm": norm, "init": init, "residual": residual}
        ends = [after(figures, layers, **stack, layers=layers) for layers in depths]
        starts = [after(figures, 0, "gradient_std", **stack, layers=layers) for layers in depths]
        body.append([norm, init, *(short(float(np.median(values))) for values in ends + starts)])
    head = ["norm", "init", *(f"activations, {layers}" for layers in depths), *(f"gradients, {layers}" for layers in depths)]
    with_or_without = "With" if residual else "Without"
    title = (
        f"{with_or_without} residuals: activations after the last layer, gradients at the input, by number of layers; medians"
    )
    return Table(title, head, body)


METHOD = """\
A layer is ReLU(W·norm(x) + b), 512 wide as MiniMind-small is, with or without x added to it; the first is given normal
deviates. The norm is `impl_torch`'s RMSNorm or LayerNorm, torch's BatchNorm1d in training, or none. *Default* is what
torch's Linear draws, weights and biases uniform within 1/√512; *Kaiming* (He et al. 2015, arXiv:1502.01852, for ReLU)
and *Xavier* (Glorot & Bengio, AISTATS 2010) are normal, with biases of zero. Nothing is trained. Gradients are of
⟨output, dy⟩ by every layer's output, dy normal: at the output they have a deviation of one.

In torch's initialisation a layer passes on 1/√6 of a root mean square, and what its biases add does not fade: without a
norm the deviation sinks to a floor that they alone hold. Centring takes away the mean that ReLU leaves, 1/π of the mean
square, and scales the rest up again: gradients grow by 1/√(1 - 1/π) = 1.21 with every layer (Yang et al. 2019,
arXiv:1902.08129, on BatchNorm's exploding gradients). RMSNorm does not centre."""

STUDY = Study(
    name="depth",
    method=METHOD,
    columns={
        "norm": "in front of every layer",
        "init": "how weights and biases are drawn",
        "residual": "whether a layer's input is added to its output",
        "layers": "how many",
        "rows": "how many vectors the stack is given",
        "seed": "of torch's generator, which draws weights, input and dy",
        "activation_std": "the standard deviation of all elements after every layer, a list, the input first",
        "signal_std": "the same around each feature's mean over the rows: what of it depends on the input",
        "gradient_std": "the standard deviation of the gradient by each of these",
    },
    setups=setups,
    measure=measure,
    claims=CLAIMS,
    tables=tables,
    caption="Standard deviations of activations and gradients by layer, of 50, for four norms and three initialisations.",
    draw=draw,
)
