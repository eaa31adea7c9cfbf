"""What goes wrong in dx: paths left out, weights forgotten."""

from collections.abc import Callable

import numpy as np

from conformance.mistakes.mistake import CENTRED, RMS, ROWS, Mistake, Of
from conformance.ops.norms.steps import Paths, Steps

Array = np.ndarray
FORMULA = "a hand-written backward"
HIDES = "dy aligned with weight·x_hat shows it most; wide rows hide it, at n = 4096 it is under a percent"


def _scaled(scale: Callable[[Steps], Array | float]) -> Callable[[Steps, Array, Array, Array], Paths]:
    return lambda s, d, m, r: (scale(s) * d, scale(s) * m, scale(s) * r)


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
        "projection_over_rows",
        "the projection on x_hat is divided by the length of x's first axis, not by the width",
        {"paths": lambda s, d, m, r: (d, m, r * s.x.shape[-1] / max(1, s.x.shape[0]))},
        f"dx is much too far along x_hat: {HIDES}.",
        "planted: x.shape[0] for x.shape[-1]",
        ROWS,
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
        "shift_unasked",
        "dx subtracts the mean of g, as LayerNorm's does",
        {"paths": lambda s, d, m, r: (d, -s.rstd * np.mean(s.g, axis=-1, keepdims=True), r)},
        "The rows of dx lose their mean.",
        "planted: LayerNorm's backward pass under RMSNorm's forward pass",
        RMS,
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
        "direct_path_without_weight",
        "what comes straight through dx leaves the weight out; the projection has it",
        {"paths": lambda s, d, m, r: (s.rstd * s.dy + 0 * d, m, r)},
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
        "dy_added_to_dx",
        "dy is added to dx, as where a residual goes round the norm",
        {"paths": lambda s, d, m, r: (d + s.dy, m, r)},
        "dx is too large by dy.",
        "planted: the kernel of a norm with a residual, called for one without",
        ROWS,
    ),
    Mistake(
        "dy_taken_for_ones",
        "the gradients are those of the sum of y: dy is not used",
        {"cotangent": np.ones_like},
        "A dy of ones hides it, and makes LayerNorm's dx vanish besides.",
        "planted: a test that calls y.sum().backward()",
    ),
)
