"""The golden against the cases that ONNX gives its own backends for LayerNormalization and RMSNormalization."""

import numpy as np
import pytest
from onnx.backend.test.case.node import layernormalization, rmsnormalization
from onnx_cases import Case, cases_of

import reference

Array = np.ndarray

MODULES = {"LayerNormalization": layernormalization, "RMSNormalization": rmsnormalization}  # what makes the cases

# ONNX computes what it expects in float32, in rows of at most 120: a few of its ulps, and no more than 1.5 are seen.
TOLERANCE = 3 * np.finfo(np.float32).eps


def flatten(case: Case) -> tuple[list[Array], float]:
    """Read x and its parameters in float64, the axes from `axis` on made one, and eps."""
    x, *parameters = (array.astype(np.float64) for array in case.inputs.values())
    batch = x.shape[: case.attributes.get("axis", -1)]
    return [x.reshape(*batch, -1), *(p.ravel() for p in parameters)], case.attributes.get("epsilon", 1e-5)


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
    [y] = case.outputs.values()
    assert_close(y, golden.y, np.abs(golden.y))


@pytest.mark.parametrize("case", cases_of("LayerNormalization"), ids=lambda case: case.name)
def test_layer_norm_agrees(case):
    (x, weight, bias), eps = flatten(case)
    golden = reference.layer_norm(x, weight, bias, eps=eps)
    y, mean, rstd = case.outputs.values()

    # ONNX centres once, with a mean that is off by an ulp of this:
    mean_size = np.mean(np.abs(x), axis=-1, keepdims=True)
    x_hat_size = np.abs(golden.x_hat) + mean_size * golden.rstd
    assert_close(y, golden.y, np.abs(weight) * x_hat_size + np.abs(bias))
    assert_close(mean, golden.mean, mean_size)
    assert_close(rstd, golden.rstd, golden.rstd)
