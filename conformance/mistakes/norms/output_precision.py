"""Mistakes of precision in x_hat and y."""

from conformance.mistakes.mistake import Mistake
from conformance.mistakes.norms.precision import ALREADY
from conformance.numbers.rounding import Rounding

EIGHT_BITS = "planted: an activation kept in eight bits without a scale (8-bit training: TransformerEngine, torchao)"
MISTAKES = (
    Mistake(
        "x_hat_in_float8_e4m3",
        "x_hat is rounded to eight bits, e4m3",
        {"rounded.x_hat": Rounding("float8_e4m3fn")},
        "Every element is off by up to 6 %.",
        EIGHT_BITS,
    ),
    Mistake(
        "x_hat_in_float8_e5m2",
        "x_hat is rounded to eight bits, e5m2",
        {"rounded.x_hat": Rounding("float8_e5m2")},
        "Every element is off by up to 12 %.",
        EIGHT_BITS,
    ),
    Mistake(
        "x_hat_in_bfloat16",
        "x_hat is rounded to bfloat16",
        {"rounded.x_hat": "bfloat16"},
        "Every element is off by up to 0.4 %.",
        "the cast of a bfloat16 model left in a float32 one",
    ),
    Mistake(
        "y_in_bfloat16",
        "y is rounded to bfloat16 on its way out",
        {"rounded.y": "bfloat16"},
        "Every element is off by up to 0.4 %.",
        "a kernel that always stores bfloat16",
        hidden={"bfloat16": ALREADY},
    ),
    Mistake(
        "y_in_float16",
        "y is rounded to float16 on its way out",
        {"rounded.y": "float16"},
        "Every element is off by up to 0.05 %.",
        "a kernel that always stores float16",
        hidden={"float16": ALREADY},
    ),
)
