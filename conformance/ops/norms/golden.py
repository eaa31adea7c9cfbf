"""A norm's case -> its exact values, and what is expected of a port."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

import reference
from conformance.numbers.expected import Expected
from conformance.numbers.rounding import HALF, Mode
from conformance.ops.norms import placements
from conformance.ops.norms.batch_norm import RUNNING, BatchNormCase
from conformance.ops.norms.tolerances import norm_budget
from conformance.ops.norms.values import NormValues, Running, batch_axes, honest, true_pullback
from conformance.question.dialects import Dialect

if TYPE_CHECKING:
    from conformance.ops.norms.cases import NormCase

Array = np.ndarray


def norm_values(case: "NormCase", given: dict[str, Array]) -> tuple[NormValues, dict[str, Array]]:
    """The exact values of a case's op on the inputs `given`, and its intermediates by name."""
    x, dy, weight, bias = exact_inputs(given)
    with np.errstate(all="ignore"):  # rows with a NaN or an infinity are among the cases
        if isinstance(case, BatchNormCase):
            return _batch_norm(case, x, dy, weight, bias, *(given[name].astype(np.float64) for name in RUNNING))
        return _layer_norm(case, x, dy, weight, bias) if case.op == "layer_norm" else _rms_norm(case, x, dy, weight)


def exact_inputs(given: dict[str, Array]) -> tuple[Array, Array, Array, Array]:
    """x, dy, weight and bias in float64; an absent weight is ones, an absent bias zeros."""
    exact = {name: array.astype(np.float64) for name, array in given.items()}
    n = exact["x"].shape[-1]
    return exact["x"], exact["dy"], exact.get("weight", np.ones(n)), exact.get("bias", np.zeros(n))


def expected_outputs(
    case: "NormCase", norm: NormValues, dialect: Dialect, dtypes: dict[str, str], modes: Mapping[str, Mode] | None = None
) -> dict[str, Expected]:
    """What is expected of a port whose exact values are `norm`, in this dialect and these dtypes of the outputs.

    `modes` are those of the last rounding of an output, where a mistake has another than to nearest.
    """
    with np.errstate(all="ignore"):
        budget = norm_budget(norm)
    match dialect.order:
        case "cast_then_scale":
            admitted = placements.cast_then_scale(norm, budget, case.dtype, dtypes["y"])
        case "scale_then_cast":
            admitted = placements.scale_then_cast(norm, budget, case.dtype)
        case "either_order" if case.dtype in HALF:  # BatchNorm, which nobody casts before it is scaled
            admitted = placements.scale_then_cast(norm, budget, case.dtype)
        case "either_order":
            admitted = placements.unrounded(norm, budget)
    modes = modes or {}
    return {
        name: Expected(getattr(norm, name), dtype, tuple(admitted[name]), mode=modes.get(name, "nearest_even"))
        for name, dtype in dtypes.items()
    }


def _rms_norm(case: "NormCase", x: Array, dy: Array, weight: Array) -> tuple[NormValues, dict[str, Array]]:
    offset = case.dialect.weight_offset
    y, rstd, x_hat = reference.rms_norm(x, weight, eps=case.eps, weight_offset=offset)
    dx, dweight = reference.rms_norm_vjp(dy, x, weight, eps=case.eps, weight_offset=offset)
    assert dweight is not None  # the weight was given
    none = np.zeros_like(weight)
    w = weight + offset
    pullback = true_pullback(w, x_hat, rstd, centred=False)
    norm = NormValues(x, dy, w, none, x_hat, rstd, y, dx, dweight, none, False, pullback, honest(case.dtype))
    return norm, {"rstd": rstd, "x_hat": x_hat}


def _layer_norm(case: "NormCase", x: Array, dy: Array, weight: Array, bias: Array) -> tuple[NormValues, dict[str, Array]]:
    offset = case.dialect.weight_offset
    y, mean, rstd, x_hat = reference.layer_norm(x, weight, bias, eps=case.eps, weight_offset=offset)
    dx, dweight, dbias = reference.layer_norm_vjp(dy, x, weight, bias, eps=case.eps, weight_offset=offset)
    assert dweight is not None  # both were given
    assert dbias is not None
    w = weight + offset
    pullback = true_pullback(w, x_hat, rstd, centred=True)
    norm = NormValues(x, dy, w, bias, x_hat, rstd, y, dx, dweight, dbias, True, pullback, honest(case.dtype))
    return norm, {"mean": mean, "rstd": rstd, "x_hat": x_hat}


def _batch_norm(
    case: BatchNormCase, x: Array, dy: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array
) -> tuple[NormValues, dict[str, Array]]:
    given = x, weight, bias, running_mean, running_var
    y, mean, var, rstd, x_hat, new_mean, new_var = reference.batch_norm(*given, eps=case.eps, **case.settings)
    dx, dweight, dbias = reference.batch_norm_vjp(dy, *given, eps=case.eps, training=case.training)
    assert dweight is not None  # both were given
    assert dbias is not None
    share = case.momentum, case.momentum * case.correction(x.size // x.shape[-1])
    running = Running(new_mean, new_var, running_mean, running_var, *share) if case.training else None
    axes = batch_axes(x)
    pullback = true_pullback(weight, x_hat, rstd, centred=True, axes=axes, given=not case.training)
    norm = NormValues(x, dy, weight, bias, x_hat, rstd, y, dx, dweight, dbias, True, pullback, honest(case.dtype))
    norm = replace(norm, axes=axes, given=None if case.training else mean, running=running)
    return norm, {"mean": mean, "var": var, "rstd": rstd, "x_hat": x_hat}
