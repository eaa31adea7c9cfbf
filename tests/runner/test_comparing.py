"""`conformance compare`: what two ports differ in, and whose side the golden takes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conformance.numbers.rounding import DTYPES, FORMATS, store
from conformance.tools.comparing.comparing import FAR, NOT_COUNTED, distances

ROOT = Path(__file__).parents[2]
FUNCTIONS = """
import numpy as np

def right(x, weight, *, eps):
    y = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + x.dtype.type(eps))
    return y if weight is None else y * weight

def reordered(x, weight, *, eps):
    y = x * (1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + x.dtype.type(eps)))
    return y if weight is None else weight * y

def wrong(x, weight, *, eps):
    y = x / (np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True)) + x.dtype.type(eps))
    return y if weight is None else y * weight
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "norms.py"
    path.write_text(FUNCTIONS)
    return path


def compare(*arguments, json_at):
    command = [sys.executable, "-m", "conformance", "compare", *map(str, arguments), "--json", str(json_at)]
    options = [
        "--op",
        "rms_norm",
        "--dtype",
        "float32",
        "--case",
        "*/rows_near_eps",
        "--case",
        "*/random",
        "--case",
        "*/nan_row",
    ]
    result = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    return result, json.loads(json_at.read_text())


def test_a_function_has_the_bits_of_itself(file, tmp_path):
    result, document = compare(f"{file}:right", f"{file}:right", json_at=tmp_path / "c.json")
    assert result.returncode == 0
    assert "bitwise equal in 3 cases" in result.stdout
    assert all(case["equal"] and case["sides"] == "both" for case in document["cases"] if case["outputs"])


def test_the_golden_sides_with_the_right_one(file, tmp_path):
    result, document = compare(f"{file}:wrong", f"{file}:right", json_at=tmp_path / "c.json")
    assert result.returncode == 1
    [near_eps] = [case for case in document["cases"] if case["case"] == "rms_norm/either_order/float32/rows_near_eps"]
    [y] = near_eps["outputs"]
    assert near_eps["sides"] == "b"
    assert y["nearer_b"] == y["differ"] == y["size"]
    assert "the golden sides with b" in result.stdout


def test_two_honest_ones_differ_by_few_ulps_and_both_are_right(file, tmp_path):
    result, document = compare(f"{file}:right", f"{file}:reordered", json_at=tmp_path / "c.json")
    assert result.returncode == 1
    outputs = [output for case in document["cases"] for output in case["outputs"]]
    assert 0 < max(output["ulps"] for output in outputs) < 8
    assert {case["sides"] for case in document["cases"] if case["outputs"]} == {"both"}


def test_a_port_that_cannot_be_run_compares_with_nothing(file, tmp_path):
    result, document = compare(f"{file}:right", "ports.no_such.port:Port", json_at=tmp_path / "c.json")
    assert result.returncode == 3
    assert not document["cases"]


def test_where_nothing_was_compared_it_says_why(file, tmp_path):
    result, _ = compare(f"{file}:right", f"{file}:right", "--exclude", "*/either_order/*", json_at=tmp_path / "c.json")
    assert result.returncode == 3
    assert ": no weight offset 1" in result.stdout


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbouring_numbers_are_one_apart(dtype):
    ones = store(np.array([1.0, -1.0, 0.0]), dtype)
    bits = FORMATS[dtype].bits
    after = (ones.view(f"u{bits // 8}") + 1).astype(f"u{bits // 8}").view(ones.dtype)
    assert distances(ones.astype(np.float64), after.astype(np.float64), dtype).tolist() == [1, 1, 1]


def test_distances_cross_zero_and_do_not_overflow():
    smallest = FORMATS["float32"].smallest
    assert distances(np.array([smallest]), np.array([-smallest]), "float32") == [2]
    assert distances(np.array([0.0]), np.array([-0.0]), "float32") == [0]
    assert distances(np.array([1e300]), np.array([-1e300]), "float64") == [2 * FAR]
    assert distances(np.array([np.nan, np.nan]), np.array([1.0, np.nan]), "float16").tolist() == [NOT_COUNTED, 0]
    assert distances(np.array([1.0, 2.0]), np.array([1.0, 3.0]), "").tolist() == [0, NOT_COUNTED]
