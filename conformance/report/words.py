"""What a report says, in words that every page shares."""

import math
import re
from collections import Counter
from collections.abc import Mapping

from conformance.judging.compare import Element, Status
from conformance.numbers.rounding import DTYPES, DType
from conformance.ops.block.taps import TAP
from conformance.port.session import NOT_ASKED
from conformance.report.counting import count_of
from conformance.report.remarks import is_begun
from conformance.report.report import CONFORMS, FAILS, NOT_RUN, CaseEntry, Cause, Cell, Evidence, OutputEntry, PortEntry, Report
from conformance.running.runner import NO_OP

CAPTION = "passed/judged and the worst error, in units of its tolerance (at most 1 passes)"
PASSES_ALONE = "it passes when it is asked alone, in a fresh process: it depends on what the port was asked before"
DIGITS = {"float64": 17}  # that tell a number of a dtype from its neighbours; 9 are enough for the others
FRAME = re.compile(r' +File "')
KIT = re.compile(r'/conformance/port/(base|serving|in_process)\.py"')  # whose frames call the port
LIBRARY = re.compile(r"""/(site|dist)-packages/|/lib/python3\.\d+/|"<""")  # installed, of Python itself, or generated
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
    quick = ", the quick cases alone" if settings.quick else ""
    ranks = f", on {settings.ranks} ranks" if settings.ranks > 1 else ""
    return verdict, f"{counted or 'no case was run'} in {report.seconds:.1f} s{seed}{shard}{quick}{ranks}"


def _nothing(report: Report) -> str:
    """Why nothing was judged: every failure is expected, or nothing is written yet, or the port has none of what is asked."""
    if report.counts().get("expected"):
        return "nothing passed"
    return "nothing to judge yet" if is_begun(report) else "not judged"


def mode(report: Report, port: PortEntry) -> str:
    """The mode that a port was run in: `jit` is claimed only of one that says that it compiles."""
    asked = report.settings.mode
    compiles = port.hello is not None and port.hello.compiles
    return asked if compiles or asked != "jit" else "eager (it declares no compiler)"


def title(cause: Cause) -> str:
    """What was done, and how many cases show it."""
    return f"{cause.port}: {cause.what}  ({extent(cause)})"


def extent(cause: Cause) -> str:
    """How many cases show a cause, in which dtypes."""
    return f"{count_of(len(cause.cases), 'case')}: {', '.join(cause.dtypes)}"


def details(report: Report, cause: Cause) -> list[tuple[str, str]]:
    """A cause in labelled lines: what tells it, the example, and the command that repeats it."""
    example, output = report.example(cause), report.example_output(cause)
    lines: list[tuple[str, str]] = []
    if cause.evidence:
        lines += [("diagnosis", agreement(cause.evidence)), *(("", line) for line in notes(cause.evidence))]
    lines.append(("example", f"{example.case}  {list(example.shape)}"))
    if output and output.worst:
        lines.append(("worst", f"{element(output.output, output.worst)}  {comparison(output.worst, output.dtype)}"))
        lines.append(("", how_far_off(output)))
    if example.parts_at:
        lines.append(("parts at", example.parts_at))
        lines += [("growth", f"{_stages(example)} roundoffs")] if example.taps else []
    lines += [("where", frame)] if (frame := own_frame(example.detail)) else []
    lines += [("reproduce", reproduction(cause))] if cause.what != NOT_ASKED else []
    return lines


def reproduction(cause: Cause) -> str:
    """The command that repeats a cause's example, or why there is none."""
    return PASSES_ALONE if cause.reproduces is False else cause.command


def how_far_off(output: OutputEntry) -> str:
    """How many elements of an output lie outside their intervals, whether all of them together do, and how far off they are."""
    said = f"{output.outside} of {count_of(output.size, 'element')} outside"
    if not output.together:
        said += "; all together are too far off"
    if math.isfinite(output.ratio):
        said += f", by up to {ratio(output.ratio)} tolerances"
    elif output.dtype == output.expected_dtype:
        said += ", by more than any number of tolerances"
    return said


def paragraph(report: Report, cause: Cause) -> str:
    """A cause as plain text."""
    return "\n".join([title(cause), *(f"  {label:<11} {words}" for label, words in details(report, cause))])


def agreement(evidence: Evidence) -> str:
    """How sure the diagnosis is: how much a mistake explains, and how well it agrees with a port's numbers."""
    within = f"to within {evidence.residual:.2f} tolerances" if evidence.residual <= 1 else "but for single elements"
    return (
        f"{evidence.mistake} explains {_how_much(evidence)}, {within}, "
        f"and agrees with {evidence.agreeing} of {count_of(evidence.judged, 'case')}"
    )


def _how_much(evidence: Evidence) -> str:
    """All, most, or a part of what fails."""
    outputs = count_of(evidence.failing, "failing output")
    if evidence.outputs == evidence.failing:
        return f"all {outputs}" if evidence.failing > 1 else "the failing output"
    share = "most" if evidence.outputs >= evidence.failing / 2 else "a part"
    return f"{share} of the {outputs} ({evidence.outputs})"


def notes(evidence: Evidence) -> list[str]:
    """What is to be said besides: the outputs that do not have it, the next best, and that it is a dialect."""
    lines = [_where(evidence)] if evidence.right else []
    lines += [f"next best is {evidence.runner_up}, which explains {evidence.runner_up_outputs}"] if evidence.runner_up else []
    return lines + (["`conformance identify` says which dialect it is"] if evidence.dialect else [])


def _where(evidence: Evidence) -> str:
    is_, would = ("is", "it") if len(evidence.right) == 1 else ("are", "them")
    return f"it is in {_listed(evidence.where)}; {_listed(evidence.right)} {is_} right, though it would change {would}"


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


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
    if any("." in name for name in stages):
        at = next((tap.output.removeprefix(TAP) for tap in example.taps if not tap.passes), None)
        layer = at.partition(".")[0] if at else None
        stages = {name: error for name, error in stages.items() if name.endswith(".out") or name.partition(".")[0] == layer}
    return stages


def _stages(example: CaseEntry) -> str:
    return ", ".join(f"{name} {error:.2g}" for name, error in growth(example).items())


def own_frame(detail: str) -> str:
    """The port's own line in a Python stack trace: its innermost frame that is no library's and not the kit's.

    Where the port is itself an installed library, the innermost frame in the file that the kit called. Empty where there is
    no stack trace.
    """
    frames = [line.strip() for line in detail.splitlines() if FRAME.match(line)]
    frames = [frame for frame in frames if not KIT.search(frame)] or frames
    own = [frame for frame in frames if not LIBRARY.search(frame)]
    own = own or [frame for frame in frames if frame.split(", line ")[0] == frames[0].split(", line ")[0]]
    return own[-1] if own else ""


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


def columns(report: Report) -> tuple[DType, ...]:
    """The dtypes of the matrix: those of some case that was asked."""
    return tuple(dtype for dtype in DTYPES if any(cell.dtype == dtype for cell in report.matrix))


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
