"""Faults as people write them are given their right names, or none; and honest code is not accused.

A sample, in a dtype each; `python -m benchmarks diagnosis` takes them all, in every dtype.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.diagnosis import outcomes_of, page_tables
from conformance.judging.diagnose import diagnose
from conformance.mistakes import MISTAKES
from conformance.ops.cases import CASES, select
from conformance.ops.norms.cases import NORMS
from conformance.ops.table import OPS
from tests.judge.written import SETS, faults_of
from tests.judge.written.fault import Fault, judged
from tests.judge.written.scoring import scored

EVERY, EVERY_COMPOSITE = 120, 400  # a block's diagnosis takes ten times as long
ALL = [fault for name in SETS for fault in faults_of(name)]
KNOWN = {mistake.id for mistake in MISTAKES}


# What once was named wrong, or had no name: a fault, a dtype, its name, and the outputs that are said to be right.
ROWS = (
    ("torch/rms_norm/rstd_cast_back/bfloat16", "bfloat16", "rstd_in_storage_dtype", ()),
    ("torch/layer_norm/layer_dx_unbiased", "bfloat16", "dx_over_n_minus_1", ()),
    ("torch/rms_norm/rms_y_cut_off/bfloat16_float16", "bfloat16", "y_truncated", ()),
    ("torch/rms_norm/eps_floored_in_float16/float16", "float16", "eps_at_least_1e-04_in_float16", ()),
    ("torch/rms_norm/rms_pairs_not_masked", "float32", "next_row_spoilt", ()),
    ("torch/rms_norm/x_hat_in_float8", "bfloat16", "x_hat_in_float8_e4m3", ()),
    ("torch/layer_norm/layer_halves_merged_without_delta", "float32", "welford_without_delta_halves", ()),
    ("torch/rms_norm/rstd_of_a_table/float32_bfloat16_float16", "float32", "rstd_of_12_bits", ()),
    (
        "torch/rms_norm/rms_statistics_on_a_matrix_unit/float32_float64",
        "float32",
        "statistics_of_bfloat16_x",
        ("dx", "dweight"),
    ),
    ("torch/rms_norm/rms_eps_beside_root_in_y", "float32", "eps_outside_root", ("dx", "dweight")),
    ("torch/rms_norm/rms_weight_missing_in_y", "float32", "weight_missing", ("dx",)),
    ("torch/rms_norm/always_dtype_of_x/bfloat16_float16", "float16", "y_demoted", ()),
    ("torch/rms_norm/rms_tail_not_masked", "float32", "tail_not_masked", ()),
    ("torch/rms_norm/rms_masked_with_ones", "float32", "padding_of_ones", ()),
    ("torch/layer_norm/layer_padded_rows_clamped", "float32", "dweight_repeats_last_row_8", ()),
    ("torch/layer_norm/layer_dx_never_written", "float32", "dx_zero", ()),
    ("torch/rms_norm/rms_dweight_over_accumulation_steps", "float32", "dweight_times_0.25", ()),
)


def sampled() -> Iterator:
    of_norms = [fault for fault in ALL if fault.op in NORMS]
    of_composites = [fault for fault in ALL if fault.op not in NORMS]
    for number, fault in enumerate([*of_norms[::EVERY], *of_composites[::EVERY_COMPOSITE]]):
        dtype = fault.dtypes[number % len(fault.dtypes) if fault.op in NORMS else 0]
        yield pytest.param(fault, dtype, id=f"{fault.id}-{dtype}")


def honest() -> list[Fault]:
    modules = [import_module(f"tests.judge.written.{name}") for name in SETS]
    return [fault for module in modules for fault in getattr(module, "HONEST", ())]


def test_there_are_as_many_as_are_said():
    assert len(ALL) >= 600
    assert [id_ for id_, count in Counter(fault.id for fault in ALL).items() if count > 1] == []


def test_the_page_has_the_figures_that_were_measured():
    assert page_tables() in (Path(__file__).parents[2] / "docs/diagnosis.md").read_text(encoding="utf-8")


def test_their_names_are_those_of_the_catalogue():
    unknown = {name for fault in ALL for name in fault.names if name not in KNOWN and "*" not in name}
    assert unknown == set()


@pytest.mark.parametrize(("fault", "dtype"), list(sampled()))
def test_a_written_fault_is_not_misnamed(fault, dtype):
    kind, diagnoses = scored(fault, dtype)
    assert kind != "misnamed", [diagnosis.mistake.id for diagnosis in diagnoses]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("id_", "dtype", "name", "right"), ROWS, ids=[f"{id_}-{dtype}" for id_, dtype, _, _ in ROWS])
def test_what_was_named_wrong_is_named(id_, dtype, name, right):
    """One name, for all of it; and the outputs that the fault is not in."""
    (fault,) = [fault for fault in ALL if fault.id == id_]
    (diagnosis,) = diagnose(judged(fault, dtype), seed=0)
    assert diagnosis.mistake.id == name
    assert diagnosis.right == right
    assert diagnosis.outputs >= 0.95 * diagnosis.failing


def test_two_nan_are_enough_for_a_name():
    """All that fails in bfloat16 are two elements of a sink's gradient: a NaN is no number that honest noise makes."""
    (fault,) = [fault for fault in ALL if fault.names == ("sink_left_out_of_maximum",)]
    (diagnosis,) = diagnose(judged(fault, "bfloat16", cases=select("pre_ln_block/gpt_oss/*")), seed=0)
    assert (diagnosis.mistake.id, diagnosis.where) == ("sink_left_out_of_maximum", ("dattention.sink",))


