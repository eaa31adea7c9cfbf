"""A norm laid open: its formula on a case's inputs, and what is expected of a port that computes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from conformance.numbers.expected import Expected, as_returned
from conformance.numbers.rounding import FORMATS, store
from conformance.ops.norms.cases import NormCase
from conformance.ops.norms.expected import expected_outputs
from conformance.ops.norms.formula import Formula
from conformance.ops.norms.golden import exact_inputs, norm_golden, norm_inputs
from conformance.ops.norms.values import NormValues, honest
from conformance.ops.op import BACKWARDS, Backward, Style

Array = np.ndarray

BACKWARD_FIELDS = frozenset(  # that leave y as it is, but for its dtype
    {
        *("saved", "cotangent", "backward_weight", "projected", "shift", "paths", "multiplicand"),
        *("bias_terms", "weight_rows", "bias_rows", "output_dtypes", "quantising"),
    }
)


@dataclass(frozen=True)
class Norm(Formula):
    """A norm laid open for alteration: the true one, until a field is replaced."""

    def changed(self, change: Mapping[str, Any]) -> "Norm":
        """With other values in these fields, or in parts of one that a path leads to, such as `rounded.rstd`.

        Raises TypeError where there is no such field.
        """
        norm = self
        for path, value in change.items():
            norm = _replaced(norm, path, value)
        return norm

    @property
    def is_exact(self) -> bool:
        """Whether no sum is in a lower precision than the others, where its value depends on its order."""
        return self.arithmetic == honest(self.case.dtype)

    def backwards(self, true: "Norm") -> tuple[Backward, ...]:
        """The ways to write its backward pass; all are one where the forward pass is the `true` one."""
        forward = (each.name for each in fields(Norm) if each.name not in BACKWARD_FIELDS)
        unaltered = all(getattr(true, name) is getattr(self, name) for name in forward)
        return BACKWARDS[:1] * len(BACKWARDS) if unaltered else BACKWARDS

    def outputs(self, backward: Backward) -> dict[str, Expected]:
        """What the case would expect if this norm were right."""
        outputs = self.intervals(backward)
        if not self.case.exact:
            return outputs
        # What an alteration leaves alone is as exact as it was: an interval around it would explain any error.
        true = _true_outputs(self.case, self.seed)
        return {
            name: replace(true[name], mode=each.mode, _intervals={}) if _agree(true[name].value, each.value) else each
            for name, each in outputs.items()
        }

    def intervals(self, backward: Backward) -> dict[str, Expected]:
        """The same, with room for noise in an exact case too."""
        with np.errstate(all="ignore"):
            return self._expected(self.evaluate(backward))

    def in_orders(self) -> tuple[dict[str, Expected], ...]:
        """What the case would expect of a port that adds up in each usual order, where a sum of low precision depends on it."""
        if not self.arithmetic.sums:
            return ()
        return tuple(self.in_order(backward, order) for backward in BACKWARDS for order in ORDERS)

    def in_order(self, backward: Backward, order: Callable[[int], Array]) -> dict[str, Expected]:
        """What the case would expect of a port that adds up in this order, in low precision: its numbers, and honest noise."""
        played = replace(self.in_compute_dtype(), sequence=order)
        with np.errstate(all="ignore"):
            values = played.evaluate(backward)
            exact = {
                each.name: value.astype(np.float64)
                for each in fields(values)
                if isinstance(value := getattr(values, each.name), np.ndarray)
            }
            return self._expected(replace(values, arithmetic=honest(self.case.dtype), **exact))

    def values(self) -> dict[str, Array]:
        """The outputs, exactly."""
        return {name: expected.value for name, expected in self.intervals("autograd").items()}

    def true_taps(self, exported: dict[str, Array]) -> dict[str, Expected]:
        """None: a norm has no intermediates that a port exports."""
        return {}

    def expected_taps(self, true: "Norm", exported: dict[str, Array]) -> dict[str, Expected]:
        """None."""
        return {}

    def play(self, style: Style) -> dict[str, Array]:
        """What an implementation in this style returns: in float32 arithmetic, and some order of summation."""
        played = replace(self.in_compute_dtype(), sequence=style.sequence)

        def made(name: str, expected: Expected) -> Array:
            placement = expected.placements[style.placement % len(expected.placements)]
            value = np.broadcast_to(placement(0.0)[0], self.case.output_shape(name))
            return store(value.astype(np.float64), expected.dtype, expected.mode)

        with np.errstate(all="ignore"):
            return as_returned(played.intervals(style.backward), made)

    def in_compute_dtype(self) -> "Norm":
        """The same norm on arrays of the compute dtype, so that evaluating it makes an implementation's rounding errors."""
        dtype = FORMATS[self.case.dtype].compute.storage
        x, dy, weight, bias = (array.astype(dtype) for array in (self.x, self.dy, self.weight, self.bias))
        batch = self.batch and replace(self.batch, mean=self.batch.mean.astype(dtype), var=self.batch.var.astype(dtype))
        parts = {
            "batch": batch,
            "added": self.added and self.added.astype(dtype),
            "gated": self.gated and self.gated.astype(dtype),
        }
        return replace(self, x=x, dy=dy, weight=weight, bias=bias, noisy=True, **parts)

    def _expected(self, values: NormValues) -> dict[str, Expected]:
        dtypes = self.output_dtypes(self.case.outputs)
        outputs = expected_outputs(self.case.dtype, values, self.dialect, dtypes, self.output_modes, self.quantising)
        return outputs | {name: outputs[name].times(k) for name, k in self.factors.items() if name in outputs}


def true_norm(case: NormCase, seed: int) -> Norm:
    """A norm's case laid open, with nothing altered, on its exact inputs."""
    given = norm_inputs(case, seed)
    x, dy, weight, bias = exact_inputs(given)
    centred, offset = case.centred, float(case.dialect.weight_offset)
    norm = Norm(case, seed, x, dy, weight, bias, case.dialect, case.eps, offset, centred, centred, honest(case.dtype))
    return replace(norm, **case.parts(given))


def _replaced(whole: Any, path: str, value: Any) -> Any:
    """A record or a mapping with another value at a path of fields and keys."""
    name, _, rest = path.partition(".")
    if isinstance(whole, Mapping):
        return {**whole, name: value}
    return replace(whole, **{name: _replaced(getattr(whole, name), rest, value) if rest else value})


def left_to_right(count: int) -> Array:
    """One by one from the first."""
    return np.arange(count)


def right_to_left(count: int) -> Array:
    """One by one from the last."""
    return np.arange(count)[::-1]


def every_eighth(count: int) -> Array:
    """Every eighth, then the next ones, as lanes do that are added up in turn."""
    return np.argsort(np.arange(count) % 8, kind="stable")


ORDERS = (left_to_right, right_to_left, every_eighth)


@lru_cache(maxsize=64)  # of the few exact cases
def _true_outputs(case: NormCase, seed: int) -> dict[str, Expected]:
    return norm_golden(case, seed).outputs


def _agree(exact: Array, value: Array) -> bool:
    """Whether two evaluations in float64 are of the same numbers."""
    return exact.shape == value.shape and bool(np.allclose(value, exact, rtol=1e-12, atol=0.0))
