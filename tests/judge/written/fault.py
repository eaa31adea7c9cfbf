"""A fault as people write it: code in a framework, under its own autograd, and what a diagnosis may call it.

What is altered in the golden agrees with its own golden by construction. Strangers' code does not: it rounds where its
framework rounds, and its gradients are autograd's or a kernel's. So the names are tried on code.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from conformance.judging.asked import is_small
from conformance.judging.compare import Verdict, compare
from conformance.numbers.rounding import DTYPES, DType
from conformance.ops.block.case import CompositeCase
from conformance.ops.cases import CASES
from conformance.ops.golden import golden
from conformance.ops.norms.cases import NORMS
from conformance.port import Port, Skip
from conformance.port.session import call_of
from conformance.question.case import Case, Layout

Framework = Literal["torch", "jax"]


@dataclass(frozen=True, eq=False)
class Fault:
    """Code that does one thing wrong.

    id, what
        What it is called, and what was done, in words.
    run
        The op as a port's method has it: a norm is `run(x, weight, bias, *, eps, weight_offset, order) -> y` (`bias` is
        always passed, None for RMSNorm), another op as `conformance.port.Port` says. Differentiated by the framework.
    names
        The mistakes of the catalogue that are right for it, or equivalents of one. Empty: the catalogue has none, and
        nothing may be named.
    group
        The outputs that the fault is in, as the diagnosis is to say it: `all`, `forward` or `backward`.
    dtypes
        Those in which it is asked.
    taps
        Whether a block exports its intermediates.
    layout
        The only one in which it is asked; if it is none, a norm is asked in the small cases.
    of_today
        Whether it has what today's models add to a block; it is then asked the cases with something of that, else the others.
    """

    id: str
    what: str
    op: str
    framework: Framework
    run: Callable[..., Any]
    names: tuple[str, ...] = ()
    group: Literal["all", "forward", "backward"] = "all"
    dtypes: tuple[DType, ...] = field(default=DTYPES)
    taps: bool = False
    layout: Layout | None = None
    of_today: bool = False


def judged(fault: Fault, dtype: DType, seed: int = 0, cases: tuple[Case, ...] = CASES) -> tuple[Verdict, ...]:
    """The verdicts on a fault in a dtype, in eager mode: a norm's in the small cases, or in its layout, another op's in all."""
    port = _port(fault)
    of_op = [case for case in cases if (case.op, case.dtype) == (fault.op, dtype) and _is_of_today(case) == fault.of_today]
    if fault.layout:
        asked = [case for case in of_op if case.layout == fault.layout]
    else:
        asked = [case for case in of_op if is_small(case) or fault.op not in NORMS]
    return tuple(_verdict(port, case, seed) for case in asked)


def _is_of_today(case: Case) -> bool:
    """Whether a case asks for what a plain block has not: a window, a sink and the like."""
    return isinstance(case, CompositeCase) and bool(case.features)


def _verdict(port: Port, case: Case, seed: int) -> Verdict:
    expected = golden(case, seed)
    try:
        with warnings.catch_warnings(action="ignore"):  # a framework's own, of a width of one, say
            answer = port.answer(call_of(case, tuple(case.outputs), expected.inputs, taps=port.taps), expected.inputs)
    except Skip as reason:
        return Verdict("port", case, "skip", message=str(reason))
    except Exception as error:  # a fault may not run everywhere
        return Verdict("port", case, "error", message=f"{type(error).__name__}: {error}")
    return compare("port", expected, answer.outputs, tuple(case.outputs))


def _port(fault: Fault) -> Port:
    if fault.framework == "torch":
        from impl_torch.port import TorchPort as Base
    else:
        from impl_jax.port import JaxPort as Base

    def rms_norm(x: Any, weight: Any, *, eps: float, weight_offset: float = 0.0, order: str = "either_order") -> Any:
        return fault.run(x, weight, None, eps=eps, weight_offset=weight_offset, order=order)

    def layer_norm(
        x: Any, weight: Any, bias: Any, *, eps: float, weight_offset: float = 0.0, order: str = "either_order"
    ) -> Any:
        return fault.run(x, weight, bias, eps=eps, weight_offset=weight_offset, order=order)

    norms = {"rms_norm": rms_norm, "layer_norm": layer_norm}
    method = staticmethod(norms.get(fault.op, fault.run))
    return type("Port", (Base,), {fault.op: method, "taps": fault.taps})(jit=False)
