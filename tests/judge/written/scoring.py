"""Whether a written fault is given its right name."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from benchmarks.equivalence import equivalent
from conformance.judging.diagnose import diagnose
from conformance.judging.diagnosis import Diagnosis
from conformance.mistakes import MISTAKES
from conformance.numbers.rounding import DType
from conformance.ops.norms.cases import NORMS
from tests.judge.written.fault import Fault, judged

BY_ID = {mistake.id: mistake for mistake in MISTAKES}
IN_BACKWARD = "_in_backward"

Kind = Literal["not seen", "right", "equivalent", "misnamed", "unnamed", "without a name"]
"""`unnamed` is a fault that the catalogue has and the diagnosis does not name; `without a name` one that it does not have."""


def scored(fault: Fault, dtype: DType, seed: int = 0) -> tuple[Kind, tuple[Diagnosis, ...]]:
    """What the first name of a fault's diagnosis is worth, and the diagnoses."""
    verdicts = judged(fault, dtype, seed)
    if not any(verdict.status == "fail" for verdict in verdicts):
        return "not seen", ()
    diagnoses = diagnose(verdicts, seed)
    return _kind(fault, dtype, diagnoses), diagnoses


def _kind(fault: Fault, dtype: DType, diagnoses: Sequence[Diagnosis]) -> Kind:
    if not diagnoses:
        return "unnamed" if fault.names else "without a name"
    named = diagnoses[0].mistake
    if any(fnmatchcase(named.id, name) for name in fault.names):
        return "right"
    if _is_the_backward_half(diagnoses[0], fault):
        return "equivalent"
    if fault.op not in NORMS:
        return "equivalent" if _explains_as_much(diagnoses[0], fault) else "misnamed"
    known = [BY_ID[name] for name in fault.names if name in BY_ID]
    return "equivalent" if any(equivalent(named, mistake, fault.op, dtype) for mistake in known) else "misnamed"


def _explains_as_much(diagnosis: Diagnosis, fault: Fault) -> bool:
    """Whether the next best is the right one, and explains every output that the first does: no eps is an eps of 1e-12."""
    mistake, outputs = diagnosis.runner_up or (diagnosis.mistake, 0)
    return mistake.id in fault.names and outputs >= diagnosis.outputs


def _is_the_backward_half(diagnosis: Diagnosis, fault: Fault) -> bool:
    """Whether "eps is 1e-6, in dx and dweight; y is right" is said of an eps of 1e-6 in the backward pass."""
    return diagnosis.mistake.id + IN_BACKWARD in fault.names and "y" in diagnosis.right
