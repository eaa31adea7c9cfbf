"""Deviations by layer in the deepest stacks: a column for every initialisation, a line for every norm."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.depth.claims import DEEP
from studies.drawing import LINES, look
from studies.figures import Figures

QUANTITIES = {"activation_std": "activations", "gradient_std": "gradients"}


def draw(figures: Figures) -> Figure:
    """Without residuals above, with them below; activations, then gradients."""
    inits, norms = figures.choices("init"), figures.choices("norm")
    rows = [(column, residual) for residual in (False, True) for column in QUANTITIES]
    with look():
        figure = Figure(figsize=(9, 10))
        axes = figure.subplots(len(rows), len(inits), sharex=True, sharey="row", squeeze=False)
        for row, (column, residual) in zip(axes, rows, strict=True):
            for ax, init in zip(row, inits, strict=True):
                for norm, line in zip(norms, LINES, strict=True):
                    _line(ax, figures.values(column, norm=norm, init=init, residual=residual, layers=DEEP), line, norm)
                ax.set_yscale("log")
                ax.set_title(f"{QUANTITIES[column]}, {'with' if residual else 'no'} residuals, {init}")
            row[0].set_ylabel("standard deviation")
        for ax in axes[-1]:
            ax.set_xlabel("layer (0: the input)")
        handles, names = axes[0, 0].get_legend_handles_labels()
        named = ["no norm" if name == "none" else name for name in names]
        figure.legend(handles, named, loc="outside upper center", ncols=len(norms), handlelength=3.5)
    return figure


def _line(ax: Axes, values: np.ndarray, line: dict[str, object], norm: str) -> None:
    """The median over the seeds, and a band from the least to the greatest."""
    layers = np.arange(values.shape[1])
    ax.plot(layers, np.median(values, axis=0), label=norm, **line)  # pyright: ignore[reportArgumentType]
    ax.fill_between(layers, values.min(axis=0), values.max(axis=0), color=str(line["color"]), alpha=0.15, linewidth=0)
