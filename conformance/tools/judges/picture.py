"""The picture of a trial: one point a judge, what it lets pass against whom it accuses."""

from math import sqrt

from conformance.tools.judges.figures import Figures
from conformance.tools.judges.judges import JUDGES
from conformance.tools.judges.trial import KIT

LEFT, TOP, WIDTH, HEIGHT = 52, 34, 384, 330  # of the axes, in a picture of 460 across
TICKS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
NEAR = 15  # how far a number stands from what is beside it
AROUND = ((1, -1), (1, 0), (0, -1), (1, 1), (-1, -1), (0, 1), (-1, 0), (-1, 1))  # right and above first
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
    height = TOP + HEIGHT + 70 + LINE * lines
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
    drawn.append(f'<circle class="kit" cx="{_x(kit):.1f}" cy="{_y(0.0):.1f}" r="6"/>')
    places = [complex(_x(accused), _y(missed)) for accused, missed in points]
    for number, (point, at) in enumerate(zip(places, _numbers_at(places, complex(_x(kit), _y(0.0))), strict=True), 1):
        drawn.append(f'<circle class="point" cx="{point.real:.1f}" cy="{point.imag:.1f}" r="4"/>')
        if abs(at - point) > 2 * NEAR:
            end = at + (point - at) / abs(point - at) * NEAR * 0.6
            drawn.append(f'<path class="to" d="M{point.real:.1f} {point.imag:.1f}L{end.real:.1f} {end.imag:.1f}"/>')
        drawn.append(f'<text class="middle" x="{at.real:.1f}" y="{at.imag + 4:.1f}">{number}</text>')
    return "\n".join([*drawn, *_legend(lines), "</svg>"]) + "\n"


def _x(share: float) -> float:
    return LEFT + WIDTH * sqrt(share)


def _y(share: float) -> float:
    return TOP + HEIGHT * (1 - sqrt(share))


def _numbers_at(points: list[complex], kit: complex) -> list[complex]:
    """Where the points' numbers stand. Those in a crowd are placed first."""
    taken = [kit, *points]
    at: dict[int, complex] = {}
    for place in sorted(range(len(points)), key=lambda place: -sum(abs(points[place] - other) < 2 * NEAR for other in points)):
        at[place] = _free(points[place], taken)
        taken += (at[place], (at[place] + points[place]) / 2)
    return [at[place] for place in range(len(points))]


def _free(point: complex, taken: list[complex]) -> complex:
    """Where a point's number stands: as near to it as the other points and numbers leave room, on the way there too."""
    for reach in range(2, 12):
        for across, down in AROUND:
            step = complex(across, down) / abs(complex(across, down)) * NEAR / 2
            at = point + reach * step
            way = [point + part * step for part in range(2, reach + 1)]
            inside = LEFT < at.real < LEFT + WIDTH and TOP < at.imag < TOP + HEIGHT
            others = [other for other in taken if other != point]
            clear = all(abs(each - other) > NEAR * 0.4 for each in way for other in others)
            if inside and clear and all(abs(at - other) > NEAR * 0.8 for other in others):
                return at
    return point


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
