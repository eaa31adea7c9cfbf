"""The block's mistakes: each is one thing altered in a program, and is found at the stage where it was made."""

import json
from pathlib import Path

import numpy as np
import pytest

import reference
from benchmarks.stages import found_in
from conformance.judging.compare import compare, compare_output
from conformance.judging.simulation import STYLES, play
from conformance.mistakes import MISTAKES
from conformance.mistakes.block import (
    attention_gradients,
    feed_forward_gradients,
    gradients,
    precision,
    sink_gradients,
    weight_gradients,
)
from conformance.numbers.rounding import DTYPES, HALF
from conformance.ops.block.anatomy import OWN
from conformance.ops.block.inputs import exact_inputs
from conformance.ops.block.machine import Machine
from conformance.ops.block.taps import TAP, altered_taps, expected_taps
from conformance.ops.cases import select
from conformance.ops.golden import golden, lay_open
from conformance.ops.norms.cases import NORMS
from conformance.ops.table import COMPOSITES, OPS

COMPOSITE_CASES = [case for op in COMPOSITES for case in op.cases]
OF_BLOCKS = tuple(mistake for mistake in MISTAKES if not set(mistake.ops) & set(NORMS))
BY_ID = {mistake.id: mistake for mistake in OF_BLOCKS}
IN_GRADIENTS = (gradients, feed_forward_gradients, weight_gradients, attention_gradients, sink_gradients)
BACKWARD = (
    *(mistake for module in IN_GRADIENTS for mistake in module.MISTAKES),
    BY_ID["dweight_accumulated_in_storage_dtype"],
)
# What is added to hidden scores is rounded, a step in a step function; NaN has no slope; and an order of casting is none here.
ROUGH = (*(id_ for id_ in BY_ID if id_.startswith("mask_of")), "hidden_row_is_nan", "norm_of_the_other_order")
FORWARD = tuple(mistake for mistake in OF_BLOCKS if mistake not in BACKWARD)
SMOOTH = tuple(mistake for mistake in FORWARD if mistake not in precision.MISTAKES and mistake.id not in ROUGH)

each = lambda mistakes: pytest.mark.parametrize("mistake", mistakes, ids=lambda mistake: mistake.id)  # noqa: E731


@each(OF_BLOCKS)
def test_what_it_changes_is_there(mistake):
    """A name that no stage has would change nothing."""
    programs = [lay_open(case, 0).program for case in COMPOSITE_CASES if case.op in mistake.ops]
    stages = {stage.local_name for program in programs for stage in program.stages}
    assert mistake.change.keys() <= stages | {"*", *OWN}


def altering(mistake, dtype):
    """The first case in which the numbers of a mistake are not the true ones, and both."""
    for case in COMPOSITE_CASES:
        if case.op in mistake.ops and case.dtype == dtype:
            true = lay_open(case, 0)
            numbers = [composite.run(Machine())[1] for composite in (mistake.alter(true), true)]
            if any(not np.array_equal(numbers[0][name], numbers[1][name]) for name in case.outputs):
                return case, true, *numbers
    return None


OF_TODAY = [case for case in select("pre_ln_block/*/float32/random") if case.features]


@pytest.mark.parametrize("case", OF_TODAY, ids=lambda case: case.id)
def test_every_mistake_can_be_made_in_what_todays_models_add(case):
    """No config makes one raise: a diagnosis tries them all."""
    for mistake in MISTAKES:
        if mistake.can_be_made_in(case.op):
            assert {*mistake.values(case, 0)} == {*case.outputs}, mistake.id


@each(SMOOTH)
def test_the_backward_pass_of_a_forward_mistake_is_its_own(mistake):
    """As autograd has it: the derivative of what is computed, by finite differences along a random direction."""
    case, true, _, _ = altering(mistake, "float32")
    program, (given, dout) = mistake.alter(true).program, exact_inputs(case, 0)
    generator, step = np.random.default_rng(0), 1e-6
    along = {name: generator.normal(size=given[name].shape) for name in case.inputs}
    ends = [
        program.forward(Machine(), given | {name: given[name] + sign * step * along[name] for name in along})
        for sign in (1, -1)
    ]
    out = program.stages[-1].name
    difference = np.sum(dout * (ends[0][out] - ends[1][out])) / (2 * step)
    cotangents = program.backward(Machine(), program.forward(Machine(), given), dout)
    slopes = [float(np.sum(cotangents[name] * along[name])) for name in along if name in cotangents]
    assert sum(slopes) == pytest.approx(difference, rel=1e-5, abs=1e-6 * max(map(abs, slopes)))


@each(BACKWARD)
def test_a_backward_mistake_leaves_the_forward_pass_as_it_was(mistake):
    case, true, altered, right = altering(mistake, "float32") or altering(mistake, "bfloat16")
    output, *gradients = case.outputs
    np.testing.assert_array_equal(altered[output], right[output])
    assert any(not np.array_equal(altered[name], right[name]) for name in gradients)
    assert all(altered[name].shape == right[name].shape for name in gradients)
    assert altered_taps(true.program, mistake.alter(true).program) == []


