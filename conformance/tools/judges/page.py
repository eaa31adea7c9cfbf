"""The figures of a trial on a terminal, and as a page."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from conformance.mistakes import MISTAKES
from conformance.tools.judges.figures import Count, Figures
from conformance.tools.judges.judge import Judge
from conformance.tools.judges.judges import JUDGES
from conformance.tools.judges.trial import DTYPES, KIT, Trial

SLIPS = (
    *("eps_missing", "eps_outside_root", "eps_1e-05", "divides_by_n_minus_1", "layer_norm_for_rms_norm", "not_normalised"),
    *(
        "statistics_of_first_32",
        "weight_missing",
        "other_order",
        "rstd_in_storage_dtype",
        "squares_accumulated_in_storage_dtype",
    ),
    *("one_pass_variance", "projection_missing", "dy_taken_for_ones", "dweight_without_last_row", "dx_zero"),
)
"""Mistakes that people make, of which the page says by whom each is let pass on their own inputs."""

INTRODUCTION = """\
# The judges judged

How do other projects test a norm, and what do their tests miss? Each rule below is taken from public source
([rules.py](../conformance/tools/judges/rules.py) has each in about a dozen lines). It is applied to every mistake of the
[catalogue](../conformance/mistakes) that can be seen in RMSNorm or LayerNorm, and to honest norms
([honest.py](../conformance/tools/judges/honest.py): eight orders of summation, five arrangements).
A good judge lets no mistake pass, and rejects no honest norm.

    conformance judges --json results/judges.json --page docs/judges.md       # five minutes of one core
    conformance judges --render results/judges.json --page docs/judges.md     # the page alone

![Mistakes let pass against honest outputs rejected, one point a judge; the tables below hold the figures]({picture})
"""

FAIRNESS = """\
## What was done to be fair

- Each judge has the strongest setting that its source has.
- Its reference is the best possible: the exact value with the roundings of the requested dialect, and no other. A real
  reference is another implementation, with errors and mistakes of its own.
- All are assumed to compare dtypes, NaN and infinities, though some do not.
- A judge of y alone is measured only on the mistakes that y shows, and a judge of RMSNorm alone only on those of RMSNorm.
- TransformerEngine judges y from the kernel's own statistics, and TOSA the parts of a norm one by one. Here both are held
  against the exact y, which is stricter in the first case; in the second it is our reading of their rule.
- hipDNN has a bound for each norm. For RMSNorm we use that of LayerNorm without the mean.
- StableHLO's few ulps are meant for elementwise operations; a sum that cancels has a larger error.
- In half precision an honest gradient may come from autograd, which rounds more than once. A judge with a single reference
  rejects it; the kit's intervals admit both.
- The cases are the kit's small ones in the plain dialects, with two large ones (4096 features, 257 rows); `exact` cases and
  other dialects, which no other judge has a rule for, are left out. The kit is one of the judges on the same cases.

**The cases do more than the rule.** On the kit's cases even a wide tolerance catches most mistakes, because each case is
made to show its fault. On their own inputs the same rules let far more pass. Rows with a deviation of one do not show eps.
Rows far below eps (vLLM scales x by 1/(2d); its smallest width saves it) show little else. A dy of ones looks the same as
a dy that is never read.
"""

BEYOND = """\
## What they see and the kit does not

TOSA judges the sum of all errors of a tensor: a bias that no single element shows. `conformance run` judges elements and
does not see it. [`conformance properties`](properties.md) does, on random data, after it has removed the effect of a row's
own statistics. It is not part of the verdicts, because honest arithmetic has such a bias along a row. TOSA's rule rejects
{tosa} of honest outputs here for it, in narrow rows whose rstd is one float off.
"""

SEEN = """\
These are hidden from the kit, but some judge rejects them and admits the exact answer. The list includes what is no mistake
in a dtype, such as float32 arithmetic in half precision: a judge that rejects it rejects honest norms."""
NOTHING = "No mistake of the catalogue that is hidden from the kit in an op and a dtype is seen by another judge there."


def show(figures: Figures, console: Console) -> None:
    """Print what each judge lets pass, and whom it accuses, over all dtypes."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "judge" else "right")
    for row in _rows(figures, DTYPES):
        table.add_row(*row)
    console.print(table)


