"""What a port says, taken at its word only where it is one."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.port.protocol import EXCERPT, Hello, ProtocolError, decode, printable, read_hello, read_overwrote, read_text

HELLO = {"type": "hello", "protocol": 1, "ops": [], "dtypes": [], "orders": [], "gradients": False}
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


@pytest.mark.parametrize("version", [None, True, "1", 1.0, [1], 2])
def test_another_protocol_is_named(version):
    with pytest.raises(ProtocolError, match=r"^the port speaks protocol .*; this kit speaks 1$"):
        read_hello(HELLO | {"protocol": version})


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
