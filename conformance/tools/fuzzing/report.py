"""A search for failing cases, on a terminal."""

from collections import Counter

from rich.console import Console
from rich.text import Text

from conformance.ops.case_files import as_json
from conformance.report.building import assemble, entry, explained
from conformance.report.console import in_words
from conformance.report.counting import count_of
from conformance.report.report import CONFORMS, FAILS, NOT_RUN, PortEntry, Report, Settings
from conformance.tools.fuzzing.fuzz import Found, Search


def exit_status(search: Search) -> int:
    """0 nothing was found; 1 something was; 3 the port could not be run, or no case was judged."""
    if search.failure or not search.judged:
        return NOT_RUN
    return FAILS if search.found else CONFORMS


def show(search: Search, seed: int, settings: Settings, console: Console) -> None:
    """Print what was found and what was asked; the `settings` repeat a case."""
    if search.failure:
        console.print(Text.assemble((search.launch.spec, "bold"), " could not be run: ", (search.failure, "red")))
        return
    for found in search.found:
        report = report_on(found, settings, search.launch.argument)
        for line in (*in_words(report, report.causes[0]), *map(Text, _details(found))):
            console.print(line, soft_wrap=True)
        console.print()
    console.print(Text(_shares(search), style="dim"))
    style, verdict = {
        CONFORMS: ("bold green", "found nothing"),
        FAILS: ("bold red", "does not conform"),
        NOT_RUN: ("bold red", "not judged"),
    }[exit_status(search)]
    count = search.judged.total()
    if not count:
        why = "the port skipped every case" if search.skipped else "the port claims nothing of what was asked for"
        console.print(Text.assemble((verdict, style), f": {why}"))
        return
    unlike = f"{len(search.found)} failures unlike one another, " if len(search.found) > 1 else ""
    pace = f"{count_of(count, 'random case')} in {search.seconds:.1f} s, {count / max(search.seconds, 1e-3):.0f} a second"
    console.print(Text.assemble((verdict, style), f": {unlike}{pace}, seed {seed}"))


def report_on(found: Found, settings: Settings, argument: str) -> Report:
    """What is wrong, shown by the smallest case: the mistake, if all the witnesses bear one out."""
    verdict, made = found.verdict, []
    if found.diagnosis:
        port, what, evidence, _ = explained(verdict.port, found.diagnosis)
        made = [(port, what, evidence, (verdict.case.id,))]
    return assemble(settings, 0.0, [PortEntry(verdict.port, argument, None)], [entry(verdict)], made)


def _details(found: Found) -> list[str]:
    case = found.verdict.case
    details = [f"  drawn       {'; '.join(f'{name} {words}' for name, words in case.drawn.items())}"]
    if not found.again:
        details.append("  but         it did not fail when it was asked again: the port does not always answer alike")
    if found.count > 1:
        details.append(f"  alike       {found.count} of the random cases")
    return [*details, f"  FILE        {as_json(case).rstrip()}"]


def _shares(search: Search) -> str:
    """How many of the cases were of each op and of each dtype."""
    ops, dtypes = Counter[str](), Counter[str]()
    for (op, dtype), count in search.judged.items():
        ops[op] += count
        dtypes[dtype] += count
    counted = [f"{name} {count}" for shares in (ops, dtypes) for name, count in sorted(shares.items())]
    return ", ".join([*counted, f"skipped {search.skipped}"])
