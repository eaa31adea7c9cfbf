"""What goes wrong in dx: paths left out, weights forgotten, statistics that were saved in too few bits."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from conformance.mistakes.mistake import CENTRED, ROWS, Mistake, Of, in_half
from conformance.mistakes.norms.precision import NO_NARROWER
from conformance.numbers.rounding import round_to
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.steps import Paths, Steps

Array = np.ndarray
FORMULA = "a hand-written backward"
HIDES = "dy aligned with weight·x_hat shows it most; wide rows hide it, at n = 4096 it is under a percent"


def _scaled(scale: Callable[[Steps], Array | float]) -> Callable[[Steps, Array, Array, Array], Paths]:
    return lambda s, d, m, r: (scale(s) * d, scale(s) * m, scale(s) * r)


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
        "projection_missing",
        "dx lacks the projection on x_hat",
        {"paths": lambda s, d, m, r: (d, m, 0 * r)},
        f"dx keeps its component along x_hat: {HIDES}.",
        "tt-metal#53215, xla#8225",
    ),
    Mistake(
        "projection_twice",
        "dx subtracts the projection on x_hat twice",
        {"paths": lambda s, d, m, r: (d, m, 2 * r)},
        f"dx has the opposite component along x_hat: {HIDES}.",
        "tt-metal#53215, xla#8225",
    ),
    Mistake(
        "projection_added",
        "dx adds the projection on x_hat",
        {"paths": lambda s, d, m, r: (d, m, -r)},
        f"dx has twice its component along x_hat: {HIDES}.",
        "planted: a sign",
    ),
    Mistake(
        "projection_summed",
        "the projection on x_hat is a sum, not a mean",
        {"paths": lambda s, d, m, r: (d, m, s.x.shape[-1] * r)},
        "dx is n times too far along x_hat.",
        "planted: a division by the width left out",
    ),
    Mistake(
        "projection_over_n_minus_1",
        "the projection on x_hat is divided by n - 1",
        {"paths": lambda s, d, m, r: (d, m, r * s.x.shape[-1] / (s.x.shape[-1] - 1))},
        f"dx is off by 1/n along x_hat: {HIDES}.",
        "planted: the derivative of an unbiased deviation",
    ),
    Mistake(
        "projection_without_weight",
        "the projection on x_hat is that of dy, not of dy·weight",
        {"projected": lambda s: s.dy * s.x_hat},
        f"{HIDES.capitalize()}; a weight of one hides it.",
        "planted: dy taken for g",
    ),
    Mistake(
        "projection_of_x",
        "the projection is on x, not on x_hat",
        {"projected": lambda s: s.g * s.x},
        f"{HIDES.capitalize()}; rows of deviation one hide it.",
        "planted: one rstd of three left out",
    ),
    Mistake(
        "projection_of_centred",
        "the projection is on x less its mean, not on x_hat",
        {"projected": lambda s: s.g * s.centred},
        f"{HIDES.capitalize()}; rows of deviation one hide it.",
        "planted: one rstd of three left out",
        CENTRED,
    ),
    Mistake(
        "projection_of_y",
        "the projection is on y, not on x_hat",
        {"projected": lambda s: s.g * s.y},
        f"{HIDES.capitalize()}; a weight of one hides it.",
        "planted: a saved y taken for x_hat",
    ),
    Mistake(
        "shift_missing",
        "dx lacks the mean of g",
        {"paths": lambda s, d, m, r: (d, 0 * m, r)},
        "The rows of dx do not add up to zero.",
        "tt-metal#53215, xla#8225",
        CENTRED,
    ),
    Mistake(
        "shift_twice",
        "dx subtracts the mean of g twice",
        {"paths": lambda s, d, m, r: (d, 2 * m, r)},
        "The rows of dx do not add up to zero.",
        "tt-metal#53215, xla#8225",
        CENTRED,
    ),
    Mistake(
        "shift_added",
        "dx adds the mean of g",
        {"paths": lambda s, d, m, r: (d, -m, r)},
        "The rows of dx do not add up to zero.",
        "planted: a sign",
        CENTRED,
    ),
    Mistake(
        "shift_summed",
        "dx subtracts the sum of g, not its mean",
        {"paths": lambda s, d, m, r: (d, s.x.shape[-1] * m, r)},
        "The rows of dx do not add up to zero.",
        "planted: a division by the width left out",
        CENTRED,
    ),
    Mistake(
        "shift_without_weight",
        "dx subtracts the mean of dy, not of dy·weight",
        {"shift": lambda s: s.dy},
        "The rows of dx do not add up to zero; a weight of one hides it.",
        "planted: dy taken for g",
        CENTRED,
    ),
    Mistake(
        "statistics_held_constant",
        "dx treats the statistics as constants: it is only rstd·g",
        {"paths": lambda s, d, m, r: (d, 0 * m, 0 * r)},
        f"dx keeps its components along x_hat and along ones: {HIDES}.",
        "statistics taken under no_grad or stop_gradient",
    ),
    Mistake(
        "dx_without_weight",
        "dx leaves the weight out",
        {"backward_weight": lambda s: np.ones_like(s.w)},
        "A weight of one hides it.",
        FORMULA,
    ),
    Mistake(
        "dx_with_weight_twice",
        "dx applies the weight twice",
        {"backward_weight": lambda s: s.w**2},
        "A weight of one hides it.",
        FORMULA,
    ),
    Mistake(
        "dx_without_offset",
        "dx takes the weight as stored, without its offset",
        {"backward_weight": Of(lambda norm: lambda s: norm.weight.astype(s.w.dtype))},
        "A weight near zero makes dx vanish.",
        FORMULA,
        ROWS,
    ),
    Mistake(
        "dx_without_rstd",
        "dx is not multiplied by rstd",
        {"paths": _scaled(lambda s: 1 / s.rstd)},
        "Rows of deviation one hide it.",
        FORMULA,
    ),
    Mistake(
        "dx_with_rstd_twice",
        "dx is multiplied by rstd twice",
        {"paths": _scaled(lambda s: s.rstd)},
        "Rows of deviation one hide it.",
        FORMULA,
    ),
    Mistake(
        "dx_twice", "dx is accumulated twice", {"paths": _scaled(lambda s: 2.0)}, "dx is twice too large.", "quack#52, quack#53"
    ),
    Mistake(
        "dx_over_n_minus_1",
        "dx is n/(n - 1) times what it should be",
        {"paths": _scaled(lambda s: s.x.shape[-1] / (s.x.shape[-1] - 1) if s.x.shape[-1] > 1 else np.inf)},
        "Wide rows hide it: at n = 4096 it is 2e-4.",
        "planted: a mean over n - 1 in the backward pass alone",
        ROWS,
    ),
    Mistake(
        "dx_zero", "dx is not computed", {"paths": _scaled(lambda s: 0.0)}, "dx is zero.", "a buffer that is never written"
    ),
    Mistake(
        "dx_negated", "dx has the wrong sign", {"paths": _scaled(lambda s: -1.0)}, "dx is its own negative.", "planted: a sign"
    ),
    Mistake(
        "dx_is_dy",
        "dx is dy: the gradient is passed straight through",
        {"paths": lambda s, d, m, r: (s.dy + 0 * d, 0 * m, 0 * r)},
        "dx ignores the norm.",
        "quack#52, quack#53",
    ),
    Mistake(
        "dy_taken_for_ones",
        "the gradients are those of the sum of y: dy is not used",
        {"cotangent": np.ones_like},
        "A dy of ones hides it, and makes LayerNorm's dx vanish besides.",
        "planted: a test that calls y.sum().backward()",
    ),
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
