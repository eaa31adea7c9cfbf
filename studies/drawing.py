"""How the studies' pictures look, and how they are kept: PNG and SVG, the same figures giving the same file."""

import io
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

from conformance.numbers.tensors import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart (https://jfly.uni-koeln.de/color); each has a dash and a width of
# its own besides, so that grey tells them apart, and lines that lie on each other show all of them.
LINES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "linestyle": "-", "linewidth": 1.4, "zorder": 3},
    {"color": "#56B4E9", "linestyle": "-", "linewidth": 3.6},
    {"color": "#D55E00", "linestyle": (0, (4, 2)), "linewidth": 2},
    {"color": "#000000", "linestyle": (0, (1, 3)), "linewidth": 1.6},
)
LOOK: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": 150,
    "svg.hashsalt": "norm-conformance",
}


@contextmanager
def look() -> Generator[None]:
    """Draw, and write, in the studies' own style."""
    with matplotlib.rc_context(LOOK):  # pyright: ignore[reportArgumentType] - its names are a Literal
        yield


def write_picture(path: Path, figure: "Figure") -> None:
    """Write `path` with the endings .png and .svg."""
    with look():
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata=metadata)
            write_atomically(path.with_suffix(f".{kind}"), content.getvalue())
