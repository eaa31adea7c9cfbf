"""Faults collected as they are written: each is a function, and its docstring says what was done."""

from collections.abc import Callable
from typing import Any, Literal

from conformance.numbers.rounding import DTYPES, DType
from conformance.question.case import Layout
from tests.judge.written.fault import Fault, Framework

Run = Callable[..., Any]


class Collection:
    """The faults of one framework, in the order in which they are written."""

    def __init__(self, framework: Framework) -> None:
        self.framework: Framework = framework
        self.faults: list[Fault] = []

    def fault(
        self,
        op: str,
        *names: str,
        group: Literal["all", "forward", "backward"] = "all",
        dtypes: tuple[DType, ...] = DTYPES,
        layout: Layout | None = None,
    ) -> Callable[[Run], Run]:
        """Collect the decorated function under its own name; `names` are the mistakes that are right for it."""

        def collect(run: Run) -> Run:
            name, what = run.__name__, (run.__doc__ or "").strip()
            self.faults.append(
                Fault(f"{self.framework}/{name}", what, op, self.framework, run, names, group, dtypes, layout=layout)
            )
            return run

        return collect
