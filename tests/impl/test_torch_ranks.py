"""impl_torch's norms on several ranks, over gloo: both splits, before the kit's own judge; `run --ranks` asks them all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.judging.diagnose import diagnose
from conformance.ops.cases import CASES
from conformance.ops.ranks import on_ranks
from conformance.port.launch import Launch
from conformance.question.case import split_over_ranks
from conformance.question.collectives import Collectives
from conformance.running.runner import PortRun, run_ports
from impl_torch import add_layer_norm, add_rms_norm, layer_norm, rms_norm

OPS = ("rms_norm", "layer_norm", "add_rms_norm", "gated_rms_norm", "batch_norm")
RANKS = 2
ASKED = on_ranks((case for case in CASES if case.op in OPS and case.dtype == "bfloat16" and case.name == "random"), RANKS)

BY_ID: dict[str, Any] = {case.id: case for case in CASES}


def test_both_splits_conform(monkeypatch):
    """Parts are uneven, and what each rank has whole is the same on all, to the bit."""
    monkeypatch.chdir(Path(__file__).parents[2])
    assert {(case.op, case.layout) for case in ASKED} == {
        (op, f"{split}_over_ranks") for op in OPS for split in ("rows", "features")
    }
    [run] = run_ports([Launch("impl_torch", mode="eager", ranks=RANKS, timeout=120)], ASKED)
    assert [(verdict.case.id, verdict.message) for verdict in run.verdicts if verdict.status != "pass"] == []
    counted = {(verdict.case.op, verdict.case.layout): verdict.collectives for verdict in run.verdicts}
    assert counted["rms_norm", "rows_over_ranks"] == Collectives(1, 4 * 33)  # dweight, in float32
    assert counted["rms_norm", "features_over_ranks"] == Collectives(2, 2 * 4 * (6 + 1))  # a number a row, and the width
    assert counted["batch_norm", "features_over_ranks"] == Collectives(0, 0)


def of_modules(wrapped: str, *ids: str) -> PortRun:
    asked = [case for case in on_ranks([BY_ID[id_] for id_ in ids], RANKS) if split_over_ranks(case.layout) == "rows"]
    [run] = run_ports([Launch(f"tests.impl.ranked_modules:{wrapped}", mode="eager", ranks=RANKS, timeout=120)], asked)
    return run


FLOAT32_WEIGHT = "rms_norm/cast_then_scale_float32_weight/bfloat16/random"
HALF = "layer_norm/scale_then_cast/bfloat16/random"


@pytest.mark.parametrize("wrapped", ["FullyShard", "OfSequence"])
def test_modules_conform_where_torch_wraps_them(wrapped):
    run = of_modules(wrapped, FLOAT32_WEIGHT, "layer_norm/either_order/float32/random", *([HALF] * (wrapped == "OfSequence")))
    assert [(verdict.case.id, verdict.message) for verdict in run.verdicts if verdict.status != "pass"] == []


def test_fsdp2_reduces_the_gradient_of_a_half_precision_parameter_in_half_precision():
    run = of_modules("FullyShard", HALF)
    assert [found.mistake.id for found in diagnose(run.verdicts, seed=0)] == ["dweight_and_dbias_reduced_in_half"]


BLOCKS = ("pre_ln_block/qwen3/float32/random", "pre_ln_block/gpt2/float32/random", "pre_ln_block/qwen3/bfloat16/random")


def test_a_block_split_as_in_megatron_is_the_same_block(monkeypatch):
    """Forward and gradients, which are whole on both ranks and the same to the bit, by the block's own golden."""
    monkeypatch.chdir(Path(__file__).parents[2])
    asked = [replace(BY_ID[id_], s=8, name="tensor_parallel") for id_ in BLOCKS]
    [run] = run_ports([Launch("tests.impl.ranked_block:Megatron", mode="eager", ranks=2, timeout=120)], asked)
    assert [(verdict.case.id, verdict.status, verdict.message) for verdict in run.verdicts] == [
        (case.id, "pass", "") for case in asked
    ]


NAMED = {
    ("OwnStatistics", "layer_norm/either_order/float32/random"): "statistics_and_dx_of_own_features",
    ("OwnStatistics", "batch_norm/training/float32/random"): "statistics_and_dx_of_own_rows",
    ("MeanOfMeans", "rms_norm/either_order/float32/random"): "statistics_mean_of_means_of_features",
    ("MeanOfMeans", "batch_norm/training/float32/random"): "mean_of_means_of_rows_by_autograd",
    ("MeanOfVariances", "batch_norm/training/float32/random"): "mean_of_variances_of_rows",
    ("MeanOfRstds", "layer_norm/either_order/float32/random"): "mean_of_rstds_of_features",
    ("OverOwnWidth", "rms_norm/either_order/float32/sharded_features"): "statistics_and_dx_over_own_number_of_features",
    ("EpsOfEveryRank", "rms_norm/either_order/float32/rows_near_eps"): "eps_of_every_rank_over_features",
    ("SumsInStorage", "layer_norm/scale_then_cast/bfloat16/random"): "statistics_and_dx_sums_in_storage_dtype_of_features",
    ("UnbiasedByOwnRows", "batch_norm/training/float32/random"): "running_var_unbiased_by_own_rows",
    ("WeightNotSplit", "layer_norm/either_order/float32/sharded_features"): "parameters_of_first_features",
    ("NotReduced", "rms_norm/either_order/float32/random"): "dweight_of_own_rows",
    ("Averaged", "layer_norm/either_order/float32/random"): "dweight_and_dbias_averaged",
    ("ReducedTwice", "rms_norm/either_order/float32/random"): "dweight_reduced_twice",
    ("ReducedInHalf", "layer_norm/scale_then_cast/bfloat16/random"): "dweight_and_dbias_reduced_in_half",
}
"""What goes wrong among ranks, by `ranked_faults`, in which case, and its name."""


@pytest.fixture(scope="module")
def faulty() -> PortRun:
    cases = [replace(BY_ID[id_], name=f"{fault}-{BY_ID[id_].name}") for fault, id_ in NAMED]
    [run] = run_ports([Launch("tests.impl.ranked_faults:Faulty", ranks=RANKS, timeout=120)], on_ranks(cases, RANKS))
    return run


@pytest.mark.parametrize(("fault", "id_"), NAMED)
def test_what_goes_wrong_among_ranks_has_its_name_and_no_other(fault, id_, faulty):
    case = BY_ID[id_]
    verdicts = [each for each in faulty.verdicts if each.case.name.startswith(f"{fault}-") and each.case.op == case.op]
    failing = {split_over_ranks(verdict.case.layout) for verdict in verdicts if verdict.status == "fail"}
    assert len(failing) == 1  # the other split, where it is asked, passes
    assert [found.mistake.id for found in diagnose(verdicts, seed=0)] == [NAMED[fault, id_]]


@pytest.mark.parametrize("group", ["process_group", "rows_group"])
@pytest.mark.parametrize("op", [rms_norm, layer_norm, add_rms_norm, add_layer_norm])
def test_no_kernel_knows_of_ranks(op, group):
    residual = [torch.ones(2, 3)] if op in (add_rms_norm, add_layer_norm) else []
    other: Any = {group: object()}
    with pytest.raises(ValueError, match=r"kernel is 'triton', which has no process_group"):
        op(torch.ones(2, 3), *residual, torch.ones(3), eps=1e-5, kernel="triton", **other)
