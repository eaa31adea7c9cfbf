"""`python -m benchmarks.counts`: how many cases and mistakes there are, where pages say so, counted anew.

The README and docs/index.md count mistakes; the README shows a report, which is that of a run; docs/porting.md shows what its
port gets at every step, which is counted without running it.
"""

import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conformance import port
from conformance.mistakes import MISTAKES
from conformance.numbers.rounding import DTYPES
from conformance.ops.cases import select
from conformance.question.case import is_split
from conformance.running.runner import NO_OP, unsupported

ROOT = Path(__file__).parent.parent
NO_STRIDES = "no strides to lay tensors out with"
NO_PARTS = "no tensors that are split over devices"
SHOWN = re.compile(r"(?<=    \$ conformance )(run examples\.llama:Port.*\n)((?:    .*\n|\n)+)")
WIDTH = 116  # columns, and four before them

# What stands on a page, once or more: every # is a number, every ~ any word. And the numbers, in the page's order.
Counts = tuple[str, list[int]]


def renewed(page: str) -> str:
    """The text of a page, by its path from the root, with its counts as they are now."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for words, numbers in PAGES[page]():
        text = with_numbers(text, words, numbers)
    return with_report(text) if SHOWN.search(text) else text


def with_numbers(text: str, words: str, numbers: list[int]) -> str:
    """The text with the numbers wherever `words` has a #. Raises `ValueError` where it has more of them, or fewer."""
    pattern = re.escape(words).replace(r"\#", r"(\d+)").replace("\\~", r"\S+").replace(r"\ ", r"\s+")
    spans = [found.span(1 + i) for found in re.finditer(pattern, text) for i in range(words.count("#"))]
    if len(spans) != len(numbers):
        raise ValueError(f"{words!r} has {len(spans)} numbers on the page, and not {len(numbers)}")
    for (start, end), number in reversed(list(zip(spans, numbers, strict=True))):
        text = text[:start] + str(number) + text[end:]
    return text


def with_report(text: str) -> str:
    """The text with the report that its command prints; as it was where nothing but measurements differ."""
    [(arguments, shown)] = SHOWN.findall(text)
    report = reported(*arguments.split())
    if without_measurements(report) == without_measurements(shown):
        return text
    whole = re.sub(rf"(?<=[^\n]{{{WIDTH}}}) *\n(?=\S)", " ", report)  # a file has longer lines, but they end, too
    lines = [part for line in whole.strip().splitlines() for part in textwrap.wrap(line, WIDTH) or [""]]
    block = textwrap.indent("\n".join(lines), "    ")
    return SHOWN.sub(lambda found: f"{found[1]}{block}\n\n", text)


def reported(*arguments: str) -> str:
    """What `conformance` prints."""
    command = [sys.executable, "-m", "conformance", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600).stdout


def without_measurements(text: str) -> list[str]:
    """The words of a report without what a CPU or a clock decides: error ratios, seconds."""
    text = re.sub(r"\bin \d+\.\d s", "in … s", text)
    text = re.sub(r"(by up to|to within) \S+ tolerances", "… tolerances", text)
    return re.sub(r"(\d+/\d+) \S+", r"\1 …", text).split()


