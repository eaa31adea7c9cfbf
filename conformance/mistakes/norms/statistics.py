"""The statistics: what is summed, over what, and divided by what."""

from math import ceil, log2

import numpy as np

from conformance.mistakes.mistake import CENTRED, LAYER, RMS, ROWS, Mistake, Of
from conformance.ops.norms.steps import Steps

Array = np.ndarray
LANES = 4  # the features that a vectorised loop takes at once, in the mistake that leaves out the rest


def _padded(n: int) -> float:
    return 2.0 ** ceil(log2(n))


def _squares_about_padded_mean(s: Steps) -> tuple[Array, Array]:
    """The squares about a mean that is a sum over the padded width: moving an element moves that mean, too."""
    through_mean = np.sum(s.centred, axis=-1, keepdims=True) / _padded(s.x.shape[-1])
    return np.square(s.centred), 2 * (s.centred - through_mean)


def _squares_with_padding(s: Steps) -> tuple[Array, Array]:
    """The squares about that mean, the padding's among them, as a share of every feature's.

    The mean of the padded row is its own: what moving an element does to the squares through it adds up to zero.
    """
    n = s.x.shape[-1]
    return np.square(s.centred) + (_padded(n) - n) * np.square(s.row_mean) / n, 2 * s.centred


def _first_row(statistic: Array) -> Array:
    return np.broadcast_to(statistic.reshape(-1)[:1], statistic.shape) if statistic.size else statistic


def _whole_lanes(s: Steps) -> tuple[Array, Array]:
    n = s.centred.shape[-1]
    kept = (np.arange(n) < n - n % LANES).astype(s.centred.dtype)
    return np.square(s.centred) * kept, 2 * s.centred * kept


