"""A composite op's expectations: the program is the reference, and honest arithmetic lies within its noise."""

from dataclasses import replace

import numpy as np
import pytest

from conformance.judging.compare import compare
from conformance.judging.simulation import STYLES, play
from conformance.mistakes.block.stages import wraps
from conformance.numbers.rounding import store
from conformance.ops.block.machine import Machine, NoisyMachine, PlayedMachine
from conformance.ops.block.taps import TAP, expected_taps, tap_names
from conformance.ops.golden import golden, lay_open
from conformance.ops.table import COMPOSITES, OPS

HONEST = 0.9  # of its tolerance, at most

COMPOSITE_CASES = [case for op in COMPOSITES for case in op.cases]
RANDOM = [case for case in COMPOSITE_CASES if case.name == "random"]
of_every_case = pytest.mark.parametrize("case", COMPOSITE_CASES, ids=lambda case: case.id)


def judged(case, answer, seed=0):
    return compare("port", golden(case, seed), answer, tuple(case.outputs))


@pytest.mark.parametrize("case", [case for case in COMPOSITE_CASES if case.dtype in ("float64", "float32")], ids=lambda c: c.id)
def test_the_program_is_the_reference(case):
    expected = golden(case)
    values, outputs = lay_open(case, 0).run(Machine())
    for name, output in expected.outputs.items():
        size = max(np.max(np.abs(output.value)), 0.1)  # a key's bias without rope has a gradient of zero
        np.testing.assert_allclose(outputs[name], output.value, atol=1e-12 * size, rtol=0, err_msg=name)
    for name in set(expected.intermediates) & set(values):
        np.testing.assert_allclose(
            values[name], expected.intermediates[name], atol=1e-13 * np.max(np.abs(values[name])), rtol=0
        )


@of_every_case
def test_honest_arithmetic_passes(case):
    verdict = judged(case, play(case, 0, STYLES[0]))
    assert verdict.status == "pass"
    assert {output.output: output.ratio for output in verdict.judged if output.ratio > HONEST} == {}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", [c for c in RANDOM if c.dtype != "float64"], ids=lambda c: c.id)
def test_honest_arithmetic_passes_on_fresh_inputs(case, seed):
    assert judged(case, play(case, seed, STYLES[0]), seed).status == "pass"


def test_the_noise_is_the_same_every_time():
    case = next(case for case in COMPOSITE_CASES if case.op == "pre_ln_block")
    expected = golden(case).outputs
    again = lay_open(case, 0).around({name: output.value for name, output in expected.items()})
    for name, output in expected.items():
        assert np.array_equal(again[name].lower, output.lower)
        assert again[name].rms == output.rms


def test_noise_is_of_the_size_of_roundings():
    ones = np.ones(10_000)
    for dtype, u in (("float64", 2.0**-53), ("float32", 2.0**-24), ("bfloat16", 2.0**-8), ("float16", 2.0**-11)):
        stored = NoisyMachine(dtype, 1).store(ones) - 1
        assert np.max(np.abs(stored)) <= u
        assert np.std(stored) == pytest.approx(u / np.sqrt(3), rel=0.05)


@pytest.mark.parametrize("off", [2.0, -2.0])
def test_an_element_far_out_fails_alone(off):
    (case,) = [case for case in COMPOSITE_CASES if case.id == "pre_ln_block/llama/float32/random"]
    answer = play(case, 0, STYLES[0])
    expected = golden(case).outputs["dx"]
    width = (expected.upper.astype(np.float64) - expected.lower.astype(np.float64))[1, 2, 3] / 2
    answer["dx"][1, 2, 3] = expected.value[1, 2, 3] + off * width
    verdict = judged(case, answer)
    assert [output.output for output in verdict.judged if not output.passes] == ["dx"]
    assert verdict.outputs[1].worst.index == (1, 2, 3)


def test_many_small_errors_fail_together():
    """No element leaves its interval, but the root mean square of them all is too large."""
    (case,) = [case for case in COMPOSITE_CASES if case.id == "pre_ln_block/llama/float32/random"]
    answer, expected = play(case, 0, STYLES[0]), golden(case).outputs["out"]
    inside = expected.value + 0.9 * (expected.upper.astype(np.float64) - expected.value)
    answer["out"] = store(inside, case.dtype)
    lower, upper = expected.interval()
    assert np.all((lower <= answer["out"]) & (answer["out"] <= upper))
    assert not judged(case, answer).outputs[0].passes


@pytest.mark.parametrize("case", [c for c in RANDOM if OPS[c.op].taps], ids=lambda c: c.id)
def test_a_stage_is_judged_on_what_it_was_fed(case):
    """Everything is wrong from one stage on, but only that stage is at fault."""
    answer = play(case, 0, STYLES[0])
    composite = lay_open(case, 0)
    stage = next(stage for stage in composite.program.stages if stage.local_name == "attn_out")
    broken = composite.changed({"attn_out": wraps(_Scaled)})
    values, _ = broken.run(PlayedMachine(case.dtype))
    taps = {name: store(values[name], case.dtype) for name in tap_names(broken.program)}
    verdict = judged(case, {name: answer[name] for name in case.outputs} | {TAP + name: tap for name, tap in taps.items()})
    assert verdict.parts_at.output == TAP + stage.name
    wrong = {tap.output.rpartition(".")[2] for tap in verdict.taps if not tap.passes}
    assert wrong == {"attn_out"}


class _Scaled:
    def __init__(self, op):
        self.op = op

    def forward(self, m, *values):
        return 1.25 * self.op.forward(m, *values)

    def vjp(self, m, dy, *values):
        return self.op.vjp(m, 1.25 * dy, *values)


def test_a_tap_that_depends_on_one_not_exported_is_left_out():
    (case,) = [case for case in COMPOSITE_CASES if case.id == "pre_ln_block/llama/float32/random"]
    expected = golden(case)
    taps = {name: store(expected.intermediates[name], case.dtype) for name in ("attention_norm", "q", "scores", "h")}
    program = lay_open(case, 0).program
    assert list(expected_taps(case, program, expected.inputs, taps)) == ["attention_norm", "q"]


def test_an_unknown_tap_or_one_of_another_shape_is_an_error():
    (case,) = [case for case in COMPOSITE_CASES if case.id == "pre_ln_block/llama/float32/random"]
    answer = play(case, 0, STYLES[0])
    verdict = judged(case, answer | {"tap.gated": answer["tap.gate"]})
    assert (verdict.status, verdict.message[:36]) == ("error", "tap.gated: a pre_ln_block has no suc")
    verdict = judged(case, answer | {"tap.gate": answer["tap.gate"][:1]})
    assert verdict.message == "tap.gate has shape [1, 7, 20]; expected [2, 7, 20]"


def test_the_order_of_casting_matters_to_a_tap():
    (case,) = [case for case in COMPOSITE_CASES if case.id == "pre_ln_block/llama/bfloat16/random"]
    other = replace(case, config=replace(case.config, order="scale_then_cast"))
    values, _ = lay_open(case, 0).run(Machine())
    x_hat_once = store(values["attention_norm"], "bfloat16")
    assert judged(case, play(case, 0, STYLES[0]) | {"tap.attention_norm": x_hat_once}).parts_at.output == "tap.attention_norm"
    assert other.dialect.order != case.dialect.order
