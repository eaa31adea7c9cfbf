"""Half precision rounded otherwise than to the nearest number with ties to even.

Cutting off is what a hand-made conversion to bfloat16 does, which keeps the upper half of a float32. One that adds half a
unit first rounds ties away from zero. That differs at ties only, which sums and products of short numbers have.
"""

from collections.abc import Mapping

from conformance.mistakes.mistake import ALL_NORMS, ROWS, Change, Mistake, Of, in_half
from conformance.mistakes.norms.precision import NO_NARROWER
from conformance.numbers.rounding import HALF, Rounding, RoundingMode
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.steps import Step

SHIFTED = "aiter#5151, tt-metal#19882, tt-metal#57408: the upper half of a float32 taken for a bfloat16"
ADDED = "half a unit added to the bits of a float32 before they are shifted; a mode of aiter's kernels (aiter#1978)"
GRADIENTS = ("dweight", "dbias")
OUTPUTS = ("y", "dx", *GRADIENTS)


def _returned(mode: RoundingMode, *outputs: str) -> Change:
    """Outputs of half precision have another last rounding; a parameter's gradient may be in float32."""

    def modes(norm: Norm) -> Mapping[str, RoundingMode]:
        dtypes = norm.case.outputs
        return {**norm.output_modes, **{name: mode for name in outputs if dtypes.get(name) in HALF}}

    return {"output_modes": Of(modes)}


def _cut_off(id_: str, what: str, *outputs: str, ops: tuple[str, ...] = ALL_NORMS) -> Mistake:
    return Mistake(
        id_,
        f"{what} cut off to half precision, not rounded to nearest",
        _returned("toward_zero", *outputs),
        "Half of the elements are one ulp too small in magnitude.",
        SHIFTED,
        ops,
        NO_NARROWER,
    )


def _cut_off_step(step: Step, words: str, effect: str, hidden: Mapping[str, str] = NO_NARROWER) -> Mistake:
    return Mistake(
        f"{step}_truncated",
        f"{words} cut off to x's dtype, not rounded to nearest",
        {f"rounded.{step}": Rounding("storage", "toward_zero")},
        effect,
        SHIFTED,
        ALL_NORMS,
        hidden,
        where=in_half,
    )


MISTAKES = (
    _cut_off("y_truncated", "y is", "y"),
    _cut_off("dx_truncated", "dx is", "dx"),
    _cut_off("parameter_gradients_truncated", "dweight and dbias are", *GRADIENTS, ops=ROWS),
    _cut_off("outputs_truncated", "y and the gradients are", *OUTPUTS),
    _cut_off_step("x_hat", "x_hat is", "Half of the elements of y are one ulp too small in magnitude."),
    _cut_off_step("rstd", "rstd is", "Every row is too small, by up to an ulp."),
    _cut_off_step("squares", "the squares are", "Every row is too large, by a quarter of an ulp or so."),
    Mistake(
        "outputs_half_away",
        "y and the gradients are rounded with ties away from zero, not to even",
        _returned("nearest_away", *OUTPUTS),
        "Exact ties come out one ulp too large in magnitude; all else is right.",
        ADDED,
        hidden=NO_NARROWER,
    ),
    Mistake(
        "squares_half_away",
        "the squares are rounded to x's dtype with ties away from zero",
        {"rounded.squares": Rounding("storage", "nearest_away")},
        "As where they are rounded to nearest, but for one square in some hundred.",
        ADDED,
        hidden=NO_NARROWER,
        where=in_half,
    ),
)