COLUMNS = ("judge", "y", "gradients", "rejected", "own: y", "own: gradients", "own: rejected")


def _rows(figures: Figures, dtypes: Iterable[str]) -> list[list[str]]:
    """A row for every judge; the kit's own comes last."""
    dtypes = tuple(dtypes)
    rows = [
        [
            f"{number} {judge.title}",
            *(str(figures.missed(judge, (shown,), dtypes)) for shown in ("y", "gradients")),
            str(figures.rejected(judge.id, "ours", dtypes)),
            *(str(figures.missed_on_its_own(judge, (shown,), dtypes)) for shown in ("y", "gradients")),
            str(figures.rejected(judge.id, "own", dtypes)),
        ]
        for number, judge in enumerate(JUDGES, 1)
    ]
    shown = [sum(each.shown == by and each.dtype in dtypes for each in figures.trials) for by in ("y", "gradients")]
    kit = [str(Count(0, count)) for count in shown]
    return [*rows, ["norm-conformance", *kit, str(figures.rejected(KIT, "ours", dtypes)), "", "", ""]]


def as_page(figures: Figures, picture: str) -> str:
    """The page in Markdown, with the picture of this name."""
    parts = [INTRODUCTION.format(picture=picture), "## The rules", _rules(), FAIRNESS.rstrip()]
    parts += [
        "## What they let pass, and what they wrongly reject",
        "*y* and *gradients* count the mistakes that pass, of those that y shows, or the gradients alone.\n"
        "*rejected* counts the honest outputs that are rejected. *own* is the same on the judge's own inputs, where they are\n"
        "known ([own.py](../conformance/tools/judges/own.py)).",
    ]
    for title, dtypes in (("All three dtypes", DTYPES), *((dtype, (dtype,)) for dtype in DTYPES)):
        parts += [f"### {title}", _table(COLUMNS, _rows(figures, dtypes), figures=True)]
    parts += ["## On their own inputs", _slips(figures), _beyond(figures)]
    return "\n\n".join(parts) + f"\n\nBy norm-conformance {figures.conformance}, seed 0.\n"


def _rules() -> str:
    return _table(
        ("", "judge", "rule", "where"),
        [[str(number), judge.title, judge.says, judge.source] for number, judge in enumerate(JUDGES, 1)],
    )


def _slips(figures: Figures) -> str:
    """Of each well-known mistake, the judges that let it pass on their own inputs, by dtype."""
    sentences = {mistake.id: mistake.sentence for mistake in MISTAKES}
    rows = [[f"`{id_}`: {sentences[id_]}", *(_passing(figures, id_, dtype) for dtype in DTYPES)] for id_ in SLIPS]
    head = (
        "For mistakes that people make in RMSNorm or LayerNorm: which judges let them pass, of those whose inputs are known\n"
        "and that judge an output which shows the mistake."
    )
    return f"{head}\n\n{_table(('mistake', *DTYPES), rows)}"


def _passing(figures: Figures, id_: str, dtype: str) -> str:
    tried = [each for each in figures.trials if (each.mistake, each.dtype) == (id_, dtype) and each.shown]
    names = [judge.title for judge in JUDGES if any(judge.id in each.own and _asked(judge, each) for each in tried)]
    return ", ".join(names) or "nobody" if tried else "hidden"


def _asked(judge: Judge, trial: Trial) -> bool:
    return trial.op in judge.ops and (judge.asks_gradients or trial.shown == "y")


def _beyond(figures: Figures) -> str:
    tosa = figures.rejected("tosa", "ours")
    text = BEYOND.format(tosa=f"{tosa.share:.1%}").rstrip()
    seen = [each for each in figures.trials if each.seen_by]
    titles = {judge.id: judge.title for judge in JUDGES}
    if not seen:
        return f"{text}\n\n{NOTHING}"
    rows = [[f"`{each.mistake}`", each.op, each.dtype, ", ".join(titles[id_] for id_ in each.seen_by)] for each in seen]
    return f"{text}\n\n{SEEN}\n\n{_table(('mistake', 'op', 'dtype', 'who sees it'), rows)}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], *, figures: bool = False) -> str:
    """A table whose first column is words, and all others too, or `figures`."""
    names = tuple(head)
    rule = "|---|" + ("---:|" if figures else "---|") * (len(names) - 1)
    return "\n".join([f"| {' | '.join(names)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])
