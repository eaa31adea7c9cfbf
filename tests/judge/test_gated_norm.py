"""The norm and a gate: the golden is the reference's, honest arithmetic passes, and mistakes have names of their own."""

import re
from pathlib import Path

import numpy as np
import pytest

import reference
from conformance.judging.compare import compare
from conformance.judging.diagnose import diagnose
from conformance.judging.simulation import STYLES, play
from conformance.mistakes.norms import gating, grouping
from conformance.numbers.rounding import DTYPES, HALF
from conformance.ops.golden import golden
from conformance.ops.norms.anatomy import true_norm
from conformance.ops.norms.gated_norm import GATED_NORM_CASES
from conformance.ops.norms.grouped import GROUPED_CASES
from conformance.question import dialects
from conformance.tools.scoreboard.identify import matches

MISTAKES = (*gating.MISTAKES, *grouping.MISTAKES)
ALL = (*GATED_NORM_CASES, *GROUPED_CASES)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_its_golden_is_that_of_the_reference(case):
    known = golden(case)
    exact = {name: tensor.astype(np.float64) for name, tensor in known.inputs.items()}
    dy = exact.pop("dy")
    with np.errstate(all="ignore"):
        outputs = getattr(reference, case.op)(**exact, eps=case.eps, **case.settings)._asdict()
        outputs |= getattr(reference, f"{case.op}_vjp")(dy, **exact, eps=case.eps, **case.settings)._asdict()
    for name, expected in known.outputs.items():
        np.testing.assert_allclose(expected.value, outputs[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("style", STYLES)
def test_an_honest_implementation_passes(style):
    for case in ALL:
        verdict = compare("honest", golden(case), play(case, 0, style), tuple(case.outputs))
        assert verdict.status == "pass", (case.id, verdict.message, verdict.outputs)


@pytest.mark.parametrize("norm_before_gate", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_either_order_is_asked_the_same(dtype, norm_before_gate):
    cases = [case for case in GATED_NORM_CASES if (case.dtype, case.norm_before_gate) == (dtype, norm_before_gate)]
    asked = dialects.HALF_GATES if dtype in HALF else dialects.SINGLE
    assert {case.dialect for case in cases} == set(asked)
    for dialect in asked:
        names = {case.name for case in cases if case.dialect == dialect}
        wanted = {"random", "sigmoid", "gate_negative", "groups_of_8", "rows_near_eps"} if dialect.is_plain else {"random"}
        assert names >= wanted
    assert {case.activation for case in cases} == {"silu", "sigmoid"}


def test_where_half_precision_is_cast_first_what_the_norm_makes_may_be_rounded_or_not():
    """As eager code in Hugging Face has it, and as a compiler does that fuses the two."""
    cases = [case for case in GATED_NORM_CASES if case.dtype == "bfloat16" and case.norm_before_gate and case.name == "random"]
    for case in cases:
        given = {name: tensor.astype(np.float32) for name, tensor in golden(case).inputs.items()}
        rstd = 1 / np.sqrt(np.mean(np.square(given["x"]), axis=-1, keepdims=True) + np.float32(case.eps))
        a = given["gate"] / (1 + np.exp(-given["gate"]))
        x_hat, half = given["x"] * rstd, golden(case).inputs["x"].dtype
        cast = x_hat.astype(half).astype(np.float32) * given["weight"]
        ways = {
            "cast_then_scale": [cast * a, cast.astype(half).astype(np.float32) * a],
            "scale_then_cast": [x_hat * given["weight"] * a],
        }
        for order, made in ways.items():
            admitted = [golden(case).outputs["y"].admits(y.astype(half).astype(np.float64)).all() for y in made]
            assert admitted == [order == case.dialect.order] * len(made)


def test_the_activation_of_a_gate_may_be_off_by_so_much():
    """By exponentials that err by half a unit for every unit of their argument, as fast ones do on a GPU."""
    v = 2.0**-24
    for case in GATED_NORM_CASES:
        if case.dtype == "float32" and case.name in ("random", "sigmoid", "gate_negative") and case.norm_before_gate:
            given = {name: tensor.astype(np.float64) for name, tensor in golden(case).inputs.items()}
            z = reference.rms_norm(given["x"], given["weight"], eps=case.eps).y
            for sign in (1, -1):
                with np.errstate(over="ignore"):
                    e = np.exp(-given["gate"] * (1 + sign * v)) * (1 + 2 * sign * v)
                share = 1 / (1 + e)
                y = z * share * (given["gate"] if case.activation == "silu" else 1)
                assert golden(case).outputs["y"].admits(y.astype(np.float32).astype(np.float64)).all()


@pytest.mark.one_in(4)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_a_mistake_is_told_from_the_others(mistake):
    """In the dtype that shows it, among those of gates and groups."""
    dtype = "float16" if "float32" in mistake.hidden else "float32"
    verdicts = [
        compare("port", golden(case), play(case, 0, STYLES[1], mistake), tuple(case.outputs))
        for case in GATED_NORM_CASES
        if case.dtype == dtype
    ]
    first = diagnose(verdicts, seed=0, among=MISTAKES)[0]
    assert first.mistake.id == mistake.id
    assert first.outputs >= 0.9 * first.failing


def test_the_groups_of_a_row_are_of_very_different_sizes():
    """So that the statistics of another are seen."""
    for case in GROUPED_CASES:
        rstd = golden(case).intermediates["rstd"]
        assert rstd.shape == (*case.shape[:-1], case.shape[-1] // case.group_size)
        if case.name == "groups_of_8":
            assert np.all(rstd[..., 1:] > 4 * rstd[..., :-1])


@pytest.mark.parametrize("case", [case for case in GATED_NORM_CASES if case.name == "random" and case.dialect in dialects.HALF])
def test_which_function_it_is_can_be_told(case):
    """From numbers of the other one, whatever was asked for."""
    other = true_norm(case, 0).changed({"gated.norm_first": not case.norm_before_gate})
    best = matches(case, other.outputs("formula")["y"].nearest)[0]
    mode = "gate_then_norm" if case.norm_before_gate else "norm_then_gate"
    who = dialects.GATED_BY[not case.norm_before_gate, case.dialect.order]
    assert best.name == f"{mode}, silu, {case.dialect.order} (as {who})"


def test_the_contract_says_who_has_which_function():
    page = (Path(__file__).parents[2] / "docs/spec.md").read_text()
    for (first, order), who in dialects.GATED_BY.items():
        [row] = re.findall(rf"^\| `{'norm_then_gate' if first else 'gate_then_norm'}_{order}` .*$", page, re.MULTILINE)
        assert all(name in row for name in re.findall(r"Qwen3-Next|Mamba2|fla|mamba_ssm", who))
