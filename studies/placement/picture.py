"""Above, what the models' losses did; below, gradients as drawn and while training, and the largest rates."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from studies.drawing import LINES, look
from studies.figures import Array, Figures, short
from studies.placement.claims import depths, largest, rates, trained, warm_ups
from studies.placement.measure import BUNCH, DEEP, INITS, LEARNT, MODELS, SHALLOW, entropy

# From light to dark, so that grey says it too.
SHADES = {1e-3: "#c6dbef", 3e-3: "#6baed6", 1e-2: "#2171b5", 3e-2: "#08306b", 1e-1: "#000000"}
STYLES = dict(zip(MODELS, LINES, strict=True))
TOP = 5.0  # nats a byte: a little above what a model begins with that knows nothing
BOUND: dict[str, Any] = {"color": "#D55E00", "linewidth": 1.2, "linestyle": ":"}


def draw(figures: Figures) -> Figure:
    """Losses of 4 layers, then of 12, a model a column; then four panels on gradients and rates."""
    with look():
        figure = Figure(figsize=(11, 8.5))
        axes = figure.subplots(3, len(MODELS))
        for row, layers in zip(axes, (SHALLOW, DEEP), strict=False):
            for ax, model in zip(row, MODELS, strict=True):
                _losses(ax, figures, layers, model)
                ax.set_title(f"{model}: {layers} layers")
            row[0].set_ylabel("loss, nats a byte")
        for ax, panel in zip(axes[-1], (_by_depth, _by_layer, _training, _largest), strict=True):
            panel(ax, figures)
        axes[-1, 0].set_ylabel("norm of the gradient")
        asked = [rate for rate in SHADES if rate in {*rates(figures, SHALLOW), *rates(figures, DEEP)}]
        keys = {f"rate {short(rate)}": Line2D([], [], color=SHADES[rate]) for rate in asked}
        keys |= {"without warm-up": Line2D([], [], color="#555555"), "with": Line2D([], [], color="#555555", linestyle="--")}
        keys |= {f"learnt: below {LEARNT * entropy():.2f}": Line2D([], [], **BOUND)}
        figure.legend([*keys.values()], [*keys], loc="outside upper center", ncols=len(keys))
        handles = [Line2D([], [], **STYLES[model]) for model in MODELS]
        figure.legend(handles, MODELS, loc="outside lower center", ncols=len(MODELS), handlelength=3.5)
    return figure


def _losses(ax: Axes, figures: Figures, layers: int, model: str) -> None:
    """A line for every rate and warm-up; or why there is none."""
    seen: list[Array] = []
    for rate in rates(figures, layers):
        for warm_up in warm_ups(figures, layers):
            steps, losses = _curve(figures, "losses", layers, model=model, rate=rate, warm_up=warm_up)
            ax.plot(steps, losses, color=SHADES[rate], linestyle="--" if warm_up else "-")
            ax.set_xlim(0, steps[-1] + BUNCH)
            seen.append(losses)
    if not np.any(np.isfinite(seen)):
        ax.text(0.5, 0.85, "not finite", transform=ax.transAxes, ha="center")
    elif np.nanmin(seen) > TOP:
        ax.text(0.5, 0.85, f"above: {short(float(np.nanmin(seen)))} or more", transform=ax.transAxes, ha="center")
    ax.axhline(LEARNT * entropy(), **BOUND)
    ax.set_ylim(1.4, TOP)
    ax.set_xlabel("step")


def _curve(figures: Figures, column: str, layers: int, **run: Any) -> tuple[Array, Array]:
    """Steps, and medians over the seeds."""
    values = np.array([row[column] for row in trained(figures, layers, **run)], np.float64)
    return BUNCH * (np.arange(values.shape[1]) + 0.5), np.median(values, axis=0)


def _by_depth(ax: Axes, figures: Figures) -> None:
    """Drawn by Xavier, and pale in the other way."""
    for model in MODELS:
        for init in INITS:
            gradients = [_drawn(figures, model, init, layers)[-1] for layers in depths(figures)]
            ax.plot(depths(figures), gradients, **STYLES[model], alpha=1 if init == "Xavier" else 0.4)
    ax.set(xscale="log", yscale="log", ylim=(5e-7, 1e2), xlabel="layers")
    ax.minorticks_off()
    ax.set_xticks(depths(figures), [str(layers) for layers in depths(figures)])
    ax.set_title("Last layer's gradient, as drawn\n(pale: with a deviation of 0.02)")


def _by_layer(ax: Axes, figures: Figures) -> None:
    layers = depths(figures)[-1]
    for model in MODELS:
        ax.plot(np.arange(1, layers + 1), _drawn(figures, model, "Xavier", layers), **STYLES[model])
    ax.set(yscale="log", ylim=(0.03, 10), xlabel="layer")
    ax.set_title(f"Each layer's gradient, of {layers},\nas drawn")


def _drawn(figures: Figures, model: str, init: str, layers: int) -> Array:
    return np.median(figures.values("by_layer", model=model, init=init, layers=layers, steps=0), axis=0)


def _training(ax: Axes, figures: Figures) -> None:
    """At the highest rate of the deep models, without warm-up."""
    rate = rates(figures, DEEP)[-1]
    for model in MODELS:
        ax.plot(*_curve(figures, "gradients", DEEP, model=model, rate=rate, warm_up=0), **STYLES[model])
    ax.set(yscale="log", ylim=(0.1, 10), xlabel="step")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_title(f"The whole gradient while training:\n{DEEP} layers, rate {short(rate)}, no warm-up")


def _largest(ax: Axes, figures: Figures) -> None:
    """Side by side for every model: 4 layers without warm-up and with it, and 12."""
    runs = [(layers, warm_up) for layers in (SHALLOW, DEEP) for warm_up in warm_ups(figures, layers)]
    nowhere = min(SHADES) / 3
    for place, model in enumerate(MODELS):
        for shift, (layers, warm_up) in zip(np.linspace(-0.27, 0.27, len(runs)), runs, strict=True):
            look: dict[str, Any] = {"color": "#333333", "markerfacecolor": "#333333" if warm_up else "white"}
            rate = largest(figures, model, layers, warm_up)
            ax.plot(place + shift, rate or nowhere, "o" if layers == SHALLOW else "s", markersize=5, **look)
    ax.set(yscale="log", ylim=(nowhere / 1.6, 1.6 * max(SHADES)))
    ax.minorticks_off()
    ax.set_yticks([nowhere, *SHADES], ["none", *(short(rate) for rate in SHADES)])
    ax.set_xticks(range(len(MODELS)), ["no\nnorm", "Post-\nLN", "Pre-LN,\nLayer", "Pre-LN,\nRMS"])
    ax.set_xlabel("○ 4 layers, □ 12; filled: warmed up")
    ax.set_title(f"Largest rate at which it learns\n({DEEP} layers: asked up to {short(rates(figures, DEEP)[-1])})")
