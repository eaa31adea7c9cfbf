"""Random cases have answers, and are of what a port claims to have."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import find, given, settings

from conformance.numbers.rounding import DTYPES
from conformance.ops.answerable import has_answer, why_unanswerable
from conformance.ops.cases import select
from conformance.ops.draw import Draw
from conformance.ops.golden import compute
from conformance.ops.norms.add_norm import ADD_NORM_CASES
from conformance.ops.norms.cases import ROW_BY_ROW, ROW_NORM_CASES
from conformance.ops.norms.gated_norm import GATED_NORM_CASES
from conformance.ops.norms.grouped import GROUPED_CASES
from conformance.ops.norms.quantised import QUANTISED_CASES
from conformance.ops.norms.sharded import SHARDED_CASES
from conformance.port.protocol import Hello
from conformance.question.dialects import SUMS, Dialect
from conformance.tools.fuzzing.random_cases import cases, questions

HELLO = Hello(
    "port",
    ROW_BY_ROW,
    DTYPES,
    ("cast_then_scale", "scale_then_cast"),
    (0, 1),
    gradients=True,
    sums=SUMS,
    ys=("rounded", "unrounded"),
)
EVERYTHING = questions(HELLO)
OF_THE_KIT = (*ROW_NORM_CASES, *GROUPED_CASES, *SHARDED_CASES, *ADD_NORM_CASES, *GATED_NORM_CASES, *QUANTISED_CASES)
PLAIN = {case.dtype: case for case in select("rms_norm/*/random")}


def test_every_case_of_the_kit_has_an_answer():
    assert {case.id: why for case in OF_THE_KIT if (why := why_unanswerable(case))} == {}


@settings(max_examples=300, deadline=None)
@given(cases(EVERYTHING, groups=True))
def test_inputs_are_finite_and_every_element_has_an_interval(case):
    assert why_unanswerable(case) == ""
    golden = compute(case, 0)
    finite = {name for name, array in golden.inputs.items() if np.all(np.isfinite(array.astype(np.float64)))}
    drawn = {"x", "residual"} if case.x.rows in ("nan_row", "inf_row") else set()
    assert golden.inputs.keys() - finite <= drawn | ({"gate"} if getattr(case, "gate", "") == "nan" else set())
    assert ("x" in finite) == (case.x.rows not in ("nan_row", "inf_row"))
    if has_answer(case, golden):
        for output in golden.outputs.values():
            lower, upper = output.interval()
            assert np.all((lower <= upper) | np.isnan(output.value))


def test_every_question_is_asked():
    assert {(op, dtype, dialect) for op, dtype, dialect in EVERYTHING} == {
        (case.op, case.dtype, case.dialect) for case in OF_THE_KIT
    }


def test_only_what_a_port_claims_is_asked():
    claims = replace(HELLO, ops=("rms_norm",), dtypes=("bfloat16", "float32"), orders=("scale_then_cast",), weight_offsets=(0,))
    plain, float32_weight = Dialect("scale_then_cast"), Dialect("scale_then_cast", weight_dtype="float32")
    half = [("rms_norm", "bfloat16", plain), ("rms_norm", "bfloat16", float32_weight)]
    assert questions(claims) == (("rms_norm", "float32", Dialect("either_order")), *half)
    assert questions(claims, dtype="bfloat16") == tuple(half)
    assert questions(claims, op="layer_norm") == ()
    assert questions(claims, op=("layer_norm", "rms_norm"), dtype=("float32", "bfloat16")) == questions(claims)


def test_many_narrow_rows_are_among_them():
    """As many as overflow a grid of 65535."""
    float32 = questions(HELLO, op="rms_norm", dtype="float32")
    sure = settings(max_examples=2_000, deadline=None, database=None)
    case = find(cases(float32), lambda case: case.shape[0] > 65_535, settings=sure, random=Random(0))
    assert len(case.shape) == 2
    assert case.shape[-1] <= 4


@pytest.mark.parametrize(
    ("case", "answered"),
    [
        (replace(PLAIN["float32"], x=Draw(rows="constant_rows"), shape=(2, 26)), True),
        (replace(PLAIN["float32"], x=Draw(rows="constant_rows"), shape=(2, 27)), False),
        (replace(PLAIN["float32"], layout="expanded", shape=(26, 3)), True),
        (replace(PLAIN["float32"], layout="expanded", shape=(27, 3)), False),
        (replace(PLAIN["float32"], layout="dy_one_number", weight="absent", shape=(3, 26)), True),
        (replace(PLAIN["float32"], layout="dy_one_number", weight="absent", shape=(3, 27)), False),
        (replace(PLAIN["float32"], layout="dy_one_number", shape=(3, 27)), True),
        (replace(PLAIN["float32"], layout="dy_one_number", shape=(27, 3)), False),
        (replace(PLAIN["float32"], shape=(100_000, 2)), True),
        (replace(PLAIN["float32"], x=Draw(offset=1024.0), dy="aligned", shape=(4096, 2)), True),
        (replace(PLAIN["float32"], x=Draw(offset=1024.0), dy="aligned", shape=(46_798, 2)), False),
        (replace(PLAIN["float64"], x=Draw(offset=1024.0), dy="aligned", shape=(46_798, 2)), True),
        (replace(PLAIN["float32"], dy_scale=2.0**-20), True),
        (replace(PLAIN["float32"], dy_scale=2.0**-120), False),
        (replace(PLAIN["float64"], dy_scale=2.0**-120), True),
        (replace(PLAIN["float16"], op="layer_norm", x=Draw(rows="zero_rows"), dy_scale=2.0**-4), True),
        (replace(PLAIN["float16"], op="layer_norm", x=Draw(rows="zero_rows"), dy_scale=2.0**10), False),
    ],
    ids=[
        "few terms",
        "equal terms",
        "few rows",
        "equal rows",
        "few equal gradients",
        "equal gradients",
        "equal gradients with weights",
        "equal gradients in rows",
        "many narrow rows",
        "rows a little alike",
        "rows nearly alike",
        "rows nearly alike in float64",
        "small",
        "subnormal",
        "float64",
        "finite",
        "infinite less itself",
    ],
)
def test_what_only_the_numbers_tell(case, answered):
    assert has_answer(case, compute(case, 0)) == answered
