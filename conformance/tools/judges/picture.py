"""The picture of a trial: one point a judge, what it lets pass against whom it accuses."""

from math import sqrt

from conformance.tools.judges.figures import Figures
from conformance.tools.judges.judges import JUDGES
from conformance.tools.judges.trial import KIT

LEFT, TOP, WIDTH, HEIGHT = 52, 34, 392, 330  # of the axes, in a picture of 460 across
TICKS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
NEAR = 17  # two points closer than this have their numbers apart
LINE = 19  # from one line of the legend to the next

HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 460 {height}" role="img" aria-labelledby="title what">
<title id="title">Mistakes that a judge lets pass, against honest outputs that it rejects</title>
<desc id="what">{description}</desc>
<style>
 text {{ font: 13px system-ui, sans-serif; fill: #1d2023; }}
 .soft {{ fill: #565c65; }} .end {{ text-anchor: end; }} .middle {{ text-anchor: middle; }}
 .page {{ fill: #fbfbf9; }} .axis {{ stroke: #d9dbd6; }} .to {{ stroke: #a9adb3; }}
 .point {{ fill: #1f5aa6; }} .kit {{ fill: #17633a; }}
 @media (prefers-color-scheme: dark) {{
  text {{ fill: #e6e8ea; }} .soft {{ fill: #a8b0ba; }} .page {{ fill: #14171a; }} .axis {{ stroke: #343a41; }}
  .to {{ stroke: #6b737c; }} .point {{ fill: #8bb8f2; }} .kit {{ fill: #84d6a5; }}
 }}
</style>
<rect class="page" width="460" height="{height}" rx="6"/>"""


def as_svg(figures: Figures) -> str:
    """The picture, readable light and dark and on a narrow screen. Both axes show the root of a share."""
    points = [(figures.rejected(judge.id, "ours").share, figures.missed(judge, ("y", "gradients")).share) for judge in JUDGES]
    lines = (len(JUDGES) + 2) // 2
    height = TOP + HEIGHT + 62 + LINE * lines
    said = "; ".join(
        f"{judge.title} lets {missed:.1%} pass and rejects {accused:.1%}"
        for judge, (accused, missed) in zip(JUDGES, points, strict=True)
    )
    kit = figures.rejected(KIT, "ours").share  # what can be seen is what the kit sees, so it lets nothing pass
    drawn = [HEAD.format(height=height, description=f"{said}; norm-conformance rejects {kit:.1%}.")]
    drawn.append('<text class="soft" x="8" y="20">mistakes let pass</text>')
    drawn.append(f'<text class="soft end" x="{LEFT + WIDTH}" y="{TOP + HEIGHT + 40}">honest outputs rejected</text>')
    for tick in TICKS:
        x, y = _x(tick), _y(tick)
        drawn.append(f'<path class="axis" d="M{x:.1f} {TOP}V{TOP + HEIGHT}M{LEFT} {y:.1f}H{LEFT + WIDTH}"/>')
        drawn.append(f'<text class="soft middle" x="{x:.1f}" y="{TOP + HEIGHT + 20}">{tick:.0%}</text>')
        drawn.append(f'<text class="soft end" x="{LEFT - 6}" y="{y + 4:.1f}">{tick:.0%}</text>')
    taken = [(_x(kit), _y(0.0)), *((_x(accused), _y(missed)) for accused, missed in points)]
    drawn.append(f'<circle class="kit" cx="{_x(kit):.1f}" cy="{_y(0.0):.1f}" r="6"/>')
    for number, (accused, missed) in enumerate(points, 1):
        x, y = _x(accused), _y(missed)
        at = _free(x, y, taken)
        taken.append(at)
        drawn.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        drawn.append(f'<path class="to" d="M{x:.1f} {y:.1f}L{at[0]:.1f} {at[1]:.1f}"/>')
        drawn.append(f'<text class="middle" x="{at[0]:.1f}" y="{at[1] + 4:.1f}">{number}</text>')
    return "\n".join([*drawn, *_legend(lines), "</svg>"]) + "\n"


def _x(share: float) -> float:
    return LEFT + WIDTH * sqrt(share)


def _y(share: float) -> float:
    return TOP + HEIGHT * (1 - sqrt(share))


def _free(x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    """Where a point's number stands: above it to the right, and further away the more numbers are there already."""
    for reach in range(1, 12):
        for across, up in ((1, 1), (1, 0), (0, 1), (1, 2), (2, 1), (1, -1)):
            at = x + NEAR * reach * across * 0.8, y - NEAR * reach * up * 0.8
            inside = at[0] < LEFT + WIDTH and TOP < at[1] < TOP + HEIGHT
            if inside and all(abs(at[0] - other[0]) > NEAR or abs(at[1] - other[1]) > NEAR * 0.8 for other in taken):
                return at
    return x, y


def _legend(lines: int) -> list[str]:
    top = TOP + HEIGHT + 68
    entries = [f"{number}  {judge.title}" for number, judge in enumerate(JUDGES, 1)]
    drawn = [
        f'<text x="{LEFT + 200 * (place // lines)}" y="{top + LINE * (place % lines)}">{entry}</text>'
        for place, entry in enumerate(entries)
    ]
    place = len(entries)
    x, y = LEFT + 200 * (place // lines), top + LINE * (place % lines)
    return [
        *drawn,
        f'<circle class="kit" cx="{x + 5}" cy="{y - 4}" r="5"/>',
        f'<text x="{x + 16}" y="{y}">norm-conformance</text>',
    ]
