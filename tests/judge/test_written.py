"""Faults as people write them are given their right names, or none; and honest code is not accused.

A sample, in a dtype each; `python -m benchmarks diagnosis` takes them all, in every dtype.
"""

from collections import Counter
from collections.abc import Iterator
from importlib import import_module

import pytest

from conformance.mistakes import MISTAKES
from tests.judge.written import SETS, faults_of
from tests.judge.written.fault import Fault, judged
from tests.judge.written.scoring import scored

EVERY = 20
ALL = [fault for name in SETS for fault in faults_of(name)]
KNOWN = {mistake.id for mistake in MISTAKES}


def sampled() -> Iterator:
    for number, fault in enumerate(ALL[::EVERY]):
        dtype = fault.dtypes[number % len(fault.dtypes)]
        yield pytest.param(fault, dtype, id=f"{fault.id}-{dtype}")


def honest() -> list[Fault]:
    modules = [import_module(f"tests.judge.written.{name}") for name in SETS]
    return [fault for module in modules for fault in getattr(module, "HONEST", ())]


def test_there_are_as_many_as_are_said():
    assert len(ALL) >= 600
    assert [id_ for id_, count in Counter(fault.id for fault in ALL).items() if count > 1] == []


def test_their_names_are_those_of_the_catalogue():
    unknown = {name for fault in ALL for name in fault.names if name not in KNOWN and "*" not in name}
    assert unknown == set()


@pytest.mark.parametrize(("fault", "dtype"), list(sampled()))
def test_a_written_fault_is_not_misnamed(fault, dtype):
    kind, diagnoses = scored(fault, dtype)
    assert kind != "misnamed", [diagnosis.mistake.id for diagnosis in diagnoses]


@pytest.mark.parametrize("fault", honest(), ids=lambda fault: fault.id)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_honest_code_is_not_accused(fault, dtype):
    if dtype in fault.dtypes:
        assert {verdict.status for verdict in judged(fault, dtype)} <= {"pass", "skip"}
