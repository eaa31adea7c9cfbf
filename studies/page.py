"""A study as a page of Markdown, and the page that lists them: all of it follows from the figures."""

from collections.abc import Sequence

from studies.figures import Figures
from studies.study import Finding, Study, Table, Verdict

WORDS = {True: "✓", False: "✗"}
KEY = "✓ a figure that bears the claim out, ✗ one that does not; medians, and in brackets between what the repeats lie."
GENERATED = "<!-- Rendered by `python -m studies {} --render` from figures: edit the study, not this page. -->"


def as_page(study: Study, figures: Figures) -> str:
    """The question, every claim with its verdict, the picture, the tables, and how it was measured."""
    lines = [f"# {study.name}: {study.question}", "", GENERATED.format(study.name), "", f"{made(figures)}", ""]
    lines += ["## What is claimed, and what is so", "", KEY, ""]
    for claim in study.claims:
        verdict = claim.verdict(figures)
        lines += [f"**{claim.text}** ({claim.source}): **{verdict.word}**.", ""]
        lines += [f"- {WORDS[finding.holds]} {finding.figure}" for finding in verdict.findings]
        lines += [""]
    lines += ["## The figures", "", f"![{study.caption}]({study.name}.svg)", "", study.caption, ""]
    for table in study.tables(figures):
        lines += [f"**{table.title}**", "", *rows_of(table), ""]
    lines += ["## How it was measured", "", study.method, ""]
    lines += [f"    python -m studies {study.name}{' --quick' if figures.quick else ''}", ""]
    lines += [f"Every row of [{study.name}.json]({study.name}.json) is one set-up and what was measured in it:", ""]
    return "\n".join(lines + rows_of(Table("", ("column", "what it is"), [*figures.columns.items()]))) + "\n"


def as_index(judged: Sequence[tuple[Study, Figures]]) -> str:
    """Every claim of every study with its verdict."""
    lines = ["# The studies", "", GENERATED.format("all"), ""]
    lines += ["What the project's source notes claim about norms, measured here instead of repeated.", ""]
    body = [
        (
            f"[{study.name}]({study.name}.md)",
            f"{claim.text} ({claim.source})",
            (verdict := claim.verdict(figures)).word,
            deciding(verdict).figure,
        )
        for study, figures in judged
        for claim in study.claims
    ]
    lines += rows_of(Table("", ("study", "the claim", "verdict", "a figure that decides it"), body))
    lines += ["", "    python -m studies list            # what each asks"]
    lines += ["    python -m studies all --quick     # fewer repeats, into build/studies", ""]
    return "\n".join(lines)


def deciding(verdict: Verdict) -> Finding:
    """The first finding that does not hold, or else the first."""
    return next((finding for finding in verdict.findings if not finding.holds), verdict.findings[0])


def made(figures: Figures) -> str:
    """When, where and with what it was measured."""
    versions = ", ".join(f"{name} {number}" for name, number in figures.versions.items())
    count = len(figures.seeds)
    repeats = f"{count} repeats, seeds {figures.seeds[0]} to {figures.seeds[-1]}" if count > 1 else "1 repeat"
    quick = "**A quick run.** " if figures.quick else ""
    return f"{quick}{figures.date}, {figures.machine}; {versions}; {repeats}; {figures.seconds:.0f} s."


def rows_of(table: Table) -> list[str]:
    """A table in Markdown."""
    rows = (table.head, ["---"] * len(table.head), *table.body)
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
