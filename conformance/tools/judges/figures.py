"""The figures of a trial: kept as JSON, and counted for a table."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import conformance
from conformance.numbers import json_text
from conformance.tools.judges.judge import Judge
from conformance.tools.judges.trial import DTYPES, Accused, Inputs, Trial

FORMAT = 1


class FiguresError(ValueError):
    """A file that does not hold the figures of a trial; the text names it."""


@dataclass(frozen=True, slots=True)
class Count:
    """So many of so many."""

    part: int
    whole: int

    @property
    def share(self) -> float:
        """The part of the whole; nothing of nothing is zero."""
        return self.part / self.whole if self.whole else 0.0

    def __str__(self) -> str:
        return f"{self.part}/{self.whole}" if self.whole else "-"


@dataclass(frozen=True, slots=True)
class Figures:
    """What a trial found, and the version of the kit that found it."""

    conformance: str
    trials: tuple[Trial, ...]
    accused: tuple[Accused, ...]

    def missed(self, judge: Judge, shown: Iterable[str], dtypes: Iterable[str] = DTYPES) -> Count:
        """The mistakes that a judge lets pass on the kit's cases, of those that are shown by this."""
        of = [each for each in self._tried(judge, shown, dtypes)]
        return Count(sum(judge.id in each.passed for each in of), len(of))

    def missed_on_its_own(self, judge: Judge, shown: Iterable[str], dtypes: Iterable[str] = DTYPES) -> Count:
        """The same on its own inputs, in the ops and dtypes that it has some in."""
        has = {(case.op, case.dtype) for case in judge.own}
        of = [each for each in self._tried(judge, shown, dtypes) if (each.op, each.dtype) in has]
        return Count(sum(judge.id in each.own for each in of), len(of))

    def rejected(self, judge: str, inputs: Inputs, dtypes: Iterable[str] = DTYPES) -> Count:
        """The honest outputs that a judge rejects."""
        of = [each for each in self.accused if (each.judge, each.inputs) == (judge, inputs) and each.dtype in set(dtypes)]
        return Count(sum(each.rejected for each in of), sum(each.asked for each in of))

    def _tried(self, judge: Judge, shown: Iterable[str], dtypes: Iterable[str]) -> list[Trial]:
        wanted = set(shown) if judge.asks_gradients else set(shown) & {"y"}
        return [each for each in self.trials if each.shown in wanted and each.op in judge.ops and each.dtype in set(dtypes)]


def of_trials(trials: Iterable[Trial], accused: Iterable[Accused]) -> Figures:
    """The figures of a trial by this kit."""
    return Figures(conformance.__version__, tuple(trials), tuple(accused))


def as_json(figures: Figures) -> str:
    """The figures as JSON, an entry a line."""
    lists = {"trials": figures.trials, "accused": figures.accused}
    laid_out = [
        f' "{name}": [\n  ' + ",\n  ".join(json.dumps(asdict(each)) for each in entries) + "\n ]"
        for name, entries in lists.items()
    ]
    head = [f' "format": {FORMAT}', f' "conformance": {json.dumps(figures.conformance)}']
    return "{\n" + ",\n".join(head + laid_out) + "\n}\n"


def read(path: Path) -> Figures:
    """The figures that `as_json` wrote. Raises `FiguresError`."""
    try:
        document: dict[str, Any] = json_text.parse(path.read_bytes())
        if document["format"] != FORMAT:
            raise FiguresError(f"{path}: not of format {FORMAT}; run `conformance judges --json` again")
        trials = [Trial(**{name: _tuple(value) for name, value in each.items()}) for each in document["trials"]]
        return Figures(document["conformance"], tuple(trials), tuple(Accused(**each) for each in document["accused"]))
    except OSError as error:
        raise FiguresError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, FiguresError):
            raise
        raise FiguresError(f"{path}: not the figures of a trial: {error}") from None


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
