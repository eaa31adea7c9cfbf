"""A block's intermediates as a port exports them: every stage judged on the values that the port itself fed to it.

What a block's outputs hide in half precision, a softmax or a sum of low precision, a single stage cannot: from inputs that are
known exactly, its value is known to a few roundings. And the stage at fault is told from those it fed.
"""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from conformance.numbers.expected import Expected
from conformance.numbers.rounding import FORMATS, HALF
from conformance.ops.block.case import CompositeCase
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Bounded, Normalise, OverHeads, merged
from conformance.ops.block.program import Program, Pulled, Stage
from conformance.ops.norms.expected import expected_outputs
from conformance.ops.norms.values import honest, row_norm_values
from conformance.question.dialects import Dialect

Array = np.ndarray
Values = dict[str, Array]

TAP = "tap."  # what the name of an exported intermediate begins with
HIDDEN = ("keys", "values")  # stages that only lay out what is known already; nobody exports them


def tap_names(program: Program) -> list[str]:
    """The intermediates of a program that a port may export, in data-flow order."""
    return [stage.name for stage in program.stages if stage.local_name not in HIDDEN]


def altered_taps(true: Program, altered: Program) -> list[str]:
    """Where an altered program parts from the true one: the intermediates whose op or inputs differ, in data-flow order.

    What a stage that nobody exports makes otherwise is seen where it is read.
    """
    others = {stage.name: stage for stage in altered.stages}
    differ = {stage.name for stage in true.stages if not _same(stage, others[stage.name])}
    unseen = {stage.name for stage in true.stages if stage.local_name in HIDDEN} & differ
    exported = (stage for stage in true.stages if stage.local_name not in HIDDEN)
    return [stage.name for stage in exported if stage.name in differ or unseen & set(stage.reads)]


def _same(a: Any, b: Any) -> bool:
    """Whether two stages, or what they consist of, make the same value; how they pull a cotangent back is no matter."""
    a, b = _forward(a), _forward(b)
    if is_dataclass(a):
        names = [field.name for field in fields(a)]
        return type(a) is type(b) and all(_same(getattr(a, name), getattr(b, name)) for name in names)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a is b or a == b


def _forward(op: Any) -> Any:
    """An op without what alters its backward pass alone."""
    while isinstance(op, Pulled):
        op = op.op
    return op


def expected_taps(case: CompositeCase, program: Program, given: Values, taps: Values) -> dict[str, Expected]:
    """What is expected of every tap, given the port's own values of those that it depends on, in the dtypes they came in.

    A tap may have the storage dtype or the compute dtype. One that depends on another that was not exported is left out.
    """
    dtypes = {name: tap.dtype.name for name, tap in taps.items()}
    values = {name: tensor.astype(np.float64) for name, tensor in (given | taps).items()}
    expected: dict[str, Expected] = {}
    with np.errstate(all="ignore"):
        for stage in program.stages:
            known = all(name in values for name in stage.reads)
            if stage.local_name in HIDDEN and known:
                values[stage.name] = stage.value(Machine(), values)
            elif stage.name in taps and known:
                expected[stage.name] = _expected(case, stage, values, dtypes[stage.name])
    return expected


def _expected(case: CompositeCase, stage: Stage, values: Values, dtype: str) -> Expected:
    stored = FORMATS[case.dtype]
    allowed = (case.dtype, stored.compute_dtype)
    dtype = dtype if dtype in allowed else case.dtype
    reads = [values[name] for name in stage.reads]
    forward = _forward(stage.op)
    if type(forward) is Normalise:
        return _of_norm(case, forward, reads, dtype)
    if type(forward) is OverHeads and type(forward.op) is Normalise:
        x, weight = reads
        return _of_norm(case, forward.op, [merged(x), weight], dtype).reshaped(x.shape)
    op: Bounded = forward
    u, v = stored.unit_roundoff, stored.compute.unit_roundoff
    value = op.forward(Machine(), *reads)
    half_width = op.bound(u, v, value, *reads)
    stored = Expected.around(value, half_width, case.dtype)
    if dtype == case.dtype:
        return stored
    # The wider dtype may hold what was rounded to the narrower one.
    return Expected(value, dtype, (*Expected.around(value, half_width, dtype).placements, stored.interval))


def _of_norm(case: CompositeCase, op: Normalise, reads: list[Array], dtype: str) -> Expected:
    """A norm's intervals, by the rule of the norms' own cases."""
    x, weight, *bias = reads
    dialect = Dialect(op.order if case.dtype in HALF else "either_order")
    given = x, np.zeros_like(x), weight, bias[0] if bias else np.zeros_like(weight)
    norm, _ = row_norm_values(*given, centred=op.centred, eps=op.eps, offset=op.weight_offset, arithmetic=honest(case.dtype))
    return expected_outputs(case.dtype, norm, dialect, {"y": dtype})["y"]
