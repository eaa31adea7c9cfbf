"""All cases."""

from fnmatch import fnmatchcase

from conformance.block.cases import BLOCK_CASES
from conformance.case import Case
from conformance.norms.batch_norm import BATCH_NORM_CASES
from conformance.norms.cases import ROW_NORM_CASES

CASES: tuple[Case, ...] = (*ROW_NORM_CASES, *BATCH_NORM_CASES, *BLOCK_CASES)


def select(
    pattern: str = "*", *, op: str | None = None, dtype: str | None = None, cases: tuple[Case, ...] = CASES
) -> tuple[Case, ...]:
    """The cases whose id matches a glob (`*` crosses slashes) and that are of the given op and dtype."""
    return tuple(
        case for case in cases if fnmatchcase(case.id, pattern) and op in (None, case.op) and dtype in (None, case.dtype)
    )
