"""The inputs: the same bits on every machine and for ever, and each class what it says."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from conformance.numbers.rounding import round_to
from conformance.ops.cases import select
from conformance.ops.norms.cases import ROW_NORM_CASES, NormCase
from conformance.ops.norms.inputs import inputs

Array = np.ndarray

HERE = Path(__file__).parent

# Every class of rows, weight and dy, every dtype. A new digest here invalidates whatever anyone has stored.
PINNED = {
    "rms_norm/either_order/float64/random": "5a622725809ffb2f6ea8ac59a02c366b",
    "rms_norm/either_order/float32/rows_8192": "2bc3432835e5951e893a44b2b0f3dec7",
    "rms_norm/cast_then_scale/bfloat16/spike": "794bbe29ded4a0408771052c275d7f9e",
    "rms_norm/cast_then_scale/float16/eps_1e-12": "a38893f9152ca87cb8c24166791bb92b",
    "rms_norm/scale_then_cast_offset_1/float16/far_from_one": "84c09c9213262ec8ec0316f9fa8375ee",
    "layer_norm/either_order/float64/mean_1e4": "643576007c73c00e12986f8cc6664ccc",
    "layer_norm/either_order/float32/expanded": "39d6b301632d50e5c7da8cf9bfbf6b35",
    "layer_norm/either_order_offset_1/float32/tiny_weight": "442cec1f32d1a33f89556f1e0abf5cf9",
    "layer_norm/cast_then_scale_float32_weight/bfloat16/random": "d1522680358c7af6f73087fa14bc7f39",
    "layer_norm/cast_then_scale/float16/nan_row": "73a6c11f2afbe2975be3d1cbccd44636",
    "layer_norm/scale_then_cast/float16/inf_row": "76a0e602869c16774b26ae8039d8c589",
    "layer_norm/scale_then_cast/bfloat16/aligned_dy": "b4707634f29572783cabb07969f156de",
    "layer_norm/scale_then_cast/bfloat16/constant_rows": "4b49536d57ce18b2ed3e30cb51b467e7",
    "layer_norm/scale_then_cast/bfloat16/zero_rows_eps_1e-12": "371bbe37dd00502e3e7d9feacbe0156f",
}


def digest(cases: Iterable[NormCase], seed: int = 0) -> str:
    sha = hashlib.sha256()
    for case in cases:
        for name, tensor in sorted(inputs(case, seed).items()):
            sha.update(f"{case.id} {name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
    return sha.hexdigest()[:32]


def exact(case: NormCase, seed: int = 0) -> dict[str, Array]:
    return {name: tensor.astype(np.float64) for name, tensor in inputs(case, seed).items()}


def x_rows(case: NormCase) -> Array:
    return exact(case)["x"].reshape(-1, case.shape[-1])


def cases_of(rows: str) -> list[NormCase]:
    """The cases with such rows in x, and there are some."""
    cases = [case for case in ROW_NORM_CASES if case.x.rows == rows]
    assert cases
    return cases


@pytest.mark.parametrize("id_", PINNED)
def test_the_bits_never_change(id_):
    assert digest(select(id_)) == PINNED[id_]


def test_another_process_in_another_order_draws_the_same_bits():
    """What depends on the hash of a string, on the order of a set or on a hidden state differs there."""
    code = "from test_inputs import *; [inputs(case, 3) for case in ROW_NORM_CASES[::-1]]; print(digest(ROW_NORM_CASES, 3))"
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE)))}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(ROW_NORM_CASES, 3)


def test_tensors_cases_and_seeds_all_differ():
    draws = [
        tensor.tobytes()
        for case in ROW_NORM_CASES
        for seed in range(3)
        for name, tensor in inputs(case, seed).items()
        if tensor.size and (name != "weight" or case.weight == "signed")
    ]
    assert len(set(draws)) == len(draws)


def test_every_case_has_its_tensors_in_their_shapes_and_dtypes():
    for case in ROW_NORM_CASES:
        given = {name: (tensor.shape, tensor.dtype.name) for name, tensor in inputs(case, 0).items()}
        parameter = (case.shape[-1:], case.outputs.get("dweight", case.outputs.get("dbias")))
        expected = {"x": (case.shape, case.dtype), "dy": (case.shape, case.outputs["y"])}
        expected |= {"weight": parameter} if case.weight != "absent" else {}
        expected |= {"bias": parameter} if case.bias else {}
        assert given == expected


def test_values_are_bell_shaped():
    """Of a quarter of a million draws the mean and the deviation are off by two thousandths, or less."""
    (case,) = select("rms_norm/either_order/float32/rows_8192")
    for values in exact(case)["x"], exact(case)["dy"]:
        assert abs(values.mean()) < 0.01
        assert abs(values.std() - 1) < 0.01
        assert 3 < np.abs(values).max() < 3.47
        assert abs(np.mean(np.abs(values) < 1) - 0.67) < 0.01
        assert abs(np.mean(values[:, 1:] * values[:, :-1])) < 0.01


def test_scale_and_offset_are_those_of_the_draw():
    for case in cases_of("dense"):
        if case.shape[-1] >= 33 and case.shape != (0, 33):
            x = x_rows(case)
            assert abs(x.mean() - case.x.offset) < 0.5 * case.x.scale
            assert 0.7 < x.std() / case.x.scale < 1.3


def test_all_values_are_finite_but_those_put_there():
    for case in ROW_NORM_CASES:
        planted = case.x.rows in ("nan_row", "inf_row")
        assert sum(np.count_nonzero(~np.isfinite(tensor)) for tensor in exact(case).values()) == planted


def test_dense_rows_hold_different_values():
    for case in cases_of("dense"):
        if case.shape[-1] > 1 and "expanded" not in case.id:
            assert all(len(set(row)) > min(len(row), 9) / 4 for row in x_rows(case))


def test_every_other_row_of_zero_rows_is_zero():
    for case in cases_of("zero_rows"):
        assert np.any(x_rows(case) != 0, axis=1).tolist() == [False, True] * 3


def test_constant_rows_hold_one_value_each():
    for case in cases_of("constant_rows"):
        assert [len(set(row)) for row in x_rows(case)] == [1] * 6
        assert len(set(x_rows(case)[:, 0])) == 6


def test_a_spike_is_alone_in_its_row_and_moves():
    for case in cases_of("spike"):
        rows, columns = np.nonzero(x_rows(case))
        assert rows.tolist() == [0, 1, 2, 3, 4, 5]
        assert len(set(columns)) == 6


def test_nan_and_infinity_stand_in_the_first_row():
    for case in cases_of("nan_row"):
        assert np.argwhere(np.isnan(x_rows(case))).tolist() == [[0, 1]]
    for case in cases_of("inf_row"):
        assert np.argwhere(x_rows(case) == np.inf).tolist() == [[0, 1]]


@pytest.mark.parametrize("case", select("*/random", cases=ROW_NORM_CASES), ids=lambda case: case.id)
def test_a_signed_weight_is_never_one_nor_a_power_of_two(case):
    """In magnitude strictly between one and two, after rounding, offset included: either would hide the cast order."""
    weights = np.stack([exact(case, seed)["weight"] for seed in range(100)]) + case.dialect.weight_offset
    assert 1 < np.abs(weights).min() < 1.08
    assert 1.92 < np.abs(weights).max() < 2
    assert 0.4 < np.mean(weights > 0) < 0.6


def test_every_signed_weight_lies_between_one_and_two():
    for case in ROW_NORM_CASES:
        if case.weight == "signed" and not case.exact:
            magnitude = np.abs(exact(case)["weight"] + case.dialect.weight_offset)
            assert np.all((magnitude > 1) & (magnitude < 2))


def test_tiny_weights_are_zeros_and_nearly():
    for case in ROW_NORM_CASES:
        if case.weight == "tiny":
            weight = exact(case)["weight"]
            nearly = 1e-6 if case.dtype == "float16" else 1e-9  # float16 has no number smaller than 6e-8
            assert np.all(weight[::2] == 0)
            assert np.allclose(weight[1::2], nearly, rtol=2**-6, atol=0)


def test_one_plus_a_far_weight_is_no_bfloat16():
    for case in select("*/far_from_one", dtype="bfloat16"):
        one_plus = 1 + exact(case)["weight"]
        assert np.any(round_to(one_plus, "bfloat16") != one_plus)


def test_an_expanded_tensor_repeats_its_first_slice():
    for case in ROW_NORM_CASES:
        if case.layout == "expanded":
            for name in "x", "dy":
                tensor = exact(case)[name]
                assert len(tensor) > 1
                assert np.all(tensor == tensor[0])


def test_dy_varies_along_every_row():
    """A dy of ones annihilates LayerNorm's dx."""
    for case in ROW_NORM_CASES:
        given = exact(case)
        dy = given["dy"].reshape(-1, case.shape[-1])
        if case.layout == "dy_one_number":  # where the weights see to it that g varies
            assert np.all(dy == dy[0, 0])
            dy = dy * given["weight"]
        varies = np.ptp(dy, axis=1) > 0
        assert case.shape[-1] == 1 or np.all(varies) or (case.name == "rows_2048_of_2" and np.mean(varies) > 0.99)


def test_an_aligned_dy_is_weight_times_x():
    for case in ROW_NORM_CASES:
        if case.dy == "aligned":
            given = exact(case)
            product = given["x"] * given["weight"]
            assert np.all(np.abs(given["dy"] - product) <= 2.0**-8 * np.abs(product))
