"""Strangers' kernels before the kit's judge, as they ship, in Triton's mended interpreter and in Pallas's own."""

from collections import Counter
from pathlib import Path

import pytest

import ports.cuda_library
from conformance.ops.cases import CASES, select
from conformance.port.launch import Launch
from conformance.running.runner import run_ports

# Of every dialect what shows the most, and the batch that has no rows; `rows_8192` takes minutes.
ASKED = tuple(case for case in CASES if case.name in ("random", "rows_near_eps", "rows_0", "tiny_weight"))
PORTS = {  # each with the module that it needs, the fewest cases that pass, by op, and the ops with a failure on record
    "liger": ("liger_kernel", {"rms_norm": 20, "layer_norm": 8, "add_rms_norm": 5}, {"rms_norm"}),
    "fla": (
        "fla",
        {"rms_norm": 15, "layer_norm": 15, "add_rms_norm": 6, "add_layer_norm": 6, "gated_rms_norm": 16},
        {"rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm"},
    ),
    "xformers": ("xformers", {"rms_norm": 16, "add_rms_norm": 2}, {"add_rms_norm"}),
    "tokamax": ("tokamax", {"rms_norm": 26, "layer_norm": 26}, set()),
}

ON_A_GPU = {
    "quack": "quack-kernels",
    "flashinfer": "flashinfer-python",
    "transformer_engine": "transformer-engine",
    "vllm": "vllm",
    "helion": "helion",
}
CAN_BE_ASKED = select(["rms_norm/cast_then_scale/bfloat16/random", "rms_norm/scale_then_cast/bfloat16/random"])


@pytest.mark.parametrize("port", PORTS)
def test_kernels_are_not_accused_of_what_is_not_on_record(port, monkeypatch):
    module, passing, failing = PORTS[port]
    pytest.importorskip(module, reason=f"{module} is not installed: ports/{port}/README.md says how")
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    [run] = run_ports([Launch(f"ports.{port}", mode="eager", timeout=300)], ASKED, seed=1)
    assert not run.failure
    assert [verdict for verdict in run.verdicts if verdict.status in ("fail", "error")] == []
    passed, expected = (Counter(v.case.op for v in run.verdicts if v.status == status) for status in ("pass", "expected"))
    assert {op: passed[op] >= fewest for op, fewest in passing.items()} == dict.fromkeys(passing, True)
    assert expected.keys() == failing


@pytest.mark.parametrize(("port", "package"), list(ON_A_GPU.items()))
def test_where_a_library_is_missing_every_case_is_skipped_with_the_reason(port, package, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(ports.cuda_library, "find_spec", lambda module: None)
    [run] = run_ports([Launch(f"ports.{port}", mode="eager", in_process=True)], CAN_BE_ASKED)
    assert _reasons(run) == {f"not installed: pip install {package}"}


@pytest.mark.parametrize(
    ("port", "variables", "reason"),
    [
        ("quack", {}, "quack-kernels runs on a GPU alone: --device cuda"),
        ("helion", {}, "helion runs on a GPU alone: --device cuda, or HELION_INTERPRET=1"),
        ("helion", {"HELION_INTERPRET": "1"}, "HELION_EXAMPLES must name the folder `examples` of a checkout of Helion, with "),
    ],
)
def test_where_a_gpu_is_missing_every_case_is_skipped_with_the_reason(port, variables, reason, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(ports.cuda_library, "find_spec", lambda module: module)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    [run] = run_ports([Launch(f"ports.{port}", mode="eager", in_process=True)], CAN_BE_ASKED)
    assert [each.startswith(reason) for each in _reasons(run)] == [True]


def _reasons(run):
    """Why cases are skipped, other than for the order that a port does not have: it is asked for both."""
    assert {verdict.status for verdict in run.verdicts} == {"skip"}
    return {verdict.message for verdict in run.verdicts if not verdict.message.startswith("no order")}
