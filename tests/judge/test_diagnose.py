"""A mistake that is made is the mistake that is named, through honest noise and whatever the style."""

import numpy as np
import pytest

from conformance.judging.compare import compare
from conformance.judging.diagnose import diagnose
from conformance.judging.simulation import STYLES, play
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import Mistake, both
from conformance.numbers.rounding import store
from conformance.ops.block.taps import TAP
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.cases import ROW_NORM_CASES, ROW_NORMS

BY_ID = {mistake.id: mistake for mistake in MISTAKES}
EVERY = 48  # the test takes one mistake in forty-eight; `python -m benchmarks diagnosis` takes them all


def sampled():
    for number, mistake in enumerate(MISTAKES):
        for op in (op for op in mistake.ops if op in ROW_NORMS):
            dtype = ("float32", "bfloat16")[number % 2]
            if number % EVERY == 0 and not mistake.hidden_in(op, dtype):
                yield pytest.param(mistake, op, dtype, STYLES[number // EVERY % len(STYLES)], id=f"{mistake.id}-{op}-{dtype}")


@pytest.mark.parametrize(("mistake", "op", "dtype", "style"), list(sampled()))
def test_a_mistake_made_in_honest_arithmetic_is_named_first(mistake, op, dtype, style):
    verdicts = judged(op, (dtype,), lambda case: play(case, 0, style, mistake))
    first = diagnose(verdicts, seed=0)[0]
    assert first.mistake.id == mistake.id
    failing = [verdict for verdict in verdicts if verdict.status == "fail"]
    assert len(first.explained) >= 0.9 * len(failing)
    assert first.outputs >= 0.9 * first.failing


def test_the_next_best_is_said_to_explain_what_it_explains():
    """In bfloat16 an rstd in x's dtype is an rstd in bfloat16, so nothing tells the two apart; in float32 something does."""
    for dtype, made in (("bfloat16", "rstd_in_storage_dtype"), ("float32", "eps_outside_root")):
        [diagnosis] = diagnose(judged("rms_norm", (dtype,), lambda case, made=made: play(case, 0, STYLES[0], BY_ID[made])), 0)
        assert diagnosis.mistake.id == made
        assert diagnosis.runner_up
        assert (diagnosis.runner_up[1] == diagnosis.outputs) == (dtype == "bfloat16")
        assert diagnosis.runner_up[1] > 0


@pytest.mark.parametrize(("dtype", "style"), [("float64", STYLES[1]), ("float32", STYLES[2])])
def test_a_variance_in_one_pass_is_named_by_what_each_row_has_lost(dtype, style):
    """Whatever the order of its sums, which no interval foresees."""
    verdicts = judged("layer_norm", (dtype,), lambda case: play(case, 0, style, BY_ID["one_pass_variance"]))
    [diagnosis] = diagnose(verdicts, seed=0)
    assert diagnosis.mistake.id == "one_pass_variance"
    assert diagnosis.outputs >= 2 / 3 * diagnosis.failing


def test_a_variance_in_one_pass_is_named_where_bfloat16_hardly_shows_it():
    """In two cases, by less than half an ulp a row: each element bounds the row's variance, and all bounds agree."""
    verdicts = judged("layer_norm", ("bfloat16",), lambda case: play(case, 0, STYLES[1], BY_ID["one_pass_variance"]))
    assert sum(verdict.status == "fail" for verdict in verdicts) == 2
    assert [diagnosis.mistake.id for diagnosis in diagnose(verdicts, seed=0)] == ["one_pass_variance"]


@pytest.mark.parametrize(
    ("id_", "op"), [("rstd_in_storage_dtype_in_forward", "layer_norm"), ("fast_inverse_root_2", "rms_norm")]
)
def test_a_mistake_that_overflows_is_named(id_, op):
    """Whether it then has infinities or NaN depends on the order of its operations."""
    verdicts = judged(op, ("float16",), lambda case: play(case, 0, STYLES[2], BY_ID[id_]))
    [diagnosis] = diagnose(verdicts, seed=0)
    assert diagnosis.mistake.id == id_
    assert diagnosis.agreeing == diagnosis.judged


def test_rows_that_are_off_by_more_than_one_pass_loses_are_not_put_down_to_it():
    """Here a thousandth of the variance, in ordinary rows."""
    off = Mistake("off", "", {"rstd": lambda ms, eps: (1.001 * ms + eps) ** -0.5}, "")
    verdicts = judged("layer_norm", ("float32",), lambda case: play(case, 0, STYLES[0], off))
    assert "one_pass_variance" not in [diagnosis.mistake.id for diagnosis in diagnose(verdicts, seed=0)]


def test_two_mistakes_in_two_dtypes_are_both_named():
    made = {"float32": BY_ID["eps_missing"], "float64": BY_ID["weight_missing"]}
    verdicts = judged("rms_norm", tuple(made), lambda case: play(case, 0, STYLES[1], made[case.dtype]))
    assert {diagnosis.mistake.id for diagnosis in diagnose(verdicts, seed=0)} == {"eps_missing", "weight_missing"}


def test_a_mistake_made_in_one_dtype_alone_is_named():
    """What passes in the other does not speak against it."""
    made = {"float32": BY_ID["eps_missing"]}
    verdicts = judged("rms_norm", ("float32", "bfloat16"), lambda case: play(case, 0, STYLES[1], made.get(case.dtype)))
    assert [diagnosis.mistake.id for diagnosis in diagnose(verdicts, seed=0)] == ["eps_missing"]


def test_a_cast_that_a_compiler_drops_is_no_sum_in_low_precision():
    """One dialect alone is computed as the other; a bound on a sum of half precision would hold those numbers too."""

    def made(case):
        return BY_ID["other_order"] if case.dialect.order == "cast_then_scale" else None

    verdicts = judged("rms_norm", ("float16",), lambda case: play(case, 0, STYLES[0], made(case)))
    assert [diagnosis.mistake.id for diagnosis in diagnose(verdicts, seed=0)] == ["other_order"]


def test_a_mistake_that_what_passes_contradicts_is_not_named():
    """A row with an infinity has the numbers of many mistakes, and the other rows those of none."""

    def made(case):
        return BY_ID["variance_for_mean_square"] if case.name == "inf_row" else None

    verdicts = judged("rms_norm", ("float32",), lambda case: play(case, 0, STYLES[1], made(case)))
    assert {verdict.case.name for verdict in verdicts if verdict.status == "fail"} == {"inf_row"}
    assert diagnose(verdicts, seed=0) == ()


def test_a_mistake_made_in_large_cases_alone_is_named():
    """As where a kernel of its own takes them; small cases say nothing of it."""

    def made(case):
        return BY_ID["divides_by_n_minus_1"] if case.name == "rows_257" else None

    verdicts = judged("rms_norm", ("float32",), lambda case: play(case, 0, STYLES[0], made(case)))
    assert [diagnosis.mistake.id for diagnosis in diagnose(verdicts, seed=0)] == ["divides_by_n_minus_1"]


def test_two_mistakes_in_two_outputs_are_both_named():
    """One is in the forward pass, one in dweight alone; every case shows both."""
    two = both(BY_ID["weight_shifted"], BY_ID["dbias_mean"])
    verdicts = judged("layer_norm", ("float32",), lambda case: play(case, 0, STYLES[2], two))
    assert {diagnosis.mistake.id for diagnosis in diagnose(verdicts, seed=0)} == {"weight_shifted", "dbias_mean"}


def test_two_mistakes_that_mix_in_the_same_numbers_are_named_together():
    """Neither alone explains ordinary rows, which the divisor moves by more than eps does."""
    two = both(BY_ID["divides_by_n_minus_1"], BY_ID["eps_outside_root"])
    verdicts = judged("rms_norm", ("float32",), lambda case: play(case, 0, STYLES[3], two))
    names = [diagnosis.mistake.id for diagnosis in diagnose(verdicts, seed=0)]
    assert names == ["divides_by_n_minus_1 + eps_outside_root"]


def test_nothing_is_named_where_nothing_fails():
    assert diagnose(judged("rms_norm", ("float32", "bfloat16"), lambda case: play(case, 0, STYLES[0])), seed=0) == ()


def test_nothing_is_named_that_no_mistake_explains():
    def garbled(case):
        return {
            name: store(np.broadcast_to(output.value, case.output_shape(name))[..., ::-1] + 0.5, output.dtype)
            for name, output in golden(case).outputs.items()
        }

    verdicts = judged("rms_norm", ("float32", "bfloat16"), garbled)
    assert all(verdict.status == "fail" for verdict in verdicts)
    assert diagnose(verdicts, seed=0) == ()


def test_a_small_factor_is_found_and_not_put_down_to_low_precision():
    """A thousandth on every output: within what sums in bfloat16 could do, but nothing says that they did."""

    def off(case):
        return {
            name: store(np.broadcast_to(output.value, case.output_shape(name)) * 1.001, output.dtype)
            for name, output in golden(case).outputs.items()
        }

    [diagnosis] = diagnose(judged("layer_norm", ("float32",), off), seed=0)
    assert diagnosis.mistake.found
    assert diagnosis.mistake.sentence == "y and dx and dweight and dbias are 1.001 times what they should be"


IN_FLOAT32 = select(op="pre_ln_block", dtype="float32")
ASKED = [case for case in IN_FLOAT32 if case.kind in ("llama", "qwen3") and case.name in ("random", "cached")]
OF_A_BLOCK = [
    ("rope_base_1e4", "q_rope"),
    ("causal_mask_without_cache", "probs"),
    ("scale_missing", "scores"),
    ("residual_from_normed_x", "h"),
    ("dv_of_first_head_in_group", ""),
]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("made", "stage", "exports_taps"), [(*each, True) for each in OF_A_BLOCK] + [(*OF_A_BLOCK[0], False)])
def test_a_block_mistake_is_named_and_found(made, stage, exports_taps):
    verdicts = []
    for case in ASKED:
        answer = play(case, 0, STYLES[0], BY_ID[made])
        kept = {name: tensor for name, tensor in answer.items() if exports_taps or not name.startswith(TAP)}
        verdicts.append(compare("port", golden(case), kept, tuple(case.outputs)))
    first = diagnose(tuple(verdicts), seed=0)[0]
    assert first.mistake.id == made
    assert first.outputs == first.failing
    parted = {verdict.parts_at.output.removeprefix(TAP) for verdict in verdicts if verdict.parts_at}
    assert parted == ({stage} if exports_taps and stage else set())


def judged(op, dtypes, outputs):
    cases = [
        case
        for case in ROW_NORM_CASES
        if case.op == op and case.dtype in dtypes and (case.has_fixture or case.name == "rows_257")
    ]
    return tuple(
        compare("port", golden(case), outputs(case), tuple(case.outputs))
        for case in cases
        if case.shape[0] and not (case.name.startswith(("nan", "inf")) and outputs.__name__ != "<lambda>")
    )
