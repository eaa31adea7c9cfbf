"""One shape that somebody asks for: which cases it makes, and whether they fit into memory."""

import tracemalloc
from dataclasses import replace
from math import prod

import pytest

from conformance.judging.compare import compare
from conformance.numbers.rounding import DTYPES
from conformance.ops import shapes
from conformance.ops.cases import select
from conformance.ops.golden import compute
from conformance.ops.norms.cases import NORMS, QUANTISED
from conformance.ops.shapes import GIB, ShapeError, estimate, free_memory, peak_bytes, read_shape, require_memory, shaped
from conformance.port.session import OUTPUTS_LIMIT, outputs_limit

SHAPED = [op for op in NORMS if op not in QUANTISED]


def test_a_shape_makes_the_random_case_of_every_norm_dtype_and_dialect():
    cases = shaped("4096x8192")
    assert {case.shape for case in cases} == {(4096, 8192)}
    assert cases[0].id == "rms_norm/either_order/float64/shape_4096x8192"
    models = select("*_norm/*/random", op=SHAPED)
    assert [replace(case, name="random", exposes="", shape=()) for case in cases] == [
        replace(model, exposes="", shape=()) for model in models
    ]


def test_a_single_row_is_no_batch():
    assert {case.op for case in shaped("1x7")} == {case.op for case in shaped("7")} == set(SHAPED) - {"batch_norm"}
    assert {case.op for case in shaped("2x7")} == set(SHAPED)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "is no shape, such as 4096x8192"),
        ("4096,8192", "'4096,8192' is no shape"),
        ("-1x3", "'-1x3' is no shape"),
        ("4x", "'4x' is no shape"),
        ("4x0", "the last axis must have a feature"),
        ("1x1x1x1x1x1x1x1x1", "has 9 axes"),
    ],
)
def test_what_is_no_shape_is_said(said, words):
    with pytest.raises(ShapeError, match=words):
        read_shape(said)


def test_more_memory_than_is_free_is_refused_with_both_figures(monkeypatch):
    cases = [case for case in shaped("65536x8192") if case.op == "rms_norm" and case.dtype == "bfloat16"][:1]
    assert prod(cases[0].shape) > 2**24
    monkeypatch.setattr(shapes, "free_memory", lambda: 3 * GIB)
    with pytest.raises(ShapeError, match=r"\[65536, 8192\] takes about 228\.0 GiB.*; 3\.0 GiB are free"):
        require_memory(cases, ports=1)
    monkeypatch.setattr(shapes, "free_memory", lambda: 229 * GIB)
    require_memory(cases, ports=1)
    with pytest.raises(ShapeError, match="by each of 2 ports takes about 456"):
        require_memory(cases, ports=2)


def test_free_memory_is_that_of_a_machine():
    assert 2**26 < free_memory() < 2**50


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", SHAPED)
def test_the_estimate_is_what_judging_takes(op, dtype):
    """The worst of the dialects, with an output that fails: at most the estimate, and at least half of it."""
    cases = [case for case in shaped("64x512") if (case.op, case.dtype) == (op, dtype)][:1]
    case = cases[0]
    tracemalloc.start()
    golden = compute(case, 0)
    outputs = {name: output.nearest.copy() for name, output in golden.outputs.items()}
    outputs["y"][0, 0] += 1
    assert compare("port", golden, outputs, tuple(case.outputs)).status == "fail"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 * peak_bytes(case) * prod(case.shape) < peak < 1.1 * estimate(cases, ports=1)


def test_a_large_case_may_have_large_outputs():
    (small,) = select("rms_norm/either_order/float32/random")
    assert outputs_limit(small) == OUTPUTS_LIMIT
    assert outputs_limit(replace(small, shape=(2**14, 2**13))) > 2 * 2**27 * 8
