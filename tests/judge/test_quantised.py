"""Norms whose output is quantised: the golden is the reference's, q is as exact as y, and judged given the port's own scale."""

from dataclasses import replace

import numpy as np
import pytest

import reference
from conformance.judging.compare import compare
from conformance.judging.diagnose import diagnose
from conformance.judging.simulation import STYLES, play
from conformance.mistakes.norms import quantised, residual, scales
from conformance.numbers.rounding import FORMATS, HALF, round_to, store
from conformance.ops.answerable import why_unanswerable
from conformance.ops.golden import golden
from conformance.ops.norms.anatomy import true_norm
from conformance.ops.norms.expected import expected_outputs
from conformance.ops.norms.quantised import QUANTISED_CASES, ties
from conformance.port import Port
from conformance.question.dialects import QUANTISED_BY
from conformance.tools.scoreboard.identify import identify

Array = np.ndarray
MISTAKES = {mistake.id: mistake for mistake in (*scales.MISTAKES, *quantised.MISTAKES)}


def judged(case, outputs):
    return {verdict.output: verdict for verdict in compare("port", golden(case), outputs, tuple(case.outputs)).outputs}


def y_of(case):
    """What is expected of y, before it is quantised."""
    norm = true_norm(case, 0)
    with np.errstate(all="ignore"):
        dtypes = {"y": case.dtype if case.dialect.y == "rounded" else "float32"}
        expected = expected_outputs(case.dtype, norm.evaluate("formula"), case.dialect, dtypes)["y"]
    return expected.without_noise() if case.exact else expected


@pytest.mark.parametrize("case", QUANTISED_CASES, ids=lambda case: case.id)
def test_its_golden_is_that_of_the_reference(case):
    known = golden(case)
    exact = {name: tensor.astype(np.float64) for name, tensor in known.inputs.items()}
    how = {name: value for name, value in case.settings.items() if name not in ("sum", "y")}
    if case.dialect.sum == "rounded":
        how["round_sum"] = lambda s: round_to(s, case.dtype)
    if case.dialect.y != "rounded":  # casts inside the formula are the kit's, and not the reference's
        expected = getattr(reference, case.op)(**exact, eps=case.eps, **how)._asdict()
        for name in case.outputs.keys() - {"q"}:
            np.testing.assert_allclose(known.outputs[name].value, expected[name], rtol=1e-3 if case.dtype in HALF else 1e-6)
    scale = known.outputs["scale"].nearest.astype(np.float64) if "scale" in case.outputs else exact["scale"]
    y = y_of(case).interval(0.0)[0] if case.dialect.y == "rounded" else y_of(case).placements[0](0.0)[0]
    q = known.outputs["q"]
    np.testing.assert_array_equal(round_to(q.value, q.dtype), reference.quantise(y, scale, case.quantised_dtype))


@pytest.mark.parametrize("style", STYLES)
def test_an_honest_implementation_passes(style):
    for case in QUANTISED_CASES[STYLES.index(style) :: 3]:
        verdict = compare("honest", golden(case), play(case, 0, style), tuple(case.outputs))
        assert verdict.status == "pass", (case.id, verdict.message, verdict.outputs)


