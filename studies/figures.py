"""What a study measured, and what repeats it: rows of named values, as JSON and back."""

import json
import math
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from conformance.numbers.tensors import write_atomically

Array = np.ndarray
Row = dict[str, Any]  # a str, an int, a float or None under every name; a list of floats where there is one for every layer

FORMAT = 1
PACKAGES = ("jax", "numpy", "torch")  # whose versions are noted, of those that a study has loaded


class FiguresError(ValueError):
    """Figures that are missing, or are not what they should be; the message names the file."""


@dataclass(frozen=True)
class Figures:
    """The rows of a study: in each a set-up, seed included, and what was measured in it."""

    study: str
    quick: bool
    date: str
    machine: str
    versions: dict[str, str]
    seconds: float
    columns: dict[str, str]
    rows: tuple[Row, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for every repeat."""
        return tuple(sorted({row["seed"] for row in self.rows}))

    def where(self, **wanted: Any) -> list[Row]:
        """The rows with these values. Raises `FiguresError` where there is none: nothing follows from no figure."""
        found = [row for row in self.rows if all(row[name] == value for name, value in wanted.items())]
        if not found:
            which = ", ".join(f"{name} = {value!r}" for name, value in wanted.items())
            raise FiguresError(f"{self.study}: no figures{which and ' where '}{which}")
        return found

    def values(self, column: str, **wanted: Any) -> Array:
        """A column in float64, in the rows with these values; repeats come first."""
        return np.array([row[column] for row in self.where(**wanted)], np.float64)

    def choices(self, column: str) -> list[Any]:
        """What stands in a column, each once, as it comes. Raises as `where` does."""
        return list(dict.fromkeys(row[column] for row in self.where()))


def short(number: float) -> str:
    """A number in three digits, as a person writes it: 1e-8, 0.016, 1230."""
    if number == 0 or 1e-3 <= abs(number) < 1e4 or not math.isfinite(number):
        return f"{float(f'{number:.3g}'):g}"
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def spread(values: Array) -> str:
    """The median, and between which values all repeats lie."""
    middle, low, high = (short(float(value)) for value in (np.median(values), np.min(values), np.max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def gather(study: str, quick: bool, columns: dict[str, str], rows: Iterable[Row], seconds: float) -> Figures:
    """Rows measured just now, on this machine. Raises `FiguresError` where they are not as the study documents them."""
    rows = tuple(rows)
    if odd := [row for row in rows if list(row) != list(columns)]:
        raise FiguresError(f"{study}: a row has the columns {', '.join(odd[0])}; documented are {', '.join(columns)}")
    machine = f"a CPU ({platform.machine()}, {platform.system()}), {os.cpu_count()} cores"
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES if name in sys.modules}
    return Figures(study, quick, f"{datetime.now(UTC):%Y-%m-%d}", machine, versions, round(seconds, 1), columns, rows)


def write_figures(path: Path, figures: Figures) -> None:
    """Write JSON, a row a line, its values in the order of `columns`; raises `ValueError` for a number that JSON lacks."""
    fields = {"format": FORMAT} | asdict(figures)
    del fields["rows"]
    fields |= {"seeds": figures.seeds, "repeats": len(figures.seeds)}
    head = json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    rows = ",\n  ".join(json.dumps([*row.values()], allow_nan=False) for row in figures.rows)
    write_atomically(path, f'{head},\n "rows": [\n  {rows}\n ]\n}}\n'.encode())


def read_figures(path: Path) -> Figures:
    """The figures that `write_figures` wrote. Raises `FiguresError`, which names the file and what to do."""
    again = f"run `python -m studies {path.stem}` again"
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if fields["format"] != FORMAT:
            raise FiguresError(f"{path}: field format is {fields['format']!r}, not {FORMAT}; {again}")
        rows = tuple(dict(zip(fields["columns"], row, strict=True)) for row in fields["rows"])
        known: dict[str, Any] = {name: fields[name] for name in Figures.__dataclass_fields__}
        known["rows"] = rows
        return Figures(**known)
    except OSError as error:
        raise FiguresError(f"{path}: {error.strerror}; {again}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, FiguresError):
            raise
        raise FiguresError(f"{path}: not the figures of a study ({error!r}); {again}") from None
