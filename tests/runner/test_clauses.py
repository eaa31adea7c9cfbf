"""Every clause of docs/spec.md has a case, every case and mistake a clause, and all are known to the page."""

import re

from conformance.mistakes import MISTAKES
from conformance.ops.cases import CASES, select
from conformance.tools import explanation
from conformance.tools.clauses import broken_by, clauses_of, written
from conformance.tools.explanation import explain_case, explain_mistake

TESTED = {clause for case in CASES for clause in clauses_of(case)}


def test_an_anchor_is_written_once():
    assert len(written()) == len(set(written()))


def test_every_clause_is_tested_by_a_case_and_every_case_tests_one_that_is_written():
    assert set(written()) == TESTED


def test_every_mistake_breaks_a_clause_that_is_written():
    assert all(broken_by(mistake) and set(broken_by(mistake)) <= set(written()) for mistake in MISTAKES)


def test_clauses_follow_from_what_a_case_is():
    [case] = select("layer_norm/cast_then_scale_offset_1/bfloat16/random")
    assert {"op-layer_norm", "gradients", "order-cast_then_scale", "weight_offset-1"} <= set(clauses_of(case))
    assert not {"strides", "weight-absent", "exact"} & set(clauses_of(case))
    [strided] = select("rms_norm/either_order/float32/strided")
    assert "strides" in clauses_of(strided)
    [hides] = [case for case in CASES if "hides_a_row" in case.id][:1]
    assert "query-without-key" in clauses_of(hides)


def test_they_are_explained(monkeypatch):
    [case] = select("rms_norm/either_order/float32/zero_rows")
    assert re.search(r"clauses .*edge-zero_rows", explain_case(case))
    monkeypatch.setattr(explanation, "_seen", lambda mistake, dtype: "")  # which tries every case
    mistake = next(mistake for mistake in MISTAKES if mistake.id == "eps_missing")
    assert re.search(r"breaks +spec\.md#eps, ", explain_mistake(mistake))