def test_where_y_has_one_number_q_has_one_or_those_of_both_ways_to_divide():
    single = 0
    for case in QUANTISED_CASES:
        if case.dialect.y != "rounded" and not case.exact:
            continue
        low, high = y_of(case).interval()
        one = low == high
        expected = golden(case).outputs["q"]
        scale = golden(case).outputs["scale"].nearest if "scale" in case.outputs else golden(case).inputs["scale"]
        divisor = np.repeat(scale.astype(np.float64), case.shape[-1] // scale.shape[-1], axis=-1)
        ways = [low / divisor, round_to(low / divisor, "float32"), round_to(low * round_to(1 / divisor, "float32"), "float32")]
        limit = FORMATS[expected.dtype].largest
        numbers = np.stack([round_to(np.clip(way, -limit, limit), expected.dtype) for way in ways])
        lower, upper = expected.interval()
        np.testing.assert_array_equal(lower[one], numbers.min(axis=0)[one])
        np.testing.assert_array_equal(upper[one], numbers.max(axis=0)[one])
        assert np.mean(lower == upper) > 0.97
        single += np.count_nonzero(one)
    assert single > 5_000


@pytest.mark.parametrize("id_", ["q_ties_away", "q_truncated"])
def test_ties_are_seen_in_every_dtype_by_an_exact_case(id_):
    for case in (case for case in QUANTISED_CASES if case.exact):
        assert judged(case, play(case, 0, STYLES[0]))["q"].passes
        assert not judged(case, play(case, 0, STYLES[0], MISTAKES[id_]))["q"].passes, case.id


def test_the_numbers_that_are_ties_are_as_far_from_one_as_from_the_other():
    assert ties("int8")[:3].tolist() == [0.5, 1.5, 2.5]
    assert ties("float8_e4m3fn")[[0, 8, 125]].tolist() == [2.0**-10, 2.0**-6 + 2.0**-10, 432.0]


def test_q_is_judged_given_the_scale_that_the_port_returned():
    """A scale that is off fails alone; q fails where it is of another one than that which is returned."""
    [case] = [case for case in QUANTISED_CASES if case.id == "quantised_rms_norm/either_order/float32/per_row_int8_random"]
    right = play(case, 0, STYLES[0])
    y = golden(case).outputs["q"].value * golden(case).outputs["scale"].nearest
    doubled = right | {"scale": 2 * right["scale"]}
    assert [name for name, verdict in judged(case, doubled).items() if not verdict.passes] == ["q", "scale"]
    own = doubled | {"q": store(y / doubled["scale"], "int8")}
    assert [name for name, verdict in judged(case, own).items() if not verdict.passes] == ["scale"]


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_none_fails_and_q_is_held_against_the_golden_s(scale):
    [case] = [case for case in QUANTISED_CASES if case.id == "quantised_rms_norm/either_order/float32/per_row_int8_random"]
    right = play(case, 0, STYLES[0])
    verdicts = judged(case, right | {"scale": np.full_like(right["scale"], scale)})
    assert verdicts["q"].passes
    assert verdicts["scale"].outside == 2


@pytest.mark.one_in(4)
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=lambda mistake: mistake.id)
def test_a_mistake_is_named(mistake):
    op = mistake.ops[0]
    cases = [case for case in QUANTISED_CASES if (case.op, case.dtype) == (op, "bfloat16")]
    made = [play(case, 0, STYLES[1], mistake) for case in cases]
    verdicts = [compare("port", golden(case), outputs, tuple(case.outputs)) for case, outputs in zip(cases, made, strict=True)]
    first = diagnose(verdicts, seed=0, among=(*MISTAKES.values(), *residual.MISTAKES))[0]
    assert first.mistake.id == mistake.id
    assert first.outputs >= 0.5 * first.failing


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scaling": "mx", "quantised_dtype": "int8"}, "scaling: mx"),
        ({"scaling": "per_group_128"}, "shape: per_group_128"),
        ({"static_scale": 0.0}, "static_scale:"),
        ({"static_scale": float("nan")}, "static_scale:"),
        ({"static_scale": 0.1}, "static_scale:"),
        ({"scale_ub": 1.0}, "scale_ub: static"),
        ({"scale_ub": -1.0, "scaling": "per_row"}, "scale_ub: it must be"),
        ({"weights": "ties"}, "weights:"),
        ({"dtype": "float64"}, "dialect:"),
    ],
)
def test_what_cannot_be_asked_is_said(changes, words):
    assert why_unanswerable(QUANTISED_CASES[0]) == ""
    assert why_unanswerable(replace(QUANTISED_CASES[0], **changes)).startswith(words)


class Kernel(Port):
    """vLLM's rms_norm_static_fp8_quant, in int8 as well: y is rounded as it would be stored, then times the reciprocal."""

    orders = ("cast_then_scale",)
    ys = ("rounded",)
    weight_offsets = (0,)

    def quantised_rms_norm(self, x, weight, scale, *, eps, quantised_dtype, scaling):
        wide = x.astype(np.float32)
        x_hat = wide / np.sqrt(np.mean(np.square(wide), axis=-1, keepdims=True) + np.float32(eps))
        y = (x_hat.astype(x.dtype) * weight).astype(np.float32)
        return np.rint(np.clip(y * (1 / scale), -127, 127)).astype(np.int8)


class InFloat32(Kernel):
    """FlashInfer's rmsnorm_quant: nothing is rounded before y is quantised."""

    def quantised_rms_norm(self, x, weight, scale, *, eps, quantised_dtype, scaling):
        wide = x.astype(np.float32)
        x_hat = wide / np.sqrt(np.mean(np.square(wide), axis=-1, keepdims=True) + np.float32(eps))
        return np.rint(np.clip(x_hat * weight.astype(np.float32) * (1 / scale), -127, 127)).astype(np.int8)


@pytest.mark.parametrize(
    ("port", "spoken"), [(Kernel, ("", "rounded", "cast_then_scale")), (InFloat32, ("", "unrounded", "scale_then_cast"))]
)
def test_which_of_two_functions_is_told(port, spoken):
    def ask(case):
        given = golden(case).inputs
        return port().quantised_rms_norm(**given, eps=case.eps, quantised_dtype="int8", scaling="static")

    findings = identify("quantised_rms_norm", port().hello(), ask, HALF)
    assert [finding.dtype for finding in findings] == list(HALF)
    for finding in findings:
        assert finding.found == f"{spoken[1]} y, {spoken[2]} (as {QUANTISED_BY[spoken]}); q is int8"