@pytest.mark.one_in(3)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each(FORWARD)
def test_a_mistake_is_found_at_the_stage_where_it_was_made(mistake, dtype):
    """The first intermediate that does not fit those that it was made of; of several stages, one that the case shows it in."""
    cases = [case for case in COMPOSITE_CASES if case.op in mistake.ops and OPS[case.op].taps and case.dtype == dtype]
    for case in cases:
        made = golden(case)
        altered = altered_taps(lay_open(case, 0).program, mistake.altered(case, 0).program)
        parts_at = compare("played", made, play(case, 0, STYLES[0], mistake), ()).parts_at
        if parts_at:
            assert parts_at.output.removeprefix(TAP) in altered
            return
    assert all(mistake.hidden_in(case.op, dtype) for case in cases)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("case", OF_TODAY, ids=lambda case: case.id)
def test_no_mistake_in_what_todays_models_add_is_found_elsewhere(case):
    """By its taps, or by `conformance locate`; `python -m benchmarks stages` asks every case."""
    counts = found_in(case, 0)
    assert counts["pairs"] == counts["taps: its stage"] == counts["locate: its stage"] > 50
    assert counts["honest, parted"] == 0


@pytest.mark.parametrize("id_", ["pre_ln_block/llama/float32/cached", "pre_ln_block/qwen3/bfloat16/random"])
def test_one_who_makes_a_mistake_gets_the_intermediates_that_it_expects(id_):
    (case,) = select(id_)
    for mistake in FORWARD:
        if case.op in mistake.ops:
            made = play(case, 0, STYLES[0], mistake)
            taps = {name.removeprefix(TAP): tap for name, tap in made.items() if name.startswith(TAP)}
            given = golden(case).inputs
            unaltered = expected_taps(case, lay_open(case, 0).program, given, taps)
            expected = unaltered | mistake.taps(case, 0, taps)
            assert expected.keys() == taps.keys()
            assert [name for name in taps if not compare_output(name, expected[name], taps[name]).passes] == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_without_a_mistake_no_stage_is_found(dtype):
    for case in select("pre_ln_*", dtype=dtype):
        assert compare("played", golden(case), play(case, 0, STYLES[0]), ()).parts_at is None


def by_hand(case, **changed):
    """Attention by the reference, of inputs that are changed."""
    exact = exact_inputs(case, 0)[0]
    return reference.attention(*(changed.get(name, lambda a: a)(exact[name]) for name in "qkv"), causal=case.config.causal)


@pytest.mark.parametrize(
    ("id_", "changed"),
    [
        ("scale_missing", {"q": lambda q: q * np.sqrt(q.shape[-1])}),
        ("scale_twice", {"q": lambda q: q / np.sqrt(q.shape[-1])}),
        ("softmax_base_2", {"q": lambda q: q * np.log(2)}),
        ("key_heads_tiled", dict.fromkeys("kv", lambda a: np.tile(a, (1, 1, 2, 1)))),
        ("value_heads_tiled", {"k": lambda k: np.repeat(k, 2, axis=-2), "v": lambda v: np.tile(v, (1, 1, 2, 1))}),
        ("first_key_head_for_all", dict.fromkeys("kv", lambda a: a[..., :1, :])),
        ("key_heads_reversed", dict.fromkeys("kv", lambda a: a[..., ::-1, :])),
    ],
)
def test_its_values_are_those_of_the_mistake_written_by_hand(id_, changed):
    (case,) = select("attention/grouped/float64/random")
    _, outputs = BY_ID[id_].altered(case, 0).run(Machine())
    np.testing.assert_allclose(outputs["y"], by_hand(case, **changed).y, rtol=1e-12)


def test_a_post_ln_block_is_one():
    (case,) = select("pre_ln_block/gpt2/float64/random")
    p, c = exact_inputs(case, 0)[0], case.config
    linear = lambda x, name: x @ p[f"{name}.weight"].T + p[f"{name}.bias"]  # noqa: E731
    norm = lambda x, name: reference.layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], eps=c.eps).y  # noqa: E731
    q, k, v = (linear(p["x"], f"attention.{name}").reshape(*p["x"].shape[:-1], -1, c.d_head) for name in "qkv")
    h = norm(p["x"] + linear(reference.attention(q, k, v).y.reshape(p["x"].shape), "attention.o"), "attention_norm")
    up = reference.gelu(linear(h, "feed_forward.up"), approximate=True)
    out = norm(h + linear(up, "feed_forward.down"), "ffn_norm")
    _, outputs = BY_ID["post_ln"].altered(case, 0).run(Machine())
    np.testing.assert_allclose(outputs["out"], out, rtol=1e-10)


def test_the_pages_say_where_planted_mistakes_were_found_last():
    root = Path(__file__).parents[2]
    rows = json.loads((root / "results" / "stages.json").read_text())["rows"]

    def found(by: str, *dtypes: str) -> str:
        chosen = [row for row in rows if row["dtype"] in dtypes]
        assert all(row[f"{by}: another"] == "0" for row in chosen)
        return f"{sum(int(row[f'{by}: its stage']) for row in chosen)} of {sum(int(row['pairs']) for row in chosen)}"

    block, locate = ((root / "docs" / page).read_text(encoding="utf-8") for page in ("block.md", "locate.md"))
    assert found("taps", *DTYPES) in block
    assert found("locate", "float64", "float32") in locate
    assert found("locate", *HALF) in locate
