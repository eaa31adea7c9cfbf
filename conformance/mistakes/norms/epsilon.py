"""eps: its value, its place, its dtype."""

from dataclasses import replace

import numpy as np

from conformance.mistakes.mistake import ALL_NORMS, ROWS, Mistake, Of, all_but, in_dtypes
from conformance.numbers.rounding import FORMATS, SINGLE, round_to
from conformance.ops.norms.steps import Steps

FLOAT16_FLOOR = 1e-4
SMALL_ROWS = "Rows near sqrt(eps) come out at the wrong size"


def _hard_coded(eps: float, evidence: str) -> Mistake:
    return Mistake(
        f"eps_{eps:g}",
        f"eps is hard-coded at {eps:g}",
        {"eps": eps},
        f"{SMALL_ROWS} where another eps is asked for; ordinary rows hide it.",
        evidence,
    )


def _at_least(eps: float, evidence: str, ops: tuple[str, ...]) -> Mistake:
    return Mistake(
        f"eps_at_least_{eps:g}",
        f"an eps below {eps:g} is raised to {eps:g}",
        {"eps": Of(lambda norm: max(norm.eps, eps))},
        f"{SMALL_ROWS} where a smaller eps is asked for; ordinary rows hide it.",
        evidence,
        ops,
    )


def _in_backward(eps: float) -> Mistake:
    def saved(s: Steps) -> Steps:
        rstd = (s.mean_square + eps) ** -0.5
        return replace(s, rstd=rstd, x_hat=s.shifted * rstd)

    return Mistake(
        f"eps_{eps:g}_in_backward",
        f"the backward pass computes rstd again, with an eps of {eps:g}",
        {"saved": saved},
        "y is right; dx and dweight of small rows are not, where another eps is asked for.",
        "planted: a backward that has eps as a constant of its own",
    )


