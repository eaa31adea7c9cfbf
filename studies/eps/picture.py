"""A map for every dtype and both kinds of statistics: what becomes of y, by eps and input scale."""

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from studies.drawing import look
from studies.eps.claims import worst
from studies.eps.measure import OUTCOMES
from studies.figures import Figures, short

# One hue from light to dark, so that grey says what colour says; the marks say it a second time.
COLORS = ("#ffffff", "#dbe9f6", "#a5cbe3", "#5b9dc9", "#2566a8", "#08264d")
MEANINGS = {
    "right": "right: every element in its interval",
    "rounded": "rounded: % of elements outside, by at most 4 ulps",
    "off": "off: % of elements outside, some by more",
    "zero": "zero, where it should not be",
    "infinite": "∞: infinite",
    "NaN": "NaN",
}
MARKS = {"right": "", "zero": "zero", "infinite": "∞", "NaN": "NaN"}


def draw(figures: Figures) -> Figure:
    """Dtypes below each other; statistics in x's dtype on the left, in float32 on the right."""
    dtypes, kinds = figures.choices("dtype"), figures.choices("statistics")
    with look():
        figure = Figure(figsize=(11, 6))
        axes = figure.subplots(len(dtypes), len(kinds), sharex=True, sharey=True, squeeze=False)
        for row, dtype in zip(axes, dtypes, strict=True):
            for ax, statistics in zip(row, kinds, strict=True):
                _map(ax, figures, dtype, statistics)
                ax.set_title(f"x in {dtype}, statistics {statistics}")
        for ax in axes[:, 0]:
            ax.set_ylabel("eps")
        for ax in axes[-1]:
            ax.set_xlabel("input scale: the standard deviation of x (0: a row of zeros)")
        seen = [outcome for outcome in OUTCOMES if outcome in figures.choices("outcome")]
        handles = [Patch(facecolor=COLORS[OUTCOMES.index(outcome)], edgecolor="#888888") for outcome in seen]
        figure.legend(handles, [MEANINGS[outcome] for outcome in seen], loc="outside lower center", ncols=3)
    return figure


def _map(ax: Axes, figures: Figures, dtype: str, statistics: str) -> None:
    all_eps, scales = figures.choices("eps"), figures.choices("scale")
    levels = [[OUTCOMES.index(worst(figures, dtype, statistics, eps, scale)) for scale in scales] for eps in all_eps]
    ax.pcolormesh(levels, cmap=ListedColormap(COLORS), vmin=0, vmax=len(COLORS), edgecolors="#bbbbbb", linewidth=0.5)
    for i, eps in enumerate(all_eps):
        for j, scale in enumerate(scales):
            outside = figures.values("outside", dtype=dtype, statistics=statistics, eps=eps, scale=scale).mean()
            percent = f"{100 * outside:.0f}" if outside >= 0.01 else "<1"
            mark = MARKS.get(OUTCOMES[levels[i][j]], percent)
            color = "white" if levels[i][j] >= OUTCOMES.index("zero") else "black"
            ax.text(j + 0.5, i + 0.5, mark, ha="center", va="center", fontsize=8, color=color)
    ax.set_xticks([j + 0.5 for j in range(len(scales))], [short(scale) for scale in scales], fontsize=8)
    ax.set_yticks([i + 0.5 for i in range(len(all_eps))], [short(eps) for eps in all_eps])
    ax.tick_params(length=0)
    ax.set_ylim(len(all_eps), 0)
    ax.grid(visible=False)
