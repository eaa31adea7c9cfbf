"""Above, how activations come to the NaN; below, what every remedy is worth."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from studies.drawing import look
from studies.figures import Figures, Row
from studies.nan.claims import broken, runs
from studies.nan.measure import LAYERS, REMEDIES

# One hue from light to dark, as in the study eps; what is not finite is marked besides.
COLORS = ("#ffffff", "#dbe9f6", "#a5cbe3", "#5b9dc9", "#2566a8", "#08264d")
LEVELS = (0.0, 0.1, 1.0, 10.0, 100.0, np.inf)
MEANINGS = ("deviation below 0.1", "0.1 to 1", "1 to 10", "10 to 100", "above 100", "not finite")
DIES: dict[str, Any] = {"marker": "x", "color": "#D55E00"}
LIVES: dict[str, Any] = {"marker": "o", "color": "#0072B2"}


def draw(figures: Figures) -> Figure:
    """The longest run without a remedy as a map, the step of the NaN of all of them; steps survived, and losses."""
    rows = broken(runs(figures, "none"))
    with look():
        figure = Figure(figsize=(10, 7.2))
        (steps, depth), (survived, loss) = figure.subplots(2, 2)
        _map(steps, max(rows, key=lambda row: row["survived"]))
        _depth(depth, rows)
        _points(survived, loss, figures)
        handles = [Patch(facecolor=color, edgecolor="#888888") for color in COLORS]
        figure.legend(handles, MEANINGS, loc="outside upper center", ncols=len(MEANINGS))
    return figure


def _map(ax: Axes, row: Row) -> None:
    """A column for every step, a row for every layer; the last column is the step of the NaN."""
    std = np.array([[np.nan if value is None else value for value in layers] for layers in row["layer_std"]]).T
    levels = np.where(np.isfinite(std), np.digitize(std, LEVELS[1:-1]), len(COLORS) - 1)
    norm = BoundaryNorm(np.arange(len(COLORS) + 1) - 0.5, len(COLORS))
    extent = (-0.5, std.shape[1] - 0.5, -0.5, std.shape[0] - 0.5)
    ax.imshow(
        levels, cmap=ListedColormap(COLORS), norm=norm, origin="lower", aspect="auto", extent=extent, interpolation="none"
    )
    ax.grid(visible=False)
    ax.set_title(f"Step by step, no remedy, seed {row['seed']}")
    ax.set_xlabel("step")
    ax.set_ylabel("layer")


def _depth(ax: Axes, rows: list[Row]) -> None:
    """The step of the NaN, and the one before it, from layer to layer."""
    for number, row in enumerate(rows):
        before, last = row["layer_std"][-2:] if len(row["layer_std"]) > 1 else ([], row["layer_std"][-1])
        finite = last[: row["layer"]]
        labels = ("the step before", "the step of the NaN") if number == 0 else (None, None)
        ax.plot(range(len(before)), before, color="#999999", linestyle=(0, (4, 2)), label=labels[0])
        ax.plot(range(len(finite)), finite, color="#000000", label=labels[1])
        ax.plot(len(finite) - 1, finite[-1], **DIES, markersize=7)
    ax.set_yscale("log")
    ax.set_xticks(range(0, LAYERS, 2))
    ax.legend(title="up to the last that is finite", alignment="left")
    ax.set_title("Layer by layer, no remedy, all seeds")
    ax.set_xlabel("layer")
    ax.set_ylabel("standard deviation")


def _points(survived: Axes, loss: Axes, figures: Figures) -> None:
    """A point for every seed."""
    for place, remedy in enumerate(REMEDIES):
        rows = runs(figures, remedy)
        for row, shift in zip(rows, np.linspace(-0.2, 0.2, len(rows)) if len(rows) > 1 else [0.0], strict=True):
            how = DIES if row["survived"] < row["steps"] else LIVES
            survived.plot(row["survived"], place + shift, linestyle="", **how)
            if row["final"] is not None:
                loss.plot(row["final"], place + shift, linestyle="", **how)
    loss.axvline(figures.choices("unigram")[0], color="#000000", linestyle=(0, (1, 2)))
    for ax in (survived, loss):
        ax.set_yticks(range(len(REMEDIES)), [*REMEDIES])
        ax.set_ylim(len(REMEDIES) - 0.5, -0.5)
    loss.tick_params(labelleft=False)
    survived.set_title("How long each remedy lasts; a cross: NaN")
    survived.set_xlabel("steps with a finite loss")
    loss.set_title("What those learn that survive")
    loss.set_xlabel("last loss, nats a byte (dotted: the bytes' frequencies)")
