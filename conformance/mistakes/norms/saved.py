"""What a norm saves for its backward pass: statistics in too few bits, or other numbers than those of the forward pass."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from conformance.mistakes.mistake import CENTRED, Mistake, Of, in_half
from conformance.mistakes.norms.precision import NO_NARROWER
from conformance.numbers.rounding import round_to
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.steps import Steps

Array = np.ndarray


def _saves(make: Callable[[Norm, Steps], Steps]) -> Of:
    """What is saved for the backward pass, made of the norm and of what the forward pass has."""
    return Of(lambda norm: partial(make, norm))


def _stored(norm: Norm, a: Array) -> Array:
    return round_to(a.astype(np.float64), norm.case.dtype).astype(a.dtype)


def _rstd_stored(norm: Norm, s: Steps) -> Steps:
    rstd = _stored(norm, s.rstd)
    return replace(s, rstd=rstd, x_hat=s.shifted * rstd)


def _mean_stored(norm: Norm, s: Steps) -> Steps:
    return replace(s, x_hat=(s.x - _stored(norm, s.row_mean)) * s.rstd)


def _statistics_stored(norm: Norm, s: Steps) -> Steps:
    return _mean_stored(norm, replace(s, rstd=_stored(norm, s.rstd)))


def _scale_stored(norm: Norm, s: Steps) -> Steps:
    """x_hat is right, so dweight is; rstd scales dx."""
    return replace(s, rstd=_stored(norm, s.rstd))


def _x_hat_stored(norm: Norm, s: Steps) -> Steps:
    return replace(s, x_hat=_stored(norm, s.x_hat))


def _x_hat_recovered(norm: Norm, s: Steps) -> Steps:
    """From y as it was returned: where the weight is small or zero, nothing is left of x_hat."""
    return replace(s, x_hat=(_stored(norm, s.y) - s.b) / s.w)


MISTAKES = (
    Mistake(
        "rstd_saved_in_storage_dtype",
        "rstd is saved for the backward pass in x's dtype",
        {"saved": _saves(_rstd_stored)},
        "y is right; dx is off by 2e-3 to 1e-2 in bfloat16.",
        "FlagGems#221, helion#2273; torch's LayerNorm on CPU",
        hidden=NO_NARROWER,
        where=in_half,
    ),
    Mistake(
        "mean_saved_in_storage_dtype",
        "the mean is saved for the backward pass in x's dtype",
        {"saved": _saves(_mean_stored)},
        "y is right; dx and dweight of rows with a mean are not.",
        "FlagGems#221, helion#2273; torch's LayerNorm on CPU",
        CENTRED,
        NO_NARROWER,
    ),
    Mistake(
        "mean_not_saved",
        "the backward pass takes x·rstd for x_hat",
        {"saved": lambda s: replace(s, x_hat=s.x * s.rstd)},
        "y is right; dx and dweight of rows with a mean are not.",
        "planted: a context that keeps rstd and no mean",
        CENTRED,
    ),
    Mistake(
        "statistics_saved_in_storage_dtype",
        "mean and rstd are both saved for the backward pass in x's dtype",
        {"saved": _saves(_statistics_stored)},
        "y is right; dx and dweight are off by half an ulp of rstd, and rows with a mean by half an ulp of that.",
        "FlagGems#221, helion#2273; torch's LayerNorm on CPU",
        CENTRED,
        NO_NARROWER,
        where=in_half,
    ),
    Mistake(
        "rstd_in_storage_dtype_in_backward",
        "dx is scaled by an rstd that was rounded to x's dtype; x_hat is right",
        {"saved": _saves(_scale_stored)},
        "y and dweight are right; every row of dx is off by a factor of its own, up to half an ulp.",
        "planted: a backward pass that is given x_hat and a stored rstd",
        hidden=NO_NARROWER,
        where=in_half,
    ),
    Mistake(
        "x_hat_saved_in_storage_dtype",
        "x_hat is saved for the backward pass in x's dtype",
        {"saved": _saves(_x_hat_stored)},
        "y is right; the terms of dweight and of the projection are each off by half an ulp.",
        "planted: an activation saved to spare memory",
        hidden=NO_NARROWER,
    ),
    Mistake(
        "x_hat_recovered_from_y",
        "x_hat is recovered as (y - bias) / weight in the backward pass",
        {"saved": _saves(_x_hat_recovered)},
        "dweight is off by half of itself where the weight is near zero; other weights hide it.",
        "apex: memory_efficient layer_norm",
    ),
)
