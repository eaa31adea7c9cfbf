"""Whatever a port does, its diagnosis ends with an answer: any two mistakes can be made at once, and NaN is a number like any.

`PYTHONPATH=. python tests/judge/test_diagnosis_holds.py 1000 0` asks for all outputs of so many pairs, drawn with a seed, and
puts each before the diagnosis.
"""

import random
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from conformance.judging.compare import admits, compare, compare_output
from conformance.judging.diagnose import diagnose
from conformance.judging.simulation import STYLES, numbers, play
from conformance.mistakes import MISTAKES, Mistake
from conformance.mistakes.mistake import both
from conformance.numbers.rounding import store
from conformance.ops.block.machine import Machine
from conformance.ops.block.taps import TAP, tap_names
from conformance.ops.cases import CASES, select
from conformance.ops.golden import golden
from conformance.ops.norms.anatomy import BACKWARDS
from conformance.ops.norms.cases import NORMS
from conformance.ops.table import OPS
from conformance.question.case import Case
from tests.judge.written.fault import judged
from tests.judge.written.torch_blocks import FAULTS

BY_ID = {mistake.id: mistake for mistake in MISTAKES}
SMALL = tuple(case for case in CASES if case.has_fixture or (case.op not in NORMS and case.shape[0] <= 2))

Pair = tuple[Mistake, Case]


def pairs(count: int, seed: int, *ops: str) -> Iterator[Pair]:
    """So many pairs of mistakes of these ops, in either order, each with a small case of its op, the same for a seed."""
    generator = random.Random(seed)
    for number in range(count):
        op = ops[number % len(ops)]
        of_op = [mistake for mistake in MISTAKES if mistake.can_be_made_in(op)]
        first, second = generator.sample(of_op, 2)
        yield both(first, second), generator.choice([case for case in SMALL if case.op == op])


def evaluate(pair: Mistake, case: Case) -> None:
    """Everything that is cheap to ask of a pair: values, and what is expected of a port's intermediates."""
    if not OPS[case.op].costly:
        for backward in BACKWARDS:
            assert pair.outputs(case, 0, backward).keys() == case.outputs.keys()
        return
    altered = pair.altered(case, 0)
    values, outputs = altered.run(Machine())
    assert {name: value.shape for name, value in outputs.items()} == {name: case.output_shape(name) for name in case.outputs}
    if OPS[case.op].taps:
        taps = {name: store(values[name], case.dtype) for name in tap_names(altered.program)}
        altered_taps = pair.taps(case, 0, taps)
        assert {name: tap.value.shape for name, tap in altered_taps.items()} == {
            name: taps[name].shape for name in altered_taps
        }


def ask_all(pair: Mistake, case: Case) -> None:
    """Everything that a diagnosis asks of a pair, its intervals included."""
    evaluate(pair, case)
    for name, expected in pair.outputs(case, 0).items():
        lower, upper = expected.interval()
        assert lower.shape == upper.shape == case.output_shape(name)


def diagnose_pair(pair: Mistake, case: Case, *, taps: bool) -> None:
    """A port that makes both mistakes in a case, exporting its intermediates or not: what fails has an answer."""
    returned = play(case, 0, STYLES[0], pair)
    kept = {name: output for name, output in returned.items() if taps or not name.startswith(TAP)}
    verdict = compare("port", golden(case), kept, tuple(case.outputs))
    assert bool(verdict.taps) == (taps and OPS[case.op].taps)
    for diagnosis in diagnose((verdict,), seed=0):
        assert verdict.status == "fail"
        assert diagnosis.explained == (verdict,)
        assert set(diagnosis.where) <= {output.output for output in verdict.judged}


@pytest.mark.parametrize("op", OPS)
def test_any_two_mistakes_can_be_made_at_once(op):
    for pair, case in pairs(120, 1, op):
        evaluate(pair, case)


def test_two_mistakes_at_once_have_intervals():
    for pair, case in pairs(18, 2, *OPS):
        ask_all(pair, case)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("op", OPS)
def test_two_mistakes_at_once_are_diagnosed(op):
    """Whether they are named or not."""
    for number, (pair, case) in enumerate(pairs(2, 3, op)):
        diagnose_pair(pair, case, taps=number % 2 == 0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("matmul_in_tf32", "scale_missing"),
        ("mask_of_minus_1e4", "causal_mask_missing"),
        ("norm_of_the_other_kind", "norm_eps_missing"),
        ("softmax_over_queries", "causal_mask_one_too_few"),
        ("ffn_norm_missing", "norm_statistics_without_gradient"),
        ("cached_keys_turned_again", "cache_behind"),
        ("post_ln", "branches_normed_twice"),
        ("matmul_accumulated_in_storage_dtype", "dweight_accumulated_in_storage_dtype"),
    ],
)
def test_a_mistake_in_an_op_that_another_has_wrapped(first, second):
    """An op is found within what is wrapped around it, and where it is gone there is nothing to alter."""
    for one, other in ((first, second), (second, first)):
        for case in select("pre_ln_block/llama/*", dtype="float32") + select("pre_ln_block/gpt2/*", dtype="bfloat16"):
            evaluate(both(BY_ID[one], BY_ID[other]), case)


