"""A function judged from Python, in a notebook or a script: `conformance.check(my_rms_norm, op="rms_norm")`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from typing import Any

from rich.console import Console

from conformance.ops.cases import CASES, Names, require
from conformance.ops.quick import QUICK
from conformance.port.function import FunctionError, op_of, port_of
from conformance.port.launch import Launch
from conformance.report.building import build, digest
from conformance.report.console import show
from conformance.report.html import as_html
from conformance.report.report import CONFORMS, Report, Settings
from conformance.running.runner import run_port

WIDTH = 120  # characters of a line that is printed


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of a function: printed it is the report, in a notebook its page; `report` is the data."""

    report: Report

    @property
    def conforms(self) -> bool:
        """Whether every case passed that the function did not skip."""
        return self.report.exit_status == CONFORMS

    def require(self) -> "Checked":
        """Itself. Raises `AssertionError`, with the report, where the function does not conform."""
        __tracebackhide__ = True  # pytest shows the line that asks
        if not self.conforms:
            raise AssertionError(f"\n{self}")
        return self

    def __str__(self) -> str:
        """The report as a terminal shows it, without colours."""
        text = StringIO()
        show(self.report, Console(file=text, width=WIDTH, highlight=False))
        return text.getvalue().rstrip()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """The report as a page of its own, in a frame: its styles are its own."""
        page = as_html(self.report).replace("&", "&amp;").replace('"', "&quot;")
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 0"></iframe>'


def check(
    function: Callable[..., Any],
    op: str = "",
    *,
    dtype: Names = (),
    case: Names = "*",
    exclude: Names = (),
    quick: bool = False,
    seed: int = 0,
) -> Checked:
    """Judge a function of torch, JAX or NumPy in this very process.

    It is called as spec.md has the op: tensors by place, constants such as eps by name, if it takes them. Its gradients are
    those of its framework; of a NumPy function y alone is judged. `op` is needed where its name does not say it. `dtype`,
    `case` and `exclude` choose among the cases, each a name, or several; `quick` among the quick ones.

    torch then computes on one thread, and JAX with `jax_enable_x64`.

    Raises `conformance.port.function.FunctionError` where the function cannot be called in any framework at hand or its op is
    not known, and `conformance.ops.cases.NoCaseError` where nothing is asked.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if not (known := op_of(name, op)):
        raise FunctionError(f"{name}: its name is no op's; say which it is: check({name}, op=...)")
    asked = require(case, op=known, dtype=dtype, exclude=exclude, cases=QUICK if quick else CASES)
    spec = f"{getattr(function, '__module__', '')}:{name}"
    launch = Launch(spec, mode="eager", in_process=True, op=known, made=port_of({known: function}, name))
    began = time.monotonic()
    run = run_port(launch, asked, seed)
    settings = Settings(seed, launch.device, launch.mode, asked=len(asked), digest=digest(asked), quick=quick)
    return Checked(build([run], settings, time.monotonic() - began))
