"""Norms that are right, as people write them in a framework under its own autograd: none of them is accused of anything."""

from types import ModuleType

import pytest

from conformance.numbers.rounding import HALF
from conformance.ops.cases import CASES
from tests.judge.innocents import jax_norms, torch_norms
from tests.judge.written.fault import Fault, Framework, judged

OPS = ("rms_norm", "layer_norm", "batch_norm")
SEEDS = range(2)

# What shows an order of additions best: paths of dx that nearly cancel. PyTorch, which compiles nothing in eager mode, is
# asked everything once.
TELLING = ("random", "aligned_dy", "spike", "mean_30", "width_7", "columns_near_eps")
ASKED = tuple(case for case in CASES if case.name in TELLING)
UNGROUPED = tuple(case for case in CASES if "group_size" not in case.settings)


def innocents(module: ModuleType, framework: Framework) -> list[Fault]:
    """The functions of a module that are named after an op."""
    return [
        Fault(name, run.__doc__ or "", op, framework, run)
        for name, run in vars(module).items()
        for op in OPS
        if name.startswith(op)
    ]


INNOCENTS = innocents(torch_norms, "torch") + innocents(jax_norms, "jax")


@pytest.mark.one_in(4)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("innocent", INNOCENTS, ids=lambda innocent: f"{innocent.framework}-{innocent.id}")
def test_nobody_is_accused_for_casting_x_more_than_once(innocent, dtype, seed):
    verdicts = judged(innocent, dtype, seed, UNGROUPED if (innocent.framework, seed) == ("torch", 0) else ASKED)
    assert len(verdicts) >= 6
    assert [verdict for verdict in verdicts if verdict.status != "pass"] == []
