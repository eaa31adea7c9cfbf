"""Blocks as people write them in PyTorch: the honest ones pass every case, and each mistake in them fails one."""

import pytest

from conformance.numbers.rounding import DTYPES
from conformance.ops.cases import CASES
from tests.judge.written.fault import Fault, judged
from tests.judge.written.torch_blocks import FAULTS
from tests.judge.written.torch_blocks.block import Block, as_op
from tests.judge.written.torch_blocks.by_hand import ByHand

EVERY = 8


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "seed"), [(Block, 0), (ByHand, 1)])
def test_an_honest_block_passes_every_case(block, dtype, seed):
    honest = Fault(block.__name__, "nothing is wrong", "pre_ln_block", "torch", as_op(block), taps=True)
    verdicts = judged(honest, dtype, seed)
    of_dtype = [case for case in CASES if (case.op, case.dtype) == ("pre_ln_block", dtype)]
    assert len(verdicts) == sum(not case.features for case in of_dtype)
    assert [(verdict.case.id, verdict.message) for verdict in verdicts if verdict.status != "pass"] == []


@pytest.mark.parametrize("fault", FAULTS[::EVERY], ids=lambda fault: fault.id)
def test_a_mistake_fails_a_case_and_answers_all(fault):
    """In float32, or in the first dtype that it is asked in; `python -m benchmarks diagnosis` asks them all, in every dtype."""
    dtype = "float32" if "float32" in fault.dtypes else fault.dtypes[0]
    statuses = {verdict.status for verdict in judged(fault, dtype)}
    assert "fail" in statuses
    assert statuses <= {"pass", "fail"}


def test_faults_have_names_of_their_own():
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)
