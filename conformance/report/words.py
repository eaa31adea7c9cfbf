"""What a report says, in words that every page shares."""

from collections import Counter
from collections.abc import Mapping

from conformance.block.taps import TAP
from conformance.compare import Element, Status
from conformance.report.remarks import is_begun
from conformance.report.report import CONFORMS, FAILS, NOT_RUN, CaseEntry, Cause, Cell, Evidence, Report
from conformance.runner import NO_OP
from conformance.session import NOT_ASKED

CAPTION = "passed/judged and the worst error, in units of its tolerance (at most 1 passes)"
DIGITS = {"float64": 17}  # that tell a number of a dtype from its neighbours; 9 are enough for the others
STATUSES: dict[Status, str] = {
    "pass": "passed",
    "fail": "failed",
    "expected": "as expected",
    "error": "errors",
    "skip": "skipped",
}


def conclusion(report: Report) -> tuple[str, str]:
    """Whether a port conforms, and what that is concluded from."""
    counts = report.counts()
    counted = ", ".join(
        f"{count} {'error' if (status, count) == ('error', 1) else word}"
        for status, word in STATUSES.items()
        if (count := counts.get(status))
    )
    judged = counts.get("pass", 0) + counts.get("fail", 0)
    verdict = {
        CONFORMS: "conforms",
        FAILS: "does not conform",
        NOT_RUN: "a port was not judged" if judged else _nothing(report),
    }[report.exit_status]
    settings = report.settings
    seed = f", seed {settings.seed}" if settings.seed else ""
    shard = f", shard {settings.shard} of {settings.shards}" if settings.shards > 1 else ""
    return verdict, f"{counted or 'no case was run'} in {report.seconds:.1f} s{seed}{shard}"


def _nothing(report: Report) -> str:
    """Why nothing was judged: every failure is expected, or nothing is written yet, or the port has none of what is asked."""
    if report.counts().get("expected"):
        return "nothing passed"
    return "nothing to judge yet" if is_begun(report) else "not judged"


def title(cause: Cause) -> str:
    """What was done, and how many cases show it."""
    return f"{cause.port}: {cause.what}  ({extent(cause)})"


def extent(cause: Cause) -> str:
    """How many cases show a cause, in which dtypes."""
    count = len(cause.cases)
    return f"{count} case{'s' * (count != 1)}: {', '.join(cause.dtypes)}"


def details(report: Report, cause: Cause) -> list[tuple[str, str]]:
    """A cause in labelled lines: what tells it, the example, and the command that repeats it."""
    example, output = report.example(cause), report.example_output(cause)
    lines: list[tuple[str, str]] = []
    if cause.evidence:
        lines += [("diagnosis", agreement(cause.evidence)), *(("", line) for line in notes(cause.evidence))]
    lines.append(("example", f"{example.case}  {list(example.shape)}"))
    if output and output.worst:
        lines.append(("worst", f"{element(output.output, output.worst)}  {comparison(output.worst, output.dtype)}"))
        lines.append(("", f"{output.outside} of {output.size} elements outside, by up to {ratio(output.ratio)} tolerances"))
    if example.parts_at:
        lines.append(("parts at", example.parts_at))
        lines += [("growth", f"{_stages(example)} roundoffs")] if example.taps else []
    lines += [("where", frame)] if (frame := last_frame(example.detail)) else []
    lines += [("reproduce", cause.command)] if cause.what != NOT_ASKED else []
    return lines


def paragraph(report: Report, cause: Cause) -> str:
    """A cause as plain text."""
    return "\n".join([title(cause), *(f"  {label:<11} {words}" for label, words in details(report, cause))])


def agreement(evidence: Evidence) -> str:
    """How well a mistake agrees with a port's numbers."""
    return (
        f"{evidence.mistake} agrees with {evidence.agreeing} of {evidence.judged} cases and explains {evidence.outputs} of "
        f"{evidence.failing} failing outputs, to within {evidence.residual:.2f} tolerances"
    )


def notes(evidence: Evidence) -> list[str]:
    """What is to be said besides: the next best, and that it is a dialect."""
    lines = [f"next best is {evidence.runner_up}, which explains {evidence.runner_up_outputs}"] if evidence.runner_up else []
    return lines + (["`conformance identify` says which dialect it is"] if evidence.dialect else [])


def element(output: str, worst: Element) -> str:
    """An element's name."""
    return f"{output}[{', '.join(map(str, worst.index))}]"


def comparison(worst: Element, dtype: str) -> str:
    """What was expected of an element, and what came."""
    digits = DIGITS.get(dtype, 9)
    lower, upper = f"{worst.lower:.{digits}g}", f"{worst.upper:.{digits}g}"
    return f"expected {lower if worst.lower == worst.upper else f'{lower} to {upper}'}, got {worst.actual:.{digits}g}"


def growth(example: CaseEntry) -> dict[str, float]:
    """Every stage's error as it has grown so far; of a stack, the layers', and the stages of the one that parts."""
    stages = {tap.output.removeprefix(TAP): tap.growth for tap in example.taps if tap.growth is not None}
    if example.op == "pre_ln_stack":
        at = next((tap.output.removeprefix(TAP) for tap in example.taps if not tap.passes), None)
        layer = at.partition(".")[0] if at else None
        stages = {name: error for name, error in stages.items() if name.endswith(".out") or name.partition(".")[0] == layer}
    return stages


def _stages(example: CaseEntry) -> str:
    return ", ".join(f"{name} {error:.2g}" for name, error in growth(example).items())


def last_frame(detail: str) -> str:
    """The innermost frame of a Python stack trace; empty where there is none."""
    frames = [line.strip() for line in detail.splitlines() if line.startswith("  File ")]
    return frames[-1] if frames else ""


def in_short(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """The reasons, most frequent first, with the ops that a port lacks as one."""
    lacking = [reason for reason in reasons if reason.startswith(NO_OP)]
    short = Counter({reason: count for reason, count in reasons.items() if reason not in lacking})
    if lacking:
        short[NO_OP + ", ".join(reason.removeprefix(NO_OP) for reason in lacking)] = sum(reasons[each] for each in lacking)
    return short.most_common()


def cell(cell: Cell) -> str:
    """A cell of the matrix."""
    if not cell.judged:
        return "skipped"
    if cell.count("error") == cell.judged:
        return f"0/{cell.judged} error"
    return f"{cell.count('pass')}/{cell.judged} {ratio(cell.ratio)}"


def rows(report: Report) -> dict[tuple[str, str], dict[str, Cell]]:
    """The matrix row by row, (port, op) to a cell for every dtype; a row skipped whole only where there are no others."""
    judged = [cell for cell in report.matrix if cell.judged]
    cells = {(cell.port, cell.op, cell.dtype): cell for cell in report.matrix}
    return {
        (port, op): {dtype: each for (of, which, dtype), each in cells.items() if (of, which) == (port, op)}
        for port, op in dict.fromkeys((cell.port, cell.op) for cell in judged or report.matrix)
    }


def ratio(ratio: float) -> str:
    """An error ratio in a few characters."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0e}".replace("e+0", "e").replace("e+", "e")
