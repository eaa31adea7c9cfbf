"""The golden against the cases that ONNX gives its own backends for LayerNormalization and RMSNormalization.

Importing ONNX's case modules builds the cases in memory, in onnx 1.22 (whose files are written from them) as in 1.23.
Each also comes `_expanded` into primitive operators with the same numbers; those graphs have many nodes and are left.
"""

import numpy as np
import onnx
import pytest
from onnx.backend.test.case.node import _NodeTestCases, layernormalization, rmsnormalization
from onnx.backend.test.case.test_case import TestCase

import reference

Array = np.ndarray

MODULES = {"LayerNormalization": layernormalization, "RMSNormalization": rmsnormalization}  # what fills _NodeTestCases

# ONNX computes what it expects in float32, in rows of at most 120: a few of its ulps, and no more than 1.5 are seen.
TOLERANCE = 3 * np.finfo(np.float32).eps


def cases_of(op_type: str) -> list[TestCase]:
    """Find the cases whose graph is one node of this type."""
    return [case for case in _NodeTestCases if [node.op_type for node in case.model.graph.node] == [op_type]]


def flatten(case: TestCase) -> tuple[list[Array], float]:
    """Read x and its parameters in float64, the axes from `axis` on made one, and eps."""
    [node], [(inputs, _)] = case.model.graph.node, case.data_sets
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    x, *parameters = (array.astype(np.float64) for array in inputs)
    batch = x.shape[: attributes.get("axis", -1)]
    return [x.reshape(*batch, -1), *(p.ravel() for p in parameters)], attributes.get("epsilon", 1e-5)


def assert_close(expected: Array, golden: Array, size: Array) -> None:
    """Compare in ulps of the size, which is what `expected` is the rounded sum of."""
    assert np.max(np.abs(expected.reshape(golden.shape) - golden) / size) <= TOLERANCE


@pytest.mark.parametrize("op_type", MODULES)
def test_all_nineteen_cases_are_here(op_type):
    """Rank 4, 2 and 3 have nine axes, each counted from both ends; one case more leaves the axis out."""
    assert len({case.name for case in cases_of(op_type)}) == len(cases_of(op_type)) == 19


@pytest.mark.parametrize("case", cases_of("RMSNormalization"), ids=lambda case: case.name)
def test_rms_norm_agrees(case):
    arguments, eps = flatten(case)
    golden = reference.rms_norm(*arguments, eps=eps)
    [(_, [y])] = case.data_sets
    assert_close(y, golden.y, np.abs(golden.y))


@pytest.mark.parametrize("case", cases_of("LayerNormalization"), ids=lambda case: case.name)
def test_layer_norm_agrees(case):
    (x, weight, bias), eps = flatten(case)
    golden = reference.layer_norm(x, weight, bias, eps=eps)
    [(_, [y, mean, rstd])] = case.data_sets

    # ONNX centres once, with a mean that is off by an ulp of this:
    mean_size = np.mean(np.abs(x), axis=-1, keepdims=True)
    x_hat_size = np.abs(golden.x_hat) + mean_size * golden.rstd
    assert_close(y, golden.y, np.abs(weight) * x_hat_size + np.abs(bias))
    assert_close(mean, golden.mean, mean_size)
    assert_close(rstd, golden.rstd, golden.rstd)
