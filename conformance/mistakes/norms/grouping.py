"""Groups of features with statistics of their own: which features a statistic is of, and by how many it is divided."""

import numpy as np

from conformance.mistakes.mistake import GATED, ROWS, Change, Mistake, Of
from conformance.numbers.rounding import DTYPES
from conformance.ops.norms import grouped
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.steps import Paths, Steps

Array = np.ndarray

NOT_ASKED = {
    f"{op}/{dtype}": "groups are asked in float32 and bfloat16"
    for op in ROWS
    for dtype in DTYPES
    if dtype not in grouped.DTYPES
}
PARALLEL = "Mamba2 under tensor parallelism (mamba#547, mamba#910, transformers#35943, llama.cpp#15507)"


def _projected_on_the_row(s: Steps, direct: Array, through_mean: Array, through_rstd: Array) -> Paths:
    return direct, through_mean, -s.rstd * s.x_hat * np.mean(s.g * s.x_hat, axis=-1, keepdims=True)


def _of_groups(id_: str, sentence: str, change: Change, effect: str, evidence: str = PARALLEL) -> Mistake:
    return Mistake(
        id_,
        sentence,
        change,
        effect,
        evidence,
        (*ROWS, *GATED),
        hidden=NOT_ASKED,
        where=lambda norm: norm.group is not None,
    )


def _divided_by_the_width(norm: Norm) -> object:
    return lambda n: norm.x.shape[-1]


MISTAKES = (
    _of_groups(
        "groups_left_out",
        "the statistics are of the whole row, not of each group",
        {"group": None},
        "Every group is off by a factor of its own; groups of one size hide it.",
    ),
    _of_groups(
        "statistics_of_first_group",
        "all groups are given the statistics of the first",
        {"of_rows": lambda statistic: np.broadcast_to(statistic[..., :1], statistic.shape)},
        "The first group is right; every other is off by a factor of its own.",
        "planted: an index that lacks the group",
    ),
    _of_groups(
        "statistics_of_last_group",
        "all groups are given the statistics of the last",
        {"of_rows": lambda statistic: np.broadcast_to(statistic[..., -1:], statistic.shape)},
        "The last group is right; every other is off by a factor of its own.",
        "planted: every group writes to one place",
    ),
    _of_groups(
        "group_divided_by_the_width",
        "the sums of a group are divided by the width of the row",
        {"divisor": Of(_divided_by_the_width), "mean_divisor": Of(_divided_by_the_width)},
        "y is too large, by the root of the number of groups.",
        "planted: the width for the group's",
    ),
    _of_groups(
        "group_size_for_their_number",
        "the size of a group is taken for the number of groups",
        {"group": Of(lambda norm: norm.x.shape[-1] // norm.group)},
        "Every group is off; a size that is the number hides it.",
        "planted: torch's GroupNorm takes the number, Mamba2's norm the size",
    ),
    _of_groups(
        "projection_on_the_row",
        "dx is projected on x_hat over the whole row, not over each group",
        {"paths": _projected_on_the_row},
        "y is right; dx keeps a share along each group's x_hat.",
        "planted: a backward that knows no groups",
    ),
)
