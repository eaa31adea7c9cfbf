"""Whatever dialect an implementation follows is told from its numbers, whichever was asked for."""

from dataclasses import replace

import numpy as np
import pytest

from conformance.judging.simulation import STYLES, play
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import Of
from conformance.numbers.rounding import DTYPES, HALF
from conformance.ops.norms.cases import ROW_NORMS
from conformance.port.protocol import Hello
from conformance.tools.scoreboard.identify import DECIDES, identify, matches

BY_ID = {mistake.id: mistake for mistake in MISTAKES}
HELLO = Hello("port", ROW_NORMS, DTYPES, ("cast_then_scale",), (0,), gradients=True)


def findings(op, mistake=None, hello=HELLO, style=1, dtypes=("bfloat16",)):
    """What is found out of a port in one order that makes a mistake, or none: half weight, float32 weight, eps."""
    return identify(op, hello, lambda case: play(case, 0, STYLES[style], BY_ID.get(mistake))["y"], dtypes)


@pytest.mark.parametrize("op", ROW_NORMS)
@pytest.mark.parametrize(
    ("mistake", "half", "mixed"),
    [
        (None, "cast_then_scale; y is bfloat16", "cast_then_scale; y is float32"),
        ("other_order", "scale_then_cast; y is bfloat16", "scale_then_cast; y is float32"),
        ("offset_unasked", "cast_then_scale, weight offset 1; y is bfloat16", "cast_then_scale, weight offset 1; y is float32"),
        (
            "weight_in_storage_dtype",
            "cast_then_scale; y is bfloat16",
            "cast_then_scale, the weight rounded first; y is float32",
        ),
        ("y_demoted", "cast_then_scale; y is bfloat16", "cast_then_scale; y is bfloat16"),
    ],
)
def test_order_offset_and_dtypes_are_told(op, mistake, half, mixed):
    told = findings(op, mistake)
    assert [finding.found for finding in told] == [half, mixed, "inside the root, as asked"]
    assert all(finding.told for finding in told)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("op", ROW_NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        (None, "inside the root, as asked"),
        ("eps_outside_root", "outside the root, as asked"),
        ("eps_1e-06", "inside the root, hard-coded at 1e-06"),
        ("eps_twice", "inside the root, but not what is asked"),
        ("eps_missing", "left out"),
        ("eps_clamps", "neither under the root nor added to it"),
    ],
)
def test_eps_is_told_in_every_dtype(op, dtype, mistake, found):
    eps = findings(op, mistake, dtypes=(dtype,))[-1]
    assert (eps.dtype, eps.asked, eps.found) == (dtype, "eps", found)


def eps_at_least(least):
    """A mistake of ours: eps is clamped."""
    return replace(BY_ID["eps_twice"], id="clamped", change={"eps": Of(lambda norm: max(norm.eps, least))})


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_eps_that_is_clamped_is_told_from_one_that_is_hard_coded(dtype):
    told = identify("rms_norm", HELLO, lambda case: play(case, 0, STYLES[1], eps_at_least(1e-4))["y"], (dtype,))
    assert told[-1].found == "inside the root, never less than 0.0001"


def test_every_step_in_half_precision_is_told():
    assert "every step in x's dtype" in findings("rms_norm", "computed_in_storage_dtype")[0].found


@pytest.mark.parametrize(("op", "style"), [(ROW_NORMS[style % 2], style) for style in range(len(STYLES))])
def test_the_right_dialect_stands_far_above_the_next(op, style):
    def ask(case):
        y = play(case, 0, STYLES[style])["y"]
        if case.dialect.order == "either_order":
            return y
        best, runner_up, *_ = matches(case, y)
        assert best.share > 0.999
        assert runner_up.share < 0.9
        return y

    identify(op, HELLO, ask, HALF)


def test_every_dtype_that_the_port_has_is_asked():
    told = findings("layer_norm", hello=replace(HELLO, dtypes=("float16", "float32")), dtypes=DTYPES)
    asked = [(each.dtype, each.asked) for each in told]
    assert asked == [
        ("float32", "float32 weight"),
        ("float32", "eps"),
        ("float16", "cast_then_scale, float16 weight"),
        ("float16", "cast_then_scale, float32 weight"),
        ("float16", "eps"),
    ]


def test_the_offset_is_told_where_nothing_is_cast():
    assert findings("rms_norm", dtypes=("float32",))[0].found == "weight offset 0; y is float32"
    assert findings("rms_norm", "offset_unasked", dtypes=("float64",))[0].found == "weight offset 1; y is float64"


def test_what_follows_no_dialect_is_not_told():
    told = identify("rms_norm", HELLO, lambda case: np.ones(case.shape, np.float32), ("bfloat16",))
    assert [finding.told for finding in told] == [False, False, False]
    assert all("no known dialect" in finding.found for finding in told[:2])


def test_a_dtype_that_the_port_lacks_is_not_asked():
    [told] = findings("layer_norm", hello=replace(HELLO, dtypes=("float64",)))
    assert (told.found, told.evidence) == ("not asked", "the port has float64; asked were bfloat16")


def test_what_is_not_answered_is_not_asked():
    told = identify("rms_norm", HELLO, lambda case: "not on Sundays")
    assert {(finding.found, finding.evidence) for finding in told} == {("not asked", "not on Sundays")}
    assert DECIDES > 0.9
