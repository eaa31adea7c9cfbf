"""Every pair's ratio of times: a layer alone above, a model below; forward, backward, and a whole step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.drawing import look
from studies.figures import Figures
from studies.norms.claims import ratios, saving, timed
from studies.norms.contenders import LAYER_NORM
from studies.norms.measure import MINIMINDS, PAIRS
from studies.norms.turns import PHASES

MARKS = {
    ("eager", "float32"): {"color": "#000000", "marker": "o", "markerfacecolor": "#000000"},
    ("eager", "bfloat16"): {"color": "#0072B2", "marker": "s", "markerfacecolor": "#0072B2"},
    ("compiled", "float32"): {"color": "#D55E00", "marker": "D", "markerfacecolor": "white"},
    ("compiled", "bfloat16"): {"color": "#009E73", "marker": "^", "markerfacecolor": "white"},
}
TITLES = {"layer": "a layer", "model": "MiniMind-small"}
PAIRS_OF = {"layer": PAIRS, "model": tuple((norm, LAYER_NORM) for norm in MINIMINDS)}


def draw(figures: Figures) -> Figure:
    """A column for every phase; a row of marks for every pair, from the least repeat to the greatest."""
    with look():
        figure = Figure(figsize=(11, 5.4))
        axes = figure.subplots(2, len(PHASES), sharey="row", sharex="row", height_ratios=(4, 3), squeeze=False)
        for row, (subject, all_pairs) in zip(axes, PAIRS_OF.items(), strict=True):
            settings = [setting for setting in timed(figures, *all_pairs) if setting["subject"] == subject]
            pairs = [pair for pair in all_pairs if pair in [(setting["norm"], setting["against"]) for setting in settings]]
            for phase, ax in enumerate(row):
                _marks(ax, figures, settings, pairs, phase)
                ax.set_title(f"{TITLES[subject]}: {PHASES[phase]}")
            names = [f"{norm}\nagainst {against}" for norm, against in pairs]
            row[0].set_yticks(range(len(pairs)), names, fontsize=8)
            row[0].set_ylim(len(pairs) - 0.5, -0.5)
        for ax in axes[-1]:
            ax.set_xlabel("time, of that with LayerNorm")
        for ax in axes[0]:
            ax.set_xscale("log")
            ax.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
            ax.minorticks_off()
        handles = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    return figure


def _marks(
    ax: Axes, figures: Figures, settings: Sequence[dict[str, Any]], pairs: Sequence[tuple[str, str]], phase: int
) -> None:
    ax.axvline(1, color="#888888", linewidth=1)
    claimed = 1 - saving(PHASES[phase])
    ax.axvline(claimed, color="#888888", linewidth=1, linestyle=(0, (2, 2)), label="RMSNorm, by the notes")
    present = [key for key in MARKS if key in [(setting["mode"], setting["dtype"]) for setting in settings]]
    for setting in settings:
        values, key = ratios(figures, phase, **setting), (setting["mode"], setting["dtype"])
        place = pairs.index((setting["norm"], setting["against"])) + 0.2 * (present.index(key) - (len(present) - 1) / 2)
        ax.plot([values.min(), values.max()], [place, place], color=MARKS[key]["color"], linewidth=1)
        ax.plot([float(np.median(values))], [place], linestyle="", markersize=5, label=", ".join(key), **MARKS[key])  # pyright: ignore[reportArgumentType]