MISTAKES = (
    Mistake(
        "eps_outside_root",
        "eps is added to the root, not under it",
        {"rstd": lambda ms, eps: 1 / (ms**0.5 + eps)},
        f"{SMALL_ROWS}, by 1/sqrt(eps) for a zero row's gradient; ordinary rows differ by eps/2, less than a float32 ulp.",
        "gpt-neox#1342, OLMo#281, tilelang#1243; the first code published with the paper",
    ),
    Mistake(
        "root_of_eps_outside",
        "the root of eps is added to the root of the mean square",
        {"rstd": lambda ms, eps: 1 / (ms**0.5 + eps**0.5)},
        "Every row is too small, ordinary ones by sqrt(eps).",
        "planted: the root of a sum taken for the sum of the roots",
    ),
    Mistake(
        "eps_missing",
        "eps is left out",
        {"eps": 0.0},
        f"{SMALL_ROWS}, and a zero row is NaN.",
        "meta-llama/llama#771 and others: an eps accepted and ignored",
    ),
    Mistake(
        "eps_twice",
        "eps is added twice",
        {"eps": Of(lambda norm: 2 * norm.eps)},
        f"{SMALL_ROWS}.",
        "planted: by the caller and by the kernel",
    ),
    Mistake(
        "eps_squared",
        "eps is squared before it is added",
        {"eps": Of(lambda norm: norm.eps**2)},
        f"{SMALL_ROWS}, as if there were no eps.",
        "planted: an eps in units of x taken for one in units of x²",
    ),
    Mistake(
        "eps_in_the_sum",
        "eps joins the sum of squares, before it is divided by the width",
        {"eps": Of(lambda norm: norm.eps / norm.x.shape[-1])},
        f"{SMALL_ROWS}: eps is n times too small.",
        "planted: the order of two lines",
    ),
    Mistake(
        "eps_clamps",
        "eps is the least that the mean square may be, not added to it",
        {"rstd": lambda ms, eps: np.where(np.real(ms) < eps, eps, ms) ** -0.5},
        f"{SMALL_ROWS}; a zero row is right.",
        "planted: max(var, eps), as a normalisation of vectors does it",
    ),
    Mistake(
        "eps_clamps_root",
        "eps is the least that the root may be, not added under it",
        {"rstd": lambda ms, eps: 1 / np.where(np.real(ms) < eps**2, eps, ms**0.5)},
        f"{SMALL_ROWS}; a zero row's gradient is 1/sqrt(eps) times too large.",
        "planted: x / max(norm, eps), which torch.nn.functional.normalize computes",
    ),
    Mistake(
        "eps_for_zero_rows_only",
        "eps stands in for a mean square of zero, and is not added to others",
        {"rstd": lambda ms, eps: np.where(np.real(ms) == 0, eps, ms) ** -0.5},
        f"{SMALL_ROWS}; zero rows are right.",
        "planted: a guard against division by zero",
    ),
    Mistake(
        "eps_after_rescale",
        "the row is divided by its largest value first, and eps is added to the rescaled mean square",
        {"row_eps": lambda eps, s: eps * np.max(np.abs(s.x), axis=-1, keepdims=True, initial=0) ** 2},
        "Every row is off by eps·max²/mean², a spike most; a zero row is NaN.",
        "coremltools#2822",
    ),
    _hard_coded(1e-3, "keras: LayerNormalization's default"),
    _hard_coded(1e-5, "meta-llama/llama#771, keras-hub#642"),
    _hard_coded(1e-6, "apache/tvm#15856, torchtitan#4395"),
    _hard_coded(1e-8, "planted: a usual eps of optimisers"),
    _hard_coded(1e-12, "planted: the layer_norm_eps of BERT and its heirs"),
    _at_least(1e-5, "planted: a floor that is to keep rsqrt finite; cuDNN's batch norm asks for as much", ALL_NORMS),
    _at_least(1e-6, "planted: a floor that is to keep rsqrt finite", ROWS),
    Mistake(
        "eps_at_least_1e-04_in_float16",
        f"in float16 an eps below {FLOAT16_FLOOR:g} is raised to {FLOAT16_FLOOR:g}",
        {"eps": Of(lambda norm: max(norm.eps, FLOAT16_FLOOR))},
        f"{SMALL_ROWS} in float16; ordinary rows hide it.",
        "planted: a floor that is to keep eps from vanishing in float16",
        hidden=dict.fromkeys(all_but("float16"), "it is made in float16 only"),
        where=in_dtypes("float16"),
    ),
    Mistake(
        "eps_of_storage_dtype",
        "eps is the machine epsilon of x's dtype",
        {"eps": Of(lambda norm: 2 * FORMATS[norm.case.dtype].unit_roundoff)},
        f"{SMALL_ROWS}; in bfloat16 (0.0078) rows of deviation 0.05 come out at half their size.",
        "pytorch#189581",
    ),
    Mistake(
        "eps_of_float32",
        "eps is the machine epsilon of float32",
        {"eps": 2 * FORMATS["float32"].unit_roundoff},
        f"{SMALL_ROWS}.",
        "the default of torch.nn.functional.rms_norm, which an eps given is to override",
    ),
    Mistake(
        "eps_in_storage_dtype",
        "eps is rounded to x's dtype, where it may be zero",
        {"eps": Of(lambda norm: float(round_to(np.array(norm.eps), norm.case.dtype)))},
        "In float16 an eps below 6e-8 is zero and a zero row is NaN; otherwise eps is off by half an ulp.",
        "pytorch#41527, tensorflow#24979",
        hidden={dtype: f"every eps of the suite is exact in {dtype}" for dtype in SINGLE},
    ),
    Mistake(
        "eps_missing_in_backward",
        "the backward pass computes rstd again, without eps",
        {"saved": lambda s: replace(s, rstd=s.mean_square**-0.5, x_hat=s.shifted * s.mean_square**-0.5)},
        "y is right; dx and dweight of small rows are not.",
        "planted: a fused backward that recomputes the statistics",
    ),
    _in_backward(1e-5),
    _in_backward(1e-6),
)
