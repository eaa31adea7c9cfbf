"""All cases."""

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

from conformance.numbers.nearest import did_you_mean
from conformance.ops.norms.cases import ROW_BY_ROW, NormCase
from conformance.ops.table import OPS
from conformance.question.case import Case

CASES: tuple[Case, ...] = tuple(case for op in OPS.values() for case in op.cases)


Names = str | Collection[str]
"""One name, or several."""


def case_type(op: Any) -> type[NormCase]:
    """The kind of case that a norm of rows has, such as may be drawn or read from a file; `NormCase` for anything else."""
    return type(OPS[op].cases[0]) if op in ROW_BY_ROW else NormCase


class NoCaseError(ValueError):
    """Nothing is asked for: a glob matches no case, or every case is excluded. `option` is the one to blame."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


def several(names: Names | None) -> tuple[str, ...]:
    """Names as a tuple: a string is one name, None is none."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def select(
    patterns: Names = "*", *, op: Names = (), dtype: Names = (), exclude: Names = (), cases: tuple[Case, ...] = CASES
) -> tuple[Case, ...]:
    """The cases whose id matches one of the globs (`*` crosses slashes) and none of those to exclude, in the order of `cases`.

    They are of the ops and dtypes given; where none is, of any.
    """
    wanted, unwanted = several(patterns), several(exclude)
    limited = (case for case in cases if is_of(case, op, dtype))
    return tuple(case for case in limited if _matches(case, wanted) and not _matches(case, unwanted))


def is_of(case: Case, op: Names, dtype: Names) -> bool:
    """Whether a case is of one of the ops and of one of the dtypes; none stands for any."""
    ops, dtypes = several(op), several(dtype)
    return (not ops or case.op in ops) and (not dtypes or case.dtype in dtypes)


def require(
    patterns: Names = "*", *, op: Names = (), dtype: Names = (), exclude: Names = (), cases: tuple[Case, ...] = CASES
) -> tuple[Case, ...]:
    """What `select` gives. Raises `NoCaseError` where that is nothing, or a glob has no part in it: it was mistyped."""
    ids = [case.id for case in cases]
    for pattern in several(exclude):
        if not select(pattern, cases=cases):
            raise NoCaseError("exclude", f"no case matches {pattern!r}{_suggestion(pattern, ids)}")
    for pattern in several(patterns):
        if not select(pattern, op=op, dtype=dtype, cases=cases):
            message = f"no case{_limits(op, dtype)} matches {pattern!r}{_suggestion(pattern, ids)}"
            raise NoCaseError("case", message)
    chosen = select(patterns, op=op, dtype=dtype, exclude=exclude, cases=cases)
    if not chosen:
        raise NoCaseError("exclude", "every case that is asked for is excluded")
    return chosen


def _matches(case: Case, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(case.id, pattern) for pattern in patterns)


def _limits(op: Names, dtype: Names) -> str:
    """The ops and dtypes that limit a choice, in words."""
    limits = [" or ".join(names) for names in (several(op), several(dtype)) if names]
    return f" of {' in '.join(limits)}" if limits else ""


def _suggestion(pattern: str, ids: list[str]) -> str:
    return did_you_mean(pattern, ids) or "; `conformance list` lists them all"
