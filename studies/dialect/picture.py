"""On the left how many outputs differ, on the right what that does to a model's loss."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.dialect.claims import HALF, moved, reseeded
from studies.dialect.measure import MODEL
from studies.drawing import look
from studies.figures import Figures

COLORS = {"bfloat16": "#0072B2", "float16": "#E69F00"}
MARKERS = {"bfloat16": "o", "float16": "D"}


def draw(figures: Figures) -> Figure:
    """Bars for the two dtypes of half precision; then every single difference between losses, as a point."""
    with look():
        figure = Figure(figsize=(10, 3.6))
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
        _bars(left, figures)
        _points(right, figures)
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _bars(ax: Axes, figures: Figures) -> None:
    subjects = figures.choices("subject")
    for place, dtype in enumerate(HALF):
        shares = [100 * np.median(figures.values("differ", subject=s, dtype=dtype, weight_dtype=dtype)) for s in subjects]
        bars = ax.barh(np.arange(len(subjects)) + 0.38 * place, shares, height=0.34, color=COLORS[dtype], label=dtype)
        ax.bar_label(bars, fmt="%.0f", padding=3)
    ax.set_yticks(np.arange(len(subjects)) + 0.19, ["a trained model's logits" if s == MODEL else s for s in subjects])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("outputs that differ between the two orders, %")
    ax.set_title("How many outputs differ")


def _points(ax: Axes, figures: Figures) -> None:
    rows = {"loaded into the other order": moved, "another seed": reseeded}
    for place, difference in enumerate(rows.values()):
        for shift, dtype in zip((-0.1, 0.1), HALF, strict=True):
            values = difference(figures, dtype)
            ax.plot(values, np.full(len(values), place + shift), MARKERS[dtype], color=COLORS[dtype], markeredgecolor="black")
    ax.set_yticks(range(len(rows)), [*rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xscale("log")
    ax.set_xlabel("difference of losses, nats a byte")
    ax.set_title("What a model's loss moves by")
