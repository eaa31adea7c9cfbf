"""Weight, offset and bias: present or absent, once or twice, in their place."""

import numpy as np

from conformance.mistakes.mistake import CENTRED, LAYER, ROWS, Mistake, Of, all_but

WITHOUT = dict.fromkeys(all_but("float32"), "a bias without a weight, or a weight without a bias, is asked for in float32 only")
MISTAKES = (
    Mistake(
        "weight_missing",
        "the weight is left out",
        {"parameters": lambda w, b, o: (0 * w + 1, b)},
        "y is x_hat; dweight is zero.",
    ),
    Mistake(
        "weight_twice",
        "the weight is applied twice",
        {"parameters": lambda w, b, o: ((w + o) ** 2, b)},
        "y is too large where the weight is; a weight of one hides it.",
        "planted: in the kernel and by the caller",
    ),
    Mistake(
        "offset_missing",
        "one is not added to the weight",
        {"offset": 0.0},
        "y is too small by x_hat: near zero for a weight stored as its distance from one.",
        "llama.cpp#5631",
        ROWS,
        dialect=True,
    ),
    Mistake(
        "offset_unasked",
        "one is added to a weight that is stored whole",
        {"offset": 1.0},
        "y is too large by x_hat.",
        "llama.cpp#5631",
        dialect=True,
    ),
    Mistake(
        "offset_twice",
        "one is added to the weight twice",
        {"offset": Of(lambda norm: 2 * norm.offset)},
        "y is too large by x_hat.",
        "llama.cpp#5631: by the converter of the checkpoint and by the model",
        ROWS,
    ),
    Mistake(
        "offset_outside_product",
        "one is added to the product of weight and x_hat, not to the weight",
        {"parameters": lambda w, b, o: (w, b + o)},
        "y is w·x_hat + 1.",
        "planted: a missing pair of brackets",
        ROWS,
    ),
    Mistake(
        "weight_shifted",
        "each feature takes the weight of its neighbour",
        {"parameters": lambda w, b, o: (np.roll(w, 1) + o, b)},
        "Equal weights hide it.",
        "planted: an index off by one",
    ),
    Mistake(
        "weight_of_first_feature",
        "every feature takes the first weight",
        {"parameters": lambda w, b, o: (w[:1] + o + 0 * w, b)},
        "Equal weights hide it.",
        "planted: a weight read as a scalar",
    ),
    Mistake(
        "bias_missing", "the bias is left out", {"parameters": lambda w, b, o: (w + o, 0 * b)}, "y lacks the bias.", ops=CENTRED
    ),
    Mistake(
        "bias_twice",
        "the bias is added twice",
        {"parameters": lambda w, b, o: (w + o, 2 * b)},
        "y has the bias once too often.",
        "planted: in the kernel and by the caller",
        CENTRED,
    ),
    Mistake(
        "bias_subtracted",
        "the bias is subtracted",
        {"parameters": lambda w, b, o: (w + o, -b)},
        "y is off by twice the bias.",
        "planted: a sign",
        CENTRED,
    ),
    Mistake(
        "bias_scaled",
        "the bias is added before the weight multiplies",
        {"parameters": lambda w, b, o: (w + o, (w + o) * b)},
        "y has the bias times the weight; a weight of one hides it.",
        "planted: the order of two lines",
        CENTRED,
    ),
    Mistake(
        "weight_and_bias_swapped",
        "weight and bias are exchanged",
        {"parameters": lambda w, b, o: (b + o, w)},
        "y is bias·x_hat + weight.",
        "planted: the order of two arguments",
        CENTRED,
    ),
    Mistake(
        "weight_ignored_without_bias",
        "the weight is ignored where there is no bias",
        {"parameters": lambda w, b, o: (0 * w + 1, b)},
        "y is x_hat where only a weight is given.",
        "pytorch#69208",
        LAYER,
        WITHOUT,
        where=lambda norm: not norm.case.bias,
    ),
    Mistake(
        "bias_ignored_without_weight",
        "the bias is ignored where there is no weight",
        {"parameters": lambda w, b, o: (w + o, 0 * b)},
        "y is x_hat where only a bias is given.",
        "pytorch#69208",
        LAYER,
        WITHOUT,
        where=lambda norm: norm.case.weight == "absent",
    ),
)
