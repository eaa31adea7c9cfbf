"""What goes wrong in dweight and dbias: the multiplicand, the rows, the sum over them."""

import numpy as np

from conformance.mistakes.mistake import CENTRED, Mistake, all_but, in_half
from conformance.mistakes.norms.arithmetic import STORAGE
from conformance.mistakes.norms.dx import FORMULA
from conformance.mistakes.norms.precision import NO_NARROWER, TF32

Array = np.ndarray
BLOCK = 128  # rows that a kernel takes at once, in the mistake that leaves out the rest


def _rows(a: Array) -> Array:
    return a.reshape(-1, a.shape[-1])


def _first_batch(a: Array) -> Array:
    return a[(slice(0, 1),) * (a.ndim - 2)]


def _whole_blocks(a: Array) -> Array:
    """All rows but those beyond the last whole block, where there is one."""
    count = _rows(a).shape[0]
    return _rows(a)[: count - count % BLOCK] if count > BLOCK else a


def _mean_of_rows(a: Array) -> Array:
    return a / max(1, a.size // a.shape[-1])


DWEIGHT = (
    Mistake(
        "dweight_of_x",
        "dweight sums dy·x, not dy·x_hat",
        {"multiplicand": lambda s: s.x},
        "Rows of deviation one hide it.",
        FORMULA,
    ),
    Mistake(
        "dweight_of_centred",
        "dweight sums dy·(x - mean), without rstd",
        {"multiplicand": lambda s: s.centred},
        "Rows of deviation one hide it.",
        FORMULA,
        CENTRED,
    ),
    Mistake(
        "dweight_of_y", "dweight sums dy·y, not dy·x_hat", {"multiplicand": lambda s: s.y}, "A weight of one hides it.", FORMULA
    ),
    Mistake(
        "dweight_weighted",
        "dweight sums dy·weight·x_hat",
        {"multiplicand": lambda s: s.w * s.x_hat},
        "A weight of one hides it.",
        FORMULA,
    ),
    Mistake("dweight_zero", "dweight is not computed", {"weight_rows": lambda a: 0 * a}, "dweight is zero.", "unsloth#4533"),
    Mistake(
        "dweight_twice",
        "dweight is accumulated twice",
        {"weight_rows": lambda a: 2 * a},
        "dweight is twice too large.",
        FORMULA,
    ),
    Mistake(
        "dweight_negated", "dweight has the wrong sign", {"weight_rows": lambda a: -a}, "dweight is its own negative.", FORMULA
    ),
    Mistake(
        "dweight_mean",
        "dweight is a mean over the rows, not a sum",
        {"weight_rows": _mean_of_rows},
        "A single row hides it.",
        FORMULA,
    ),
    Mistake(
        "dweight_without_last_row",
        "dweight leaves out the last row",
        {"weight_rows": lambda a: _rows(a)[:-1]},
        "A last row of zeros hides it.",
        "attorch#18",
    ),
    Mistake(
        "dweight_without_first_row",
        "dweight leaves out the first row",
        {"weight_rows": lambda a: _rows(a)[1:]},
        "A first row of zeros hides it.",
        "planted: a loop that starts at one",
    ),
    Mistake(
        "dweight_of_last_row",
        "dweight is overwritten by every row, not added up",
        {"weight_rows": lambda a: _rows(a)[-1:]},
        "A single row hides it.",
        "planted: = for +=",
    ),
    Mistake(
        "dweight_of_first_batch",
        "dweight is summed over the rows of the first batch entry only",
        {"weight_rows": _first_batch},
        "An input of two axes hides it.",
        "FlagGems#5392: a backward that assumes two axes",
    ),
    Mistake(
        "dweight_of_whole_blocks",
        f"dweight leaves out the rows beyond the last whole block of {BLOCK}",
        {"weight_rows": _whole_blocks},
        "A number of rows that is a multiple of the block hides it.",
        "attorch#18",
        hidden=dict.fromkeys(
            all_but("float32"),
            "indexing is tried in float32: no other dtype has a case of more rows than a block",
        ),
    ),
    Mistake(
        "dweight_terms_in_tf32",
        "the terms of dweight are rounded to eleven bits, as a tf32 matrix product takes them",
        {"rounded.dy_x_hat": TF32},
        "dweight is off by 1e-4 of its terms.",
        "a sum over the rows written as a product with ones on a matrix unit (jax#12008 tells of the precision)",
    ),
    Mistake(
        "parameter_gradients_accumulated_in_storage_dtype",
        "dweight and dbias are added up row by row in x's dtype",
        {"arithmetic.sums.dweight": STORAGE, "arithmetic.sums.dbias": STORAGE},
        "The sums stop growing: 0.15 of the largest after 8192 rows in bfloat16.",
        "Liger-Kernel#950, helion#3595; torch's LayerNorm on CPU",
        hidden=NO_NARROWER,
        where=in_half,
    ),
)

DBIAS = (
    Mistake("dbias_zero", "dbias is not computed", {"bias_rows": lambda a: 0 * a}, "dbias is zero.", "unsloth#4533", CENTRED),
    Mistake(
        "dbias_twice",
        "dbias is accumulated twice",
        {"bias_rows": lambda a: 2 * a},
        "dbias is twice too large.",
        FORMULA,
        CENTRED,
    ),
    Mistake(
        "dbias_mean",
        "dbias is a mean over the rows, not a sum",
        {"bias_rows": _mean_of_rows},
        "A single row hides it.",
        FORMULA,
        CENTRED,
    ),
    Mistake(
        "dbias_weighted",
        "dbias sums g, not dy",
        {"bias_terms": lambda s: s.dy * s.w},
        "A weight of one hides it.",
        FORMULA,
        CENTRED,
    ),
    Mistake(
        "dbias_of_dx",
        "dbias sums rstd·g, not dy",
        {"bias_terms": lambda s: s.dy * s.w * s.rstd},
        "A weight of one and rows of deviation one hide it.",
        FORMULA,
        CENTRED,
    ),
    Mistake(
        "dbias_without_last_row",
        "dbias leaves out the last row",
        {"bias_rows": lambda a: _rows(a)[:-1]},
        "A last row of zeros in dy hides it.",
        "attorch#18",
        CENTRED,
    ),
    Mistake(
        "dbias_of_last_row",
        "dbias is overwritten by every row, not added up",
        {"bias_rows": lambda a: _rows(a)[-1:]},
        "A single row hides it.",
        "planted: = for +=",
        CENTRED,
    ),
    Mistake(
        "dbias_of_first_batch",
        "dbias is summed over the rows of the first batch entry only",
        {"bias_rows": _first_batch},
        "An input of two axes hides it.",
        "FlagGems#5392: a backward that assumes two axes",
        CENTRED,
    ),
)

MISTAKES = (*DWEIGHT, *DBIAS)
