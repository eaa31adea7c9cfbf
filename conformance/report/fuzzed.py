"""A search for failing cases, on a terminal."""

from collections import Counter
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from conformance.case_files import as_json
from conformance.fuzz import CASES_SEED, Found, Search
from conformance.report.console import in_words
from conformance.report.explanation import describe
from conformance.report.report import CONFORMS, FAILS, NOT_RUN, Cause, Report
from conformance.runner import PortRun


def exit_status(search: Search) -> int:
    """0 nothing was found; 1 something was; 3 the port could not be run, or no case was judged."""
    if search.failure or not search.judged:
        return NOT_RUN
    return FAILS if search.found else CONFORMS


def show(search: Search, seed: int, report: Report, console: Console) -> None:
    """Print what was asked and what was found; `report` knows the command that repeats it."""
    if search.failure:
        console.print(Text.assemble((search.spec, "bold"), " could not be run: ", (search.failure, "red")))
        return
    if search.found:
        case = search.found.verdict.case
        for line in in_words(_cause(search, search.found), report.command(search.found.verdict)):
            console.print(line, soft_wrap=True)
        console.print(f"  drawn       {'; '.join(f'{name} {words}' for name, words in describe(case).items())}", soft_wrap=True)
        if not search.found.again:
            console.print("  but         it passed when it was asked again: the port does not always answer alike")
        console.print(Text(f"\n{as_json([case])}"), soft_wrap=True)
    count = search.judged.total()
    by_op, by_dtype = Counter[str](), Counter[str]()
    for (op, dtype), number in search.judged.items():
        by_op[op] += number
        by_dtype[dtype] += number
    shares = "; ".join(", ".join(f"{name} {number}" for name, number in sorted(by.items())) for by in (by_op, by_dtype))
    console.print(Text(f"{shares}; skipped {search.skipped}", style="dim"))
    style, verdict = {
        CONFORMS: ("bold green", "found nothing"),
        FAILS: ("bold red", "does not conform"),
        NOT_RUN: ("bold red", "not judged: the port has nothing of what was asked for"),
    }[exit_status(search)]
    pace = f"{count} random cases in {search.seconds:.1f} s, {count / max(search.seconds, 1e-3):.0f} a second"
    console.print(Text.assemble((verdict, style), f": {pace}, seed {seed}"))


def _cause(search: Search, found: Found) -> Cause:
    """What is wrong, in words that the witnesses bear out, shown by the smallest case."""
    run = PortRun(search.spec, search.hello, (found.verdict, *found.witnesses))
    causes = Report((run,), CASES_SEED, "", "", 0.0).causes
    cause = next(cause for cause in causes if found.verdict in cause.verdicts)
    return replace(cause, verdicts=(found.verdict,))