class Begun(port.Port):
    """What `conformance new` writes: two ops, and no side of the weight that they cast on."""

    def rms_norm(self, x: Any, weight: Any, *, eps: float) -> Any:
        """Asked, and not run."""

    def layer_norm(self, x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
        """Asked, and not run."""


class Cast(Begun):
    """With a side."""

    orders = ("cast_then_scale",)


class WithSum(Cast):
    """With a norm of a sum."""

    sums = ("rounded",)

    def add_rms_norm(self, x: Any, residual: Any, weight: Any, *, eps: float) -> Any:
        """Asked, and not run."""


class WithBatchNorm(Cast):
    """With BatchNorm, whose running variance is unbiased."""

    def batch_norm(
        self,
        x: Any,
        weight: Any,
        bias: Any,
        *,
        running_mean: Any,
        running_var: Any,
        eps: float,
        training: bool,
        momentum: float = 0.0,
        unbiased: bool = True,
    ) -> Any:
        """Asked, and not run."""


def asked(port_class: type[port.Port], **limits: str) -> tuple[Counter[tuple[str, str]], Counter[str]]:
    """The cases that a port has to answer by op and dtype, and those it skips by reason. It lays nothing out."""
    judged, skipped = Counter[tuple[str, str]](), Counter[str]()
    hello = port_class().hello()
    for case in select(**limits):
        of_layout = NO_PARTS if is_split(case.layout) else NO_STRIDES if case.layout != "contiguous" else ""
        reason = unsupported(case, hello) or of_layout
        reason = reason or ("biased" if case.settings.get("unbiased") is False else "")
        if reason:
            skipped[reason] += 1
        else:
            judged[case.op, case.dtype] += 1
    return judged, skipped


def of_mistakes() -> Iterator[Counts]:
    """What the README and docs/index.md say of the catalogue."""
    yield "one of # known mistakes", [len(MISTAKES)]


def of_porting() -> Iterator[Counts]:
    """What the port of docs/porting.md gets, from one that is not written to one with a BatchNorm."""
    begun, first = asked(Begun), asked(Begun, op="rms_norm")
    cast, norms, of_sum = asked(Cast, op="rms_norm"), asked(Cast), asked(WithSum, op="add_rms_norm")

    total = begun[0].total() + begun[1].total()
    lacking = sum(count for reason, count in begun[1].items() if reason.startswith(NO_OP))
    orders = [begun[1][f"no order {order}"] for order in ("cast_then_scale", "scale_then_cast")]
    unwritten = total - lacking - sum(orders) - begun[1]["no weight offset 1"] - begun[1]["no groups"]
    told = "no op add_rms_norm, … (#), no order cast_then_scale (#), no order scale_then_cast (#), not written yet (#), …"
    yield f"pytorch_port.py skipped #: {told}", [total, lacking, *orders, unwritten]
    yield "nothing to judge yet: # skipped in", [total]

    reasons = ("no order cast_then_scale", "no order scale_then_cast", NO_STRIDES, "no weight offset 1", NO_PARTS, "no groups")
    told = ", ".join(f"{reason} (#)" for reason in reasons)
    yield f"pytorch_port.py skipped #: {told}", [first[1].total(), *(first[1][reason] for reason in reasons)]
    concluded = [count.total() for counts in (first, cast, norms, of_sum) for count in counts]
    yield "conforms: # passed, # skipped in", concluded

    yield "pytorch_port.py rms_norm #/# ~ #/# ~ skipped skipped", row(first[0], "rms_norm", DTYPES[:2])
    for op, (judged, _) in (("rms_norm", norms), ("layer_norm", norms), ("add_rms_norm", of_sum)):
        yield f"pytorch_port.py {op} #/# ~ #/# ~ #/# ~ #/# ~", row(judged, op, DTYPES)
    batch_norm, _ = asked(WithBatchNorm, op="batch_norm", dtype="float32")
    yield "pytorch_port.py batch_norm #/# ~", row(batch_norm, "batch_norm", ("float32",))


def row(judged: Counter[tuple[str, str]], op: str, dtypes: tuple[str, ...]) -> list[int]:
    """The numbers of a row in which all passes."""
    return [judged[op, dtype] for dtype in dtypes for _ in ("passed", "judged")]


PAGES: dict[str, Callable[[], Iterator[Counts]]] = {
    "README.md": of_mistakes,
    "docs/index.md": of_mistakes,
    "docs/porting.md": of_porting,
}

if __name__ == "__main__":
    for each in PAGES:
        (ROOT / each).write_text(renewed(each), encoding="utf-8")