def test_both_of_two_mistakes_are_made_where_one_has_wrapped_the_other():
    """Scores of coarse products, times four: four times those of coarse products."""
    (case,) = select("pre_ln_block/llama/float32/random")
    coarse, two = BY_ID["matmul_in_tf32"], both(BY_ID["matmul_in_tf32"], BY_ID["scale_missing"])
    scores = [mistake.altered(case, 0).run(Machine())[0]["scores"] for mistake in (coarse, two)]
    np.testing.assert_allclose(scores[1], np.sqrt(case.config.d_head) * scores[0], rtol=1e-12)


def test_one_cotangent_altered_twice_is_altered_twice():
    (case,) = select("pre_ln_block/gpt2/float64/random")
    two = both(BY_ID["dweight_halved"], BY_ID["dbias_missing"]).values(case, 0)
    right = {name: output.value for name, output in golden(case).outputs.items()}
    np.testing.assert_allclose(two["dattention.q.weight"], 0.5 * right["dattention.q.weight"], rtol=1e-9)
    assert not np.any(two["dattention.q.bias"])


@pytest.mark.parametrize(
    ("made", "id_"),
    [
        ("softmax_without_maximum", "pre_ln_block/llama/float32/hot"),
        ("softmax_without_maximum", "pre_ln_block/llama/bfloat16/hot"),
        ("hidden_row_is_nan", "pre_ln_block/llama/float32/hides_a_row"),
        ("hidden_row_is_nan", "attention/grouped/float16/hides_a_row"),
    ],
)
def test_a_mistake_that_makes_nan_admits_its_own_numbers_and_no_others(made, id_):
    (case,) = select(id_)
    expected, right = BY_ID[made].outputs(case, 0), golden(case).outputs
    answer = numbers(BY_ID[made], case)
    assert any(np.isnan(output.astype(np.float64)).any() for output in answer.values())
    for name in case.outputs:
        assert compare_output(name, expected[name], answer[name]).passes
    assert not all(admits(expected[name], compare_output(name, right[name], right[name].nearest)) for name in case.outputs)


def test_the_root_mean_square_is_that_of_what_is_finite():
    """A mistake's own limit still rejects many small errors where some of its elements are NaN."""
    (case,) = select("attention/grouped/float32/hides_a_row")
    expected = BY_ID["hidden_row_is_nan"].outputs(case, 0)["y"]
    assert 0 < expected.rms < np.inf
    _, upper = expected.interval()
    inside = expected.value + 0.9 * (upper - expected.value)
    assert not compare_output("y", expected, store(inside, case.dtype)).passes
    finite = np.where(np.isfinite(expected.value), expected.value, np.nan)
    assert compare_output("y", expected, store(finite, case.dtype)).passes


ASKED = tuple(case for case in select("pre_ln_block/llama/float32/*") if case.name in ("small", "hides_a_row"))
WRITTEN = (
    "eps_outside_the_root",
    "layer_norm_for_rms_norm",
    "second_norm_missing",
    "softmax_over_queries",
    "mask_filled_with_minus1e4",
    "blind_rows_are_nan",
)
BY_NAME = {fault.id.removeprefix("torch_block_"): fault for fault in FAULTS}


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("name", "taps"), [("products_in_tf32", False), ("blind_rows_are_nan", False)] + [(name, True) for name in WRITTEN]
)
def test_what_people_write_is_diagnosed(name, taps):
    verdicts = judged(replace(BY_NAME[name], taps=taps), "float32", cases=ASKED)
    failing = {verdict.case.id for verdict in verdicts if verdict.status == "fail"}
    assert failing
    assert any(verdict.taps for verdict in verdicts) == taps
    for diagnosis in diagnose(verdicts, seed=0):
        assert {verdict.case.id for verdict in diagnosis.explained} <= failing


if __name__ == "__main__":
    for number, (made, asked) in enumerate(pairs(int(sys.argv[1]), int(sys.argv[2]), *OPS)):
        ask_all(made, asked)
        diagnose_pair(made, asked, taps=number // len(OPS) % 2 == 0)
