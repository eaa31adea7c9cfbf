"""Every mistake of the catalogue is the golden with one thing altered, and says what it is; those of the norms."""

import re
from dataclasses import replace

import numpy as np
import pytest

from conformance.judging.simulation import numbers
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import Mistake, Of, both, in_dtypes
from conformance.numbers.rounding import DTYPES
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.anatomy import true_norm
from conformance.ops.norms.cases import NORMS, ROW_NORM_CASES
from conformance.ops.op import BACKWARDS
from conformance.ops.table import OPS
from conformance.port import Port
from conformance.question.case import layouts
from reference import rms_norm

SMALL = tuple(case for case in ROW_NORM_CASES if case.has_fixture)
BY_ID = {mistake.id: mistake for mistake in MISTAKES}
OF_NORMS = tuple(mistake for mistake in MISTAKES if set(mistake.ops) <= set(NORMS))


def test_ids_are_unique():
    assert len(BY_ID) == len(MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_every_mistake_says_what_was_done_what_it_does_and_where_it_was_seen(mistake):
    assert re.fullmatch(r"[a-z]\w*([.-]\w+)?", mistake.id)
    assert len(mistake.sentence.split()) > 2
    assert not mistake.sentence.endswith(".")
    assert mistake.effect.endswith(".")
    assert mistake.evidence
    places = {*DTYPES, *mistake.ops, *(f"{op}/{dtype}" for op in mistake.ops for dtype in DTYPES)}
    assert {*mistake.hidden, *mistake.needs_taps} <= places
    assert all({**mistake.hidden, **mistake.needs_taps}.values())  # `explain` prints each reason
    assert len(mistake.ops) == len(set(mistake.ops) & set(OPS)) > 0


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("op", NORMS)
def test_altering_nothing_is_the_golden(op, backward):
    """By either way through the backward pass, which share no formula for dx."""
    names = ("random", "mean_30", "rows_near_eps", "columns_near_eps", "rank_4")
    for case in [case for name in names for case in select(f"{op}/*/{name}")]:
        for name, altered in true_norm(case, 0).intervals(backward).items():
            expected = golden(case).outputs[name]
            scale = np.max(np.abs(expected.value))
            np.testing.assert_allclose(altered.value, expected.value, rtol=0, atol=1e-12 * scale)
            if case.dtype in ("bfloat16", "float16"):
                assert np.mean(altered.lower != expected.lower) < 0.01


@pytest.mark.parametrize("mistake", OF_NORMS, ids=lambda mistake: mistake.id)
def test_a_mistake_leaves_its_norm_as_it_was(mistake):
    """Alterations make new norms: two evaluations of one give the same numbers, and the true norm is untouched."""
    case = next(case for case in select("*/float32/*random") if case.op in mistake.ops)
    true = true_norm(case, 0)
    before = true.evaluate("formula").y.copy()
    first, second = (mistake.alter(true).evaluate("formula").y for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(true.evaluate("formula").y, before)


def test_a_part_of_a_field_is_changed_and_the_rest_stays():
    true = true_norm(next(iter(select("rms_norm/*/bfloat16/random"))), 0)
    norm = true.changed({"rounded.x": "storage"}).changed({"rounded.rstd": "float32", "arithmetic.sums.mean": "float16"})
    assert norm.rounded == {"x": "storage", "rstd": "float32"}
    assert norm.arithmetic == replace(true.arithmetic, sums={"mean": "float16"})
    assert true.rounded == {}
    with pytest.raises(TypeError):
        true.changed({"epsilon": 0.0})


def test_a_change_is_made_of_the_norm_as_it_was_and_only_where_it_is_said():
    true = true_norm(next(iter(select("rms_norm/*/float32/random"))), 0)
    change = {"offset": 3.0, "eps": Of(lambda norm: norm.eps + norm.offset)}
    mistake = Mistake("shifted", "", change, "", where=in_dtypes("float32"))
    assert mistake.alter(true).eps == true.eps + true.offset
    assert replace(mistake, where=in_dtypes("bfloat16")).alter(true) is true


def test_in_float32_it_makes_the_errors_of_float32():
    for case in select("*/either_order/float32/random"):
        exact, noisy = true_norm(case, 0), true_norm(case, 0).in_compute_dtype()
        y, made = exact.evaluate("formula").y, noisy.evaluate("formula").y
        assert made.dtype == np.float32
        assert 1e-9 < np.max(np.abs(made - y) / np.max(np.abs(y))) < 1e-6


@pytest.mark.parametrize(
    ("id_", "mistaken"),
    [
        ("eps_outside_root", lambda x, w, eps: w * x / (np.sqrt(np.mean(x * x, -1, keepdims=True)) + eps)),
        ("divides_by_n_minus_1", lambda x, w, eps: w * x / np.sqrt(np.sum(x * x, -1, keepdims=True) / 32 + eps)),
        ("statistics_over_rows", lambda x, w, eps: w * x / np.sqrt(np.mean(x * x, -2, keepdims=True) + eps)),
        ("statistics_of_first_row", lambda x, w, eps: w * x / np.sqrt(np.mean(x[0, 0] ** 2) + eps)),
        (
            "tail_missing_from_statistics",
            lambda x, w, eps: w * x / np.sqrt(np.sum(x[..., :32] ** 2, -1, keepdims=True) / 33 + eps),
        ),
        ("weight_shifted", lambda x, w, eps: np.roll(w, 1) * x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)),
        ("eps_after_rescale", lambda x, w, eps: w * rescaled(x) / np.sqrt(np.mean(rescaled(x) ** 2, -1, keepdims=True) + eps)),
    ],
)
def test_its_values_are_those_of_the_mistake_written_by_hand(id_, mistaken):
    (case,) = select("rms_norm/either_order/float32/rows_near_eps")
    given = {name: array.astype(np.float64) for name, array in golden(case).inputs.items()}
    y = BY_ID[id_].outputs(case)["y"].value
    np.testing.assert_allclose(y, mistaken(given["x"], given["weight"], case.eps), rtol=1e-12)


def rescaled(x):
    return x / np.max(np.abs(x), axis=-1, keepdims=True)


READINGS = {
    "strides_ignored": ("x", False),
    "dy_strides_ignored": ("dy", False),
    "weight_strides_ignored": ("weight", False),
    "x_from_buffer_start": ("x", True),
    "dy_from_buffer_start": ("dy", True),
    "weight_from_buffer_start": ("weight", True),
}


@pytest.mark.parametrize(("id_", "name", "from_start"), [(id_, *reading) for id_, reading in READINGS.items()])
def test_what_is_read_wrongly_is_what_the_base_port_leaves_in_memory(id_, name, from_start):
    """By the addresses of the tensor that the port was given, whatever the layout."""
    asked = 0
    for case in select("rms_norm/either_order/float32/*"):
        layout = layouts(case.layout).get(name)
        if layout is None or (from_start and layout not in ("sliced", "at_offset")):
            continue
        given = golden(case).inputs | {}
        tensor = Port().lay_out(given[name], layout)
        buffer = tensor
        while buffer.base is not None:
            buffer = buffer.base
        if from_start:
            read = np.lib.stride_tricks.as_strided(buffer, tensor.shape, tensor.strides)
        else:
            start = (tensor.__array_interface__["data"][0] - buffer.__array_interface__["data"][0]) // tensor.itemsize
            read = np.lib.stride_tricks.as_strided(buffer, (buffer.size,), (tensor.itemsize,))[start : start + tensor.size]
        x, dy, weight = (given[other].astype(np.float64) for other in ("x", "dy", "weight"))
        wrong = {"x": x, "dy": dy, "weight": weight} | {name: read.reshape(tensor.shape).astype(np.float64)}
        y, _, x_hat = rms_norm(wrong["x"], wrong["weight"], eps=case.eps)
        outputs = BY_ID[id_].outputs(case, backward="formula")
        np.testing.assert_allclose(outputs["y"].value, y, rtol=1e-12)
        terms = (wrong["dy"] * x_hat).reshape(-1, case.shape[-1])
        np.testing.assert_allclose(outputs["dweight"].value, terms.sum(0), rtol=1e-9, atol=1e-12)
        asked += 1
    assert asked >= 1


def test_two_mistakes_at_once_are_both_made():
    (case,) = select("rms_norm/either_order/float32/rows_near_eps")
    x, weight = (golden(case).inputs[name].astype(np.float64) for name in ("x", "weight"))
    two = both(BY_ID["eps_missing"], BY_ID["weight_twice"])
    y = weight**2 * x / np.sqrt(np.mean(x * x, -1, keepdims=True))
    np.testing.assert_allclose(two.outputs(case)["y"].value, y, rtol=1e-12)
    assert isinstance(two, Mistake)


@pytest.mark.parametrize("case", select("*/rows_0"), ids=lambda case: case.id)
def test_an_empty_batch_is_no_trouble(case):
    """Warnings are errors here: no mistake takes the mean of nothing."""
    for mistake in MISTAKES:
        if case.op in mistake.ops:
            assert {name: a.shape for name, a in numbers(mistake, case).items()} == {
                name: case.output_shape(name) for name in case.outputs
            }
