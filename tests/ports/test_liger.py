"""Liger Kernel's Triton kernels before the kit's judge, in Triton's mended interpreter."""

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("liger_kernel", reason="Liger Kernel is not installed: pip install liger-kernel, on Linux")

from conformance.ops.cases import CASES
from conformance.port.launch import Launch
from conformance.running.runner import run_ports

# Of every dialect what shows the most, and the batch that has no rows; `rows_8192` takes minutes.
ASKED = tuple(case for case in CASES if case.name in ("random", "rows_near_eps", "rows_0", "tiny_weight"))


def test_it_is_not_accused_of_what_is_not_on_record(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    [run] = run_ports([Launch("ports.liger", mode="eager", timeout=300)], ASKED, seed=1)
    assert not run.failure
    assert [verdict for verdict in run.verdicts if verdict.status in ("fail", "error")] == []
    judged = {status: Counter(v.case.op for v in run.verdicts if v.status == status) for status in ("pass", "expected")}
    assert judged["pass"]["rms_norm"] >= 20
    assert judged["pass"]["layer_norm"] >= 8
    assert judged["pass"]["add_rms_norm"] >= 5
    assert judged["expected"].keys() == {"rms_norm"}