MISTAKES = (
    Mistake(
        "divides_by_n_minus_1",
        "the mean square is divided by n - 1",
        {"divisor": lambda n: n - 1},
        "Every row is too small by 1/(2n): 847 tolerances in float32, under one ulp in bfloat16 at n = 768. NaN at n = 1.",
        "annotated-transformer#119, Flux.jl#529",
    ),
    Mistake(
        "divides_by_n_plus_1",
        "the mean square is divided by n + 1",
        {"divisor": lambda n: n + 1},
        "Every row is too large by 1/(2n).",
        "planted: an index that starts at the other end",
    ),
    Mistake(
        "sum_for_mean",
        "the squares are summed and not divided by the width",
        {"divisor": lambda n: 1.0},
        "Every row is too small by sqrt(n); a width of one hides it.",
        "tt-mlir#8798",
    ),
    Mistake(
        "padded_width",
        "the width is padded to a power of two in the divisor",
        {"divisor": _padded},
        "Every row is too large, unless its width is a power of two.",
        "tt-mlir#8798",
    ),
    Mistake(
        "padding_in_mean",
        "the sum is divided by the padded width for the mean",
        {"mean_divisor": _padded, "squares": _squares_about_padded_mean},
        "The mean is too small; rows of mean zero and widths that are powers of two hide it.",
        "triton#9838, Liger-Kernel#518",
        CENTRED,
    ),
    Mistake(
        "padding_in_statistics",
        "the row is padded with zeros to a power of two, and its mean and variance are those of the padded row",
        {"mean_divisor": _padded, "squares": _squares_with_padding, "divisor": _padded},
        "The mean is too small, and so is rstd or the row's deviation from it; widths that are powers of two hide it.",
        "planted: F.layer_norm of a row that was padded for the kernel",
        LAYER,
    ),
    Mistake(
        "mean_magnitude_for_root_mean_square",
        "the mean magnitude stands for the root of the mean square",
        {"squares": lambda s: (np.abs(s.centred), np.sign(s.centred)), "rstd": lambda magnitude, eps: 1 / (magnitude + eps)},
        "Every row is too large, by a quarter where it is Gaussian.",
        "planted: an L1 norm for an L2 norm",
    ),
    Mistake(
        "variance_for_mean_square",
        "the mean is taken off before squaring: a variance where a mean square belongs",
        {"centre_statistics": True},
        "Rows with a mean come out too large: 1e7 tolerances in float32; a mean of zero hides it.",
        "keras#22393, tract#2749",
        RMS,
    ),
    Mistake(
        "layer_norm_for_rms_norm",
        "the row is centred: this is LayerNorm",
        {"centre_statistics": True, "centre_values": True},
        "Rows lose their mean.",
        "planted: the other norm of the same library; loose tolerances let it pass",
        RMS,
    ),
    Mistake(
        "not_centred",
        "the row is not centred: this is RMSNorm",
        {"centre_statistics": False, "centre_values": False},
        "Rows keep their mean.",
        "planted: the other norm of the same library",
        CENTRED,
    ),
    Mistake(
        "mean_square_for_variance",
        "the mean is not taken off before squaring",
        {"centre_statistics": False},
        "Rows with a mean come out too small; a mean of zero hides it.",
        "planted: E[x²] taken for the variance",
        CENTRED,
    ),
    Mistake(
        "mean_left_in_values",
        "the mean is not taken off what is scaled",
        {"centre_values": False},
        "Rows keep their mean, divided by the right deviation.",
        "planted: x·rstd for (x - mean)·rstd",
        CENTRED,
    ),
    Mistake(
        "width_outside_root",
        "the root is of the sum of squares, and the width, not its root, divides it",
        {"rstd": Of(lambda norm: lambda ms, eps: (ms / norm.x.shape[-1] + eps) ** -0.5)},
        "Every row is too large by the root of the width; a width of one hides it.",
        "planted: norm(x) / d for norm(x) / sqrt(d)",
        ROWS,
    ),
    Mistake(
        "root_twice",
        "the root is taken twice: the row is divided by the fourth root",
        {"rstd": lambda ms, eps: (ms + eps) ** -0.25},
        "Right only where the mean square is one.",
        "planted: rsqrt of a deviation",
    ),
    Mistake(
        "normalised_twice",
        "the row is normalised twice",
        {"rstd": lambda ms, eps: (ms + eps * (ms + eps)) ** -0.5},
        "eps counts for nearly nothing in small rows, and for more in large ones; right where the mean square is one.",
        "planted: a fused norm before a norm of its own",
    ),
    Mistake(
        "not_normalised",
        "x is scaled as it is: its normalised value is not used",
        {"rstd": lambda ms, eps: 1.0 + 0 * ms, "centre_values": False},
        "y is weight·x + bias.",
        "planted: the wrong one of two names",
    ),
    Mistake(
        "divides_by_mean_square",
        "the root is missing: the row is divided by its mean square",
        {"rstd": lambda ms, eps: 1 / (ms + eps)},
        "Right only where the mean square is one; rstd applied twice gives the same.",
        "ncnn#6903",
    ),
    Mistake(
        "multiplies_by_root",
        "the row is multiplied by the root, not divided",
        {"rstd": lambda ms, eps: (ms + eps) ** 0.5},
        "Right only where the mean square is one.",
        "planted: sqrt for rsqrt",
    ),
    Mistake(
        "tail_missing_from_statistics",
        f"features beyond the last multiple of {LANES} are missing from the sum of squares",
        {"squares": _whole_lanes},
        "Rows whose width is no multiple of the vector's come out too large.",
        "planted: a vectorised loop without its remainder",
    ),
    Mistake(
        "statistics_of_first_row",
        "every row is given the statistics of the first",
        {"of_rows": _first_row},
        "Every row but the first is wrong; a single row hides it.",
        "planted: a statistic that is broadcast over rows",
    ),
    Mistake(
        "statistics_over_rows",
        "the statistics are taken down the columns, over the axis before the last",
        {"axes": (-2,)},
        "Nothing is right but by accident; equal axes let it run.",
        "planted: another axis, as in BatchNorm",
    ),
    Mistake(
        "statistics_over_two_axes",
        "the statistics are taken over the last two axes",
        {"axes": (-2, -1)},
        "Rows of one batch entry share their statistics.",
        "planted: normalized_shape taken to be two axes",
    ),
    Mistake(
        "statistics_over_all_rows",
        "the statistics are taken over all rows together",
        {"axes": Of(lambda norm: tuple(range(-norm.x.ndim, 0)))},
        "All rows share their statistics; a single row hides it.",
        "planted: a sum without its axis",
    ),
)
