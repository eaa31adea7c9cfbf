"""A norm's case -> its golden."""

from dataclasses import replace

import numpy as np

import reference
from conformance.numbers.memory import Memory
from conformance.ops.norms.batch_norm import RUNNING, BatchNormCase
from conformance.ops.norms.cases import NormCase
from conformance.ops.norms.expected import expected_outputs
from conformance.ops.norms.inputs import inputs
from conformance.ops.norms.stages import around
from conformance.ops.norms.values import NormValues, Running, batch_axes, honest, row_norm_values, true_pullback
from conformance.ops.op import Golden

Array = np.ndarray
Values = tuple[NormValues, dict[str, Array]]


@Memory(2**28).keeps  # for all the mistakes that are tried on them
def norm_inputs(case: NormCase, seed: int) -> dict[str, Array]:
    """A case's tensors in their storage dtypes; not to be written to."""
    return inputs(case, seed)


def norm_golden(case: NormCase, seed: int) -> Golden:
    """The golden of a row norm's case, whatever stands before the norm or after it."""
    return _golden(case, seed, norm_values(case, norm_inputs(case, seed)))


def batch_norm_golden(case: BatchNormCase, seed: int) -> Golden:
    """The golden of BatchNorm's case."""
    return _golden(case, seed, batch_norm_values(case, norm_inputs(case, seed)))


def _golden(case: NormCase, seed: int, values: Values) -> Golden:
    norm, intermediates = values
    with np.errstate(all="ignore"):
        quantising = case.parts(norm_inputs(case, seed)).get("quantising")
        outputs = expected_outputs(case.dtype, norm, case.dialect, case.outputs, quantising=quantising)
    if case.exact:
        outputs = {name: expected.without_noise() for name, expected in outputs.items()}
    return Golden(case, seed, norm_inputs(case, seed), intermediates, outputs)


def norm_values(case: NormCase, given: dict[str, Array]) -> Values:
    """The exact values of a row norm on the inputs `given`, and its intermediates by name."""
    x, dy, weight, bias = exact_inputs(given)
    before, after = around(**case.parts(given))
    with np.errstate(all="ignore"):  # rows with a NaN or an infinity are among the cases
        norm, intermediates = row_norm_values(
            before.input(x) if before else x,
            after.cotangents(dy, x)[0] if after else dy,
            weight,
            bias,
            centred=case.centred,
            eps=case.eps,
            offset=float(case.dialect.weight_offset),
            arithmetic=honest(case.dtype),
            group=case.group_size,
        )
        stages = {"before": before.before(x) if before else None, "after": after.after(dy) if after else None}
        return replace(norm, **stages), intermediates


def as_the_norm_has_them(case: NormCase, given: dict[str, Array]) -> tuple[Array, Array, Array]:
    """x, dy and the effective weight, as the norm itself has them between what stands before it and after it."""
    x, dy, weight, _ = exact_inputs(given)
    before, after = around(**case.parts(given))
    read = before.input(x) if before else x
    return read, after.cotangents(dy, read)[0] if after else dy, weight + float(case.dialect.weight_offset)


def batch_norm_values(case: BatchNormCase, given: dict[str, Array]) -> Values:
    """The same of BatchNorm."""
    x, dy, weight, bias = exact_inputs(given)
    with np.errstate(all="ignore"):
        return _batch_norm(case, x, dy, weight, bias, *(given[name].astype(np.float64) for name in RUNNING))


def exact_inputs(given: dict[str, Array]) -> tuple[Array, Array, Array, Array]:
    """x, dy, weight and bias in float64; an absent weight is ones, an absent dy or bias zeros."""
    exact = {name: array.astype(np.float64) for name, array in given.items()}
    x = exact["x"]
    n, dy = x.shape[-1], exact.get("dy", np.zeros_like(x))
    return x, dy, exact.get("weight", np.ones(n)), exact.get("bias", np.zeros(n))


def _batch_norm(
    case: BatchNormCase, x: Array, dy: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array
) -> Values:
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
