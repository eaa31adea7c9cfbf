"""What a study is: a question, how it is measured, what the notes claim, and how its figures are shown."""

import pkgutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import studies
from studies.figures import Figures, FiguresError, Row, gather

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(studies.__path__) if module.ispkg))


@dataclass(frozen=True)
class Finding:
    """One thing that a claim implies: whether the figures show it, and which figures these are."""

    holds: bool
    figure: str


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    findings: tuple[Finding, ...]

    @property
    def word(self) -> Literal["holds", "does not hold", "holds in part"]:
        """All findings hold, none, or some."""
        held = {finding.holds for finding in self.findings}
        return "holds in part" if len(held) == 2 else "holds" if held == {True} else "does not hold"


@dataclass(frozen=True)
class Claim:
    """What the notes or a paper say, or what is asked here besides, and what the figures have to show for it to hold."""

    text: str
    implies: Callable[[Figures], Iterable[Finding]]
    source: Literal["the notes", "Xiong et al. 2020", "asked here"] = "the notes"

    def verdict(self, figures: Figures) -> Verdict:
        """Judge the claim by these figures, and by nothing else."""
        findings = tuple(self.implies(figures))
        assert findings, "a claim that implies nothing cannot be judged"
        return Verdict(findings)


@dataclass(frozen=True)
class Table:
    """Figures summed up for a person."""

    title: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Study:
    """A question and all that answers it.

    `setups` are frozen dataclasses, every one with a `seed`, and fewer where the run is to be quick; `measure` says what is
    found in one. `columns` documents a row, set-up first: what each value is, and its unit.
    """

    name: str
    method: str
    columns: dict[str, str]
    setups: Callable[[bool], Sequence[Any]]
    measure: Callable[[Any], Row]
    claims: tuple[Claim, ...]
    tables: Callable[[Figures], Sequence[Table]]
    caption: str
    draw: Callable[[Figures], "Figure"]

    @property
    def question(self) -> str:
        """What is asked."""
        return question(self.name)

    def run(self, quick: bool = False, step: Callable[[], None] = lambda: None) -> Figures:
        """Measure in every set-up; `step` is called after each."""
        began, rows = time.monotonic(), list[Row]()
        for setup in self.setups(quick):
            rows.append(asdict(setup) | self.measure(setup))
            step()
        return gather(self.name, quick, self.columns, rows, time.monotonic() - began)


def question(name: str) -> str:
    """The first line of a study's package, which loads no framework."""
    asked = import_module(f"studies.{name}").__doc__
    assert asked, f"studies/{name}/__init__.py asks nothing"
    return asked.partition("\n")[0]


def load(name: str) -> Study:
    """A study by its name. Raises `FiguresError` where what it needs is not installed."""
    try:
        return import_module(f"studies.{name}.study").STUDY
    except ModuleNotFoundError as error:
        raise FiguresError(f"{error}; the studies need their extra: pip install '.[studies]'") from None
