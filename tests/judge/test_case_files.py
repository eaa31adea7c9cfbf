"""A case written is the case read; a file that is not cases says where, and what it must be."""

import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.ops.case_files import CaseFileError, as_json, read_case, read_cases
from conformance.ops.cases import select
from conformance.ops.norms.cases import ROW_NORM_CASES
from conformance.question import dialects
from conformance.question.case import Layout
from conformance.tools.fuzzing.random_cases import cases
from tests.judge.test_random_cases import EVERYTHING

(PLAIN,) = select("layer_norm/cast_then_scale/bfloat16/random")
ROUNDED = dialects.HALF_SUMS[0]


@settings(max_examples=200, deadline=None)
@given(cases(EVERYTHING, groups=True) | st.sampled_from(ROW_NORM_CASES))
def test_what_is_written_is_read(case):
    assert read_case(json.loads(as_json(case))) == case


def test_a_file_holds_one_or_many(tmp_path):
    file = tmp_path / "cases.json"
    for many in (ROW_NORM_CASES[:1], ROW_NORM_CASES[:3], ROW_NORM_CASES):
        file.write_text(as_json(*many))
        assert read_cases(file) == many


def altered(**fields: object) -> dict:
    """The plain case with fields replaced; `x__scale` stands for x.scale."""
    item = json.loads(as_json(PLAIN))
    for path, value in fields.items():
        *outer, last = path.split("__")
        (item[outer[0]] if outer else item)[last] = value
    return item


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"shape": 3}, "shape: 3 must be a list of integers"),
        ({"shape": [3, 2.0]}, "shape[1]: 2.0 must be an integer"),
        ({"shape": [3, True]}, "shape[1]: true must be an integer"),
        ({"shape": []}, "shape: it must have a last axis of at least 1, and no negative one"),
        ({"shape": [3, 0]}, "shape: it must have a last axis of at least 1, and no negative one"),
        ({"shape": [-1, 3]}, "shape: it must have a last axis of at least 1, and no negative one"),
        ({"shape": [10**6, 10**6]}, "shape: it has more than 16777216 elements, which are enough for any fault"),
        ({"shape": [7], "layout": "permuted"}, "layout: permuted needs two axes"),
        ({"layout": "folded"}, f'layout: "folded" must be one of {", ".join(map(json.dumps, get_args(Layout)))}'),
        ({"layout": "weight_strided", "weight": "absent"}, "layout: weight_strided is about the weight, which is absent"),
        ({"layout": "residual_aliased"}, "layout: residual_aliased is that of a residual that is x"),
        ({"layout": "dy_one_number", "dy": "aligned"}, "dy: aligned with x, it is not one number, which the layout asks for"),
        ({"layout": "expanded", "x__rows": "spike"}, "layout: expanded repeats the first entry, and spike makes it another"),
        ({"bias": 1}, "bias: 1 must be true or false"),
        ({"op": "rms_norm"}, "bias: rms_norm has none"),
        ({"op": "batch_norm"}, "op: batch_norm is asked by the kit's own cases alone; it must be another norm"),
        ({"op": "add_rms_norm"}, "residual: missing"),
        ({"name": "a/b"}, "name: 'a/b' must be letters, digits and any of _ . + -"),
        ({"name": None}, "name: null must be a string"),
        ({"eps": "1e-5"}, 'eps: "1e-5" must be a number'),
        ({"eps": 1e-5}, "eps: it must be positive, finite and a float32 number, which every implementation can be given"),
        ({"eps": 0}, "eps: it must be positive, finite and a float32 number, which every implementation can be given"),
        ({"x": [1, 0, "dense"]}, 'x: [1, 0, "dense"] must be an object'),
        ({"x__scale": float("nan")}, "x.scale: it must be finite and not negative"),
        ({"x__scale": 1e12}, "x: values of up to 3.46e+12 are beyond the dtype, or their squares and cubes beyond float32"),
        ({"x__offset": float("-inf")}, "x.offset: it must be finite"),
        ({"x__rows": "nan_row", "shape": [2, 1]}, "x.rows: nan_row needs a row of two features"),
        ({"dy": "aligned", "weight": "absent"}, "dy: aligned is x times the weight, which is absent"),
        ({"dy_scale": -1.0}, "dy_scale: it must be finite and not negative"),
        ({"dtype": "float16", "dy_scale": 1e6}, "dy: values of up to 3.46e+06 are beyond float16"),
        ({"dtype": "int8"}, 'dtype: "int8" must be one of "float64", "float32", "bfloat16", "float16"'),
        ({"dtype": "float32"}, "dialect: float32 has either_order, either_order_offset_1, not cast_then_scale"),
        ({"dialect__weight_offset": True}, "dialect.weight_offset: true must be one of 0, 1"),
        (
            {"dialect__weight_offset": 1, "weight": "absent"},
            "weight: cast_then_scale_offset_1 is about the weight, which is absent",
        ),
        ({"dialect__colour": "blue"}, "dialect.colour: unknown; the fields are order, weight_offset, weight_dtype, sum, y"),
        ({"dialect__sum": "rouned"}, 'dialect.sum: "rouned" must be one of "", "rounded", "unrounded", "float32"'),
        (
            {"dialect__sum": "rounded"},
            f"dialect: bfloat16 has {', '.join(each.name for each in dialects.of('bfloat16'))}, not {ROUNDED.name}",
        ),
    ],
)
def test_what_is_wrong_is_named(fields, problem):
    with pytest.raises(CaseFileError) as error:
        read_case(altered(**fields))
    assert str(error.value) == problem


def test_a_dialect_names_a_sum_only_where_something_is_added():
    assert "sum" not in altered()["dialect"]
    assert read_case(altered(dialect__sum="")) == PLAIN


def test_nothing_else_may_be_left_out():
    for name in altered():
        item = altered()
        del item[name]
        with pytest.raises(CaseFileError, match=f"^{name}: missing$"):
            read_case(item)
    for name in altered()["dialect"]:
        item = altered()
        del item["dialect"][name]
        with pytest.raises(CaseFileError, match=rf"^dialect\.{name}: missing$"):
            read_case(item)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ("\xff", "not JSON: "),
        ("[]", "an empty list; there is nothing to ask"),
        ("3", "a case: 3 must be an object"),
        (f"[{as_json(PLAIN)}, 3]", "case 1: a case: 3 must be an object"),
        (as_json(PLAIN, PLAIN), f"case 1: name: there is another {PLAIN.id}; a case is known by its id"),
    ],
    ids=["cut off", "deep", "no text", "empty", "no object", "no object in a list", "twice"],
)
def test_a_broken_file_says_how(tmp_path, content, problem):
    file = tmp_path / "cases.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(CaseFileError) as error:
        read_cases(file)
    assert str(error.value).startswith(f"{file}: {problem}")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CaseFileError, match=r"nowhere\.json: No such file"):
        read_cases(tmp_path / "nowhere.json")