def test_what_agrees_with_no_case_is_not_named():
    """Keys that pass nothing back look like a softmax that passes nothing back, in a part of every case and in none whole.

    So they would have no name, if the catalogue had none for them.
    """
    (fault,) = [fault for fault in ALL if fault.id == "torch_block_keys_detached"]
    others = [mistake for mistake in MISTAKES if mistake.id not in fault.names]
    assert diagnose(judged(fault, "float32"), seed=0, among=others) == ()


def test_two_mistakes_of_a_library_are_both_named():
    """torch saves LayerNorm's statistics in half precision on a CPU, and adds up dweight and dbias in it; y is right."""
    (fault,) = [fault for fault in ALL if fault.id == "torch/layer_norm/native_on_cpu/bfloat16_float16"]
    diagnoses = diagnose(judged(fault, "bfloat16"), seed=0)
    names = [diagnosis.mistake.id for diagnosis in diagnoses]
    assert names == ["statistics_saved_in_storage_dtype", "parameter_gradients_accumulated_in_storage_dtype"]
    assert not any("y" in diagnosis.where for diagnosis in diagnoses)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("fault", honest(), ids=lambda fault: fault.id)
def test_honest_code_is_not_accused(fault):
    """In one dtype, and of a block every fourth case: JAX compiles every operation for every shape."""
    dtype = fault.dtypes[-2]
    cases = CASES[::4] if OPS[fault.op].taps else CASES
    statuses = {verdict.status for verdict in judged(fault, dtype, cases=cases)}
    assert "pass" in statuses
    assert statuses <= {"pass", "skip"}


def test_trials_are_gone_on_with_where_they_were_left_off(tmp_path):
    asked, done = [], tmp_path / "done.jsonl"

    def ask(name: str, number: int) -> list:
        asked.append(name)
        return [name, number + 1]

    with ThreadPoolExecutor(2) as pool:
        assert outcomes_of(pool, ask, [("a", 1)], done) == [["a", 2]]
        assert outcomes_of(pool, ask, [("b", 5), ("a", 1)], done) == [["b", 6], ["a", 2]]
        assert asked == ["a", "b"]
        assert outcomes_of(pool, ask, [("a", 1)], None) == [["a", 2]]
    assert asked == ["a", "b", "a"]
