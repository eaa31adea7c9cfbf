"""Case -> Golden: the exact values, and for every element of every output the interval an honest port may return."""

from dataclasses import dataclass, field
from functools import cache

import numpy as np

import reference
from conformance import placements
from conformance.cases import Case
from conformance.dialects import Dialect
from conformance.inputs import inputs
from conformance.placements import Interval, Placement
from conformance.rounding import round_to, store
from conformance.tolerances import norm_budget
from conformance.values import NormValues, honest, true_pullback

Array = np.ndarray

KEPT_ELEMENTS = 10_000  # larger intervals are computed again when they are needed again, to save memory


@dataclass(frozen=True)
class Expected:
    """One output: its exact value, its dtype, and the placements of roundings that its dialect admits."""

    value: Array
    dtype: str
    placements: tuple[Placement, ...]
    _intervals: dict[float, Interval] = field(default_factory=dict, repr=False, compare=False)

    def interval(self, scale: float = 1.0) -> Interval:
        """Lower and upper for noise `scale` times the budget: float64 arrays of numbers of the output's dtype.

        They are the hull over all placements, rounded. A NaN in both says that the output must be NaN there.
        """
        if scale in self._intervals:
            return self._intervals[scale]
        with np.errstate(all="ignore"):
            ends = [placement(scale) for placement in self.placements]
            lower = round_to(np.fmin.reduce([low for low, _ in ends]), self.dtype)
            upper = round_to(np.fmax.reduce([high for _, high in ends]), self.dtype)
        if self.value.size <= KEPT_ELEMENTS:
            self._intervals[scale] = lower, upper
        return lower, upper

    @property
    def nearest(self) -> Array:
        """What an implementation without any noise returns, in the output's dtype."""
        return store(np.broadcast_to(self.interval(0.0)[0], np.shape(self.value)), self.dtype)

    @property
    def lower(self) -> Array:
        """The smallest admissible value of every element, in the output's dtype."""
        return store(self.interval()[0], self.dtype)

    @property
    def upper(self) -> Array:
        """The largest admissible value of every element, in the output's dtype."""
        return store(self.interval()[1], self.dtype)


@dataclass(frozen=True)
class Golden:
    """A case with its numbers: inputs in their storage dtypes, intermediates in float64, and what is expected."""

    case: Case
    seed: int
    inputs: dict[str, Array]
    intermediates: dict[str, Array]
    outputs: dict[str, Expected]


@cache
def golden(case: Case, seed: int = 0) -> Golden:
    """A case's golden; kept, since every port and mode is judged by the same one."""
    return compute(case, seed)


def compute(case: Case, seed: int) -> Golden:
    """A case's golden, computed anew."""
    given = inputs(case, seed)
    norm, intermediates = norm_values(case, given)
    with np.errstate(all="ignore"):
        outputs = expected_outputs(case, norm, case.dialect, case.outputs)
    return Golden(case, seed, given, intermediates, outputs)


def norm_values(case: Case, given: dict[str, Array]) -> tuple[NormValues, dict[str, Array]]:
    """The exact values of a case's op on the inputs `given`, and its intermediates by name."""
    x, dy, weight, bias = exact_inputs(given)
    with np.errstate(all="ignore"):  # rows with a NaN or an infinity are among the cases
        return _layer_norm(case, x, dy, weight, bias) if case.op == "layer_norm" else _rms_norm(case, x, dy, weight)


def exact_inputs(given: dict[str, Array]) -> tuple[Array, Array, Array, Array]:
    """x, dy, weight and bias in float64; an absent weight is ones, an absent bias zeros."""
    exact = {name: array.astype(np.float64) for name, array in given.items()}
    n = exact["x"].shape[-1]
    return exact["x"], exact["dy"], exact.get("weight", np.ones(n)), exact.get("bias", np.zeros(n))


def expected_outputs(case: Case, norm: NormValues, dialect: Dialect, dtypes: dict[str, str]) -> dict[str, Expected]:
    """What is expected of a port whose exact values are `norm`, in this dialect and these dtypes of the outputs."""
    with np.errstate(all="ignore"):
        budget = norm_budget(norm)
    match dialect.order:
        case "cast_then_scale":
            admitted = placements.cast_then_scale(norm, budget, case.dtype, dtypes["y"])
        case "scale_then_cast":
            admitted = placements.scale_then_cast(norm, budget, case.dtype)
        case "either_order":
            admitted = placements.unrounded(norm, budget)
    return {name: Expected(getattr(norm, name), dtype, tuple(admitted[name])) for name, dtype in dtypes.items()}


def _rms_norm(case: Case, x: Array, dy: Array, weight: Array) -> tuple[NormValues, dict[str, Array]]:
    offset = case.dialect.weight_offset
    y, rstd, x_hat = reference.rms_norm(x, weight, eps=case.eps, weight_offset=offset)
    dx, dweight = reference.rms_norm_vjp(dy, x, weight, eps=case.eps, weight_offset=offset)
    assert dweight is not None  # the weight was given
    none = np.zeros_like(weight)
    w = weight + offset
    pullback = true_pullback(w, x_hat, rstd, centred=False)
    norm = NormValues(x, dy, w, none, x_hat, rstd, y, dx, dweight, none, False, pullback, honest(case.dtype))
    return norm, {"rstd": rstd, "x_hat": x_hat}


def _layer_norm(case: Case, x: Array, dy: Array, weight: Array, bias: Array) -> tuple[NormValues, dict[str, Array]]:
    offset = case.dialect.weight_offset
    y, mean, rstd, x_hat = reference.layer_norm(x, weight, bias, eps=case.eps, weight_offset=offset)
    dx, dweight, dbias = reference.layer_norm_vjp(dy, x, weight, bias, eps=case.eps, weight_offset=offset)
    assert dweight is not None  # both were given
    assert dbias is not None
    w = weight + offset
    pullback = true_pullback(w, x_hat, rstd, centred=True)
    norm = NormValues(x, dy, w, bias, x_hat, rstd, y, dx, dweight, dbias, True, pullback, honest(case.dtype))
    return norm, {"mean": mean, "rstd": rstd, "x_hat": x_hat}
