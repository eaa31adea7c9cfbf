"""impl_torch's norms on several ranks, over gloo: both splits, before the kit's own judge; `run --ranks` asks them all."""

from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.ops.cases import CASES
from conformance.ops.ranks import on_ranks
from conformance.port.launch import Launch
from conformance.running.runner import run_ports
from impl_torch import add_layer_norm, add_rms_norm, layer_norm, rms_norm

OPS = ("rms_norm", "layer_norm", "add_rms_norm", "gated_rms_norm", "batch_norm")
RANKS = 2
ASKED = on_ranks((case for case in CASES if case.op in OPS and case.dtype == "bfloat16" and case.name == "random"), RANKS)


def test_both_splits_conform(monkeypatch):
    """Parts are uneven, and what each rank has whole is the same on all, to the bit."""
    monkeypatch.chdir(Path(__file__).parents[2])
    assert {(case.op, case.layout) for case in ASKED} == {
        (op, f"{split}_over_ranks") for op in OPS for split in ("rows", "features")
    }
    [run] = run_ports([Launch("impl_torch", mode="eager", ranks=RANKS, timeout=120)], ASKED)
    assert [(verdict.case.id, verdict.message) for verdict in run.verdicts if verdict.status != "pass"] == []


@pytest.mark.parametrize("group", ["process_group", "rows_group"])
@pytest.mark.parametrize("op", [rms_norm, layer_norm, add_rms_norm, add_layer_norm])
def test_no_kernel_knows_of_ranks(op, group):
    residual = [torch.ones(2, 3)] if op in (add_rms_norm, add_layer_norm) else []
    other: Any = {group: object()}
    with pytest.raises(ValueError, match=r"kernel is 'triton', which has no process_group"):
        op(torch.ones(2, 3), *residual, torch.ones(3), eps=1e-5, kernel="triton", **other)
