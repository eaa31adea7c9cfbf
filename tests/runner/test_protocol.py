"""What a port says, taken at its word only where it is one."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.ops.cases import CASES
from conformance.ops.golden import golden
from conformance.ops.op import Output
from conformance.ops.table import OPS
from conformance.port.protocol import (
    EXCERPT,
    ON_RANKS,
    Call,
    Hello,
    ProtocolError,
    decode,
    encode,
    printable,
    read_call,
    read_hello,
    read_text,
)
from conformance.port.session import call_of, read_collectives, read_overwrote
from conformance.question.collectives import Collectives

HELLO = {"type": "hello", "protocol": 2, "ops": [], "dtypes": [], "orders": [], "gradients": False}
PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)

LOADED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a loaded machine the first draw takes long


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("name", [None, 7, ["a"]], "a string"),
        ("ops", [None, "rms_norm", [1], [["rms_norm"]], {"rms_norm": 1}], "a list of strings"),
        ("dtypes", [None, "float32", [None]], "a list of strings"),
        ("orders", [None, [1, 2], 0], "a list of strings"),
        ("weight_offsets", [None, 0, [[0]], [0, 2], [True], [0.0], [{}]], "a list of 0 and 1"),
        ("gradients", [None, 1, "perhaps", []], "true or false"),
        ("device", [None, 0], "a string"),
        ("versions", [None, [], {"torch": 2}, "1.0"], "an object of strings"),
        ("expected", [None, ["*"], {"*": None}], "an object of strings"),
        ("taps", [None, 0, "yes"], "true or false"),
        ("orders_by", [None, ["*"], {"*": "scale_then_cast"}, {"*": [1]}], "an object of lists of strings"),
        ("may_fail", [None, ["*"], {"*": None}], "an object of strings"),
    ],
)
def test_a_field_of_hello_of_a_wrong_type_is_named(field, values, words):
    for value in values:
        with pytest.raises(ProtocolError) as error:
            read_hello(HELLO | {field: value})
        assert str(error.value) == f"hello: field {field!r} is {value!r}; it must be {words}"


@pytest.mark.parametrize("field", ["ops", "dtypes", "orders", "gradients"])
def test_a_field_of_hello_that_is_missing_is_named(field):
    with pytest.raises(ProtocolError, match=f"^hello: field {field!r} is None; it must be "):
        read_hello({name: value for name, value in HELLO.items() if name != field})


@pytest.mark.parametrize("version", [None, True, "2", 2.0, [2], 0, 3])
def test_another_protocol_is_named(version):
    with pytest.raises(ProtocolError, match=r"^the port speaks protocol .*; this kit speaks 1 and 2$"):
        read_hello(HELLO | {"protocol": version})


PROTOCOL_1 = (
    *("id", "case", "op", "dtype", "order", "weight_offset", "eps", "layout", "asked"),
    *("settings", "taps", "inputs", "outputs"),
)


def test_a_case_has_all_that_it_had_in_protocol_1():
    """So a port that speaks it is served as it is."""
    assert read_hello(HELLO | {"protocol": 1}) == read_hello(HELLO)
    assert {*PROTOCOL_1, "gradients", "cotangents", *ON_RANKS} == Call.__dataclass_fields__.keys()


CASE = next(case for case in CASES if case.id == "rms_norm/scale_then_cast/bfloat16/random")


def test_a_case_is_asked_as_the_page_says():
    message = json.loads(re.search(r'\{"type": "case".*?\}(?=\n    <-)', PAGE, re.DOTALL)[0])
    call = call_of(CASE, tuple(CASE.outputs), golden(CASE).inputs, id_=7, taps=False)
    files = {name: message[name] for name in ("inputs", "outputs")}
    assert json.loads(encode("case", **call.fields)) | files == message


@pytest.mark.parametrize("given", [(), ("dresidual_out",), ("dy", "dresidual_out")])
def test_a_case_says_which_cotangents_are_given(given, monkeypatch):
    outputs = (*OPS["rms_norm"].outputs, Output("residual_out"), Output("running_mean", cotangent=False))
    monkeypatch.setitem(OPS, "rms_norm", replace(OPS["rms_norm"], outputs=outputs))
    call = call_of(CASE, ("y",), ("x", *reversed(given)), taps=False)
    assert (call.asked, call.gradients, call.cotangents) == (("y",), (), given)
    message = decode(encode("case", **call.fields))
    assert read_call(message | {"of a later kit": 1}) == call


def test_the_rest_of_hello_has_defaults():
    assert read_hello(HELLO) == Hello("port", (), (), (), (0,), gradients=False)


def test_the_orders_of_an_op_in_a_dtype_are_those_of_the_first_glob_that_fits():
    by = {"rms_norm/float16": ["cast_then_scale"], "rms_norm/*": [], "layer_norm/bfloat16": ["scale_then_cast"]}
    hello = read_hello(HELLO | {"orders": ["scale_then_cast", "cast_then_scale"], "orders_by": by})
    assert hello.orders_of("rms_norm", "float16") == ("cast_then_scale",)
    assert hello.orders_of("rms_norm", "bfloat16") == ()
    assert hello.orders_of("layer_norm", "bfloat16") == ("scale_then_cast",)
    assert hello.orders_of("layer_norm", "float16") == ("scale_then_cast", "cast_then_scale")


def test_what_is_wrong_is_shown_in_part():
    with pytest.raises(ProtocolError) as error:
        read_hello(HELLO | {"ops": "x" * 1_000_000})
    assert len(str(error.value)) < 2 * EXCERPT


@LOADED
@given(st.dictionaries(st.sampled_from([*Hello.__dataclass_fields__, "type", "protocol", "message"]), JSON))
def test_whatever_a_port_says_is_a_hello_or_a_clear_error(fields):
    try:
        message = decode(json.dumps(HELLO | fields))
        hello = read_hello(message)
        json.dumps([hello.name, hello.versions, hello.expected, hello.may_fail, hello.orders_by], ensure_ascii=False).encode()
    except ProtocolError as error:
        str(error).encode()


@LOADED
@given(st.text())
def test_a_text_is_shown_without_control_characters(text):
    shown = printable(text)
    shown.encode()
    assert all(char.isprintable() or char in "\n\t" for char in shown)
    assert printable(shown) == shown
    assert shown == text or not all(char.isprintable() or char in "\n\t" for char in text)


def test_a_terminal_is_not_steered():
    assert printable("\x1b[2J fine\r\n\ud800 é") == "\\x1b[2J fine\\r\n\\ud800 é"
    assert read_text({"message": "\x07"}, "message") == "\\x07"
    assert read_overwrote({"overwrote": ["\x1b"]}) == ("\\x1b",)


@pytest.mark.parametrize("told", [3, [1, 2], {"count": 1}, {"count": -1, "bytes": 0}, {"count": True, "bytes": 0}])
def test_collectives_are_two_numbers(told):
    assert read_collectives({"collectives": {"count": 2, "bytes": 56}}) == Collectives(2, 56)
    with pytest.raises(ProtocolError, match=r"field 'collectives' is .*; it must be a count and bytes, whole numbers"):
        read_collectives({"collectives": told})
