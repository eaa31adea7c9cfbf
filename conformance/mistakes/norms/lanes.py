"""Blocks and lanes: what a kernel gets wrong that takes the features of a row, or the rows, so many at a time."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from conformance.mistakes.mistake import LAYER, ROWS, Change, Mistake, Of
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.steps import NOTHING, Steps
from conformance.ops.norms.values import Sum

Array = np.ndarray
NARROW: Mapping[str, str] = dict.fromkeys(
    ("float64", "float16"), "every row has 33 features: wider ones are tried in float32 and bfloat16"
)
OVER_FEATURES: tuple[Sum, ...] = ("mean", "squares", "projection", "shift")
Features = Callable[[int], slice]  # some of the n features


def _first(size: int) -> Features:
    return lambda n: slice(size)


def _last(size: int) -> Features:
    """The last block, whole or not."""
    return lambda n: slice((n - 1) // size * size, n)


def _whole(size: int) -> Features:
    return lambda n: slice(n // size * size)


def _of_each(size: int, terms: Array) -> Array:
    """For every feature the sum over its block, made as large as that of a whole row: times n and over the block's size."""
    n = terms.shape[-1]
    starts = np.arange(0, n, size)
    sizes = np.diff(starts, append=n)
    means = np.add.reduceat(terms, starts, axis=-1) / sizes.astype(terms.dtype)
    return n * np.repeat(means, sizes, axis=-1)


def _only(features: Features, a: Array) -> Array:
    """Zeros but for some features."""
    kept = np.zeros(a.shape[-1], bool)
    kept[features(a.shape[-1])] = True
    return np.where(kept, a, np.zeros_like(a))


def _statistics_of(features: Features) -> Change:
    """The sums of the statistics run over some features, and are divided by the width."""

    def squares(norm: Norm, s: Steps) -> tuple[Array, Array]:
        through_mean = np.sum(_only(features, s.centred), axis=-1, keepdims=True) / s.x.shape[-1]
        slope = s.centred - through_mean if norm.centre_statistics else s.centred
        return _only(features, np.square(s.centred)), _only(features, 2 * slope)

    return {"summed": partial(_only, features), "squares": Of(lambda norm: partial(squares, norm))}


def _projection_of(features: Features) -> Change:
    """The means of dx run over some features, and are divided by the width."""
    return {"projected": lambda s: _only(features, s.g * s.x_hat), "shift": lambda s: _only(features, s.g)}


def _writes(features: Features) -> Change:
    """y and dx are written for some features only."""
    return {
        "written": lambda x: _only(features, np.ones(x.shape[-1], x.dtype)),
        "paths": lambda s, d, m, r: (_only(features, d), _only(features, m), _only(features, r)),
    }


def _sees(features: Features) -> Change:
    """Nothing but some features is read or written."""
    of_parameters = dict.fromkeys(("weight_rows", "bias_rows"), partial(_only, features))
    return {**_statistics_of(features), **_projection_of(features), **_writes(features), **of_parameters}


def _without_delta(label: Callable[[int], Array]) -> Change:
    """The sums of squares about the means of parts of a row are added up; features of one label are one part."""

    def squares(s: Steps) -> tuple[Array, Array]:
        labels = label(s.x.shape[-1])
        member = (labels[:, None] == np.unique(labels)).astype(s.x.dtype)  # n features, k parts
        part_means = (s.x @ member) / np.sum(member, axis=0)
        off = s.x - part_means @ member.T
        return np.square(off), 2 * off

    return {"squares": squares}


def _not_spoilt(x: Array) -> Array:
    """Where the width is odd, features are written in pairs: the second of the last pair is the next row's first."""
    kept = np.ones(x.shape, x.dtype)
    kept.reshape(-1, x.shape[-1])[1:, 0] = 1 - x.shape[-1] % 2
    return kept


def _pads_rows(block: int, mode: str) -> Change:
    """The rows are made a multiple of a block, by repeating the last one ("edge") or by starting again ("wrap")."""

    def padded(terms: Array) -> Array:
        rows = terms.reshape(-1, terms.shape[-1])
        past = np.arange(len(rows), -(-len(rows) // block) * block)
        index = np.full_like(past, len(rows) - 1) if mode == "edge" else past % max(1, len(rows))
        return np.concatenate([rows, rows[index]])

    return {"weight_rows": padded, "bias_rows": padded}


def _of_block(size: int) -> tuple[Mistake, ...]:
    hidden = NARROW if size >= 33 else {}
    return (
        Mistake(
            f"row_cut_at_{size}",
            f"only the first {size} features of a row are read and written",
            _sees(_first(size)),
            f"Beyond feature {size - 1} y, dx, dweight and dbias are zero, or whatever was there; narrow rows hide it.",
            "xformers#785: one block a row, narrower than the row",
            ROWS,
            hidden,
        ),
        Mistake(
            f"statistics_of_first_{size}",
            f"the sums of the statistics stop after the first {size} features",
            _statistics_of(_first(size)),
            "Wide rows come out too large; narrow rows hide it.",
            "xformers#785: one block where a loop over blocks belongs",
            ROWS,
            hidden,
        ),
    )


def _of_blocks(size: int) -> tuple[Mistake, ...]:
    hidden = NARROW if size >= 33 else {}
    return (
        Mistake(
            f"statistics_of_last_{size}",
            f"the sums of the statistics are those of the last {size} features: every block overwrites the one before",
            _statistics_of(_last(size)),
            "Wide rows come out too large; narrow rows hide it.",
            "planted: = for += in a loop over blocks",
            ROWS,
            hidden,
        ),
        Mistake(
            f"statistics_of_each_{size}",
            f"every {size} features of a row are normalised by themselves",
            {"sums": dict.fromkeys(OVER_FEATURES, partial(_of_each, size))},
            "Blocks of a wide row each have a mean square of one; narrow rows hide it.",
            "planted: a grid over blocks of a row, and no sum over the blocks",
            ROWS,
            hidden,
        ),
        Mistake(
            f"projection_of_first_{size}",
            f"the means in dx are sums over the first {size} features",
            _projection_of(_first(size)),
            "y is right; dx of wide rows is not.",
            "planted: one block where a loop over blocks belongs",
            ROWS,
            hidden,
        ),
        Mistake(
            f"projection_of_last_{size}",
            f"the means in dx are sums over the last {size} features: every block overwrites the one before",
            _projection_of(_last(size)),
            "y is right; dx of wide rows is not.",
            "planted: = for += in a loop over blocks",
            ROWS,
            hidden,
        ),
    )


def _remainder(size: int) -> Mistake:
    return Mistake(
        f"columns_past_{size}_not_written",
        f"features past the last multiple of {size} are never written in y and dx",
        _writes(_whole(size)),
        "The last features of y and dx are zero, or whatever was there; widths that are multiples hide it.",
        "planted: a number of blocks that is rounded down",
        ROWS,
    )


def _welford(end: str, parts: str, label: Callable[[int], Array], hidden: Mapping[str, str] = NOTHING) -> Mistake:
    return Mistake(
        f"welford_without_delta_{end}",
        f"the variances of {parts} are merged without the distance of their means",
        _without_delta(label),
        "Rows come out too large, by what their parts' means differ.",
        "planted: Welford's merge, M2 + M2', without delta²",
        LAYER,
        hidden,
    )


def _padded_rows(size: int) -> tuple[Mistake, ...]:
    return (
        Mistake(
            f"dweight_repeats_last_row_{size}",
            f"the last block of {size} rows is filled with the last row, which dweight and dbias count again",
            _pads_rows(size, "edge"),
            "The last row counts too often; a number of rows that is a multiple of the block hides it.",
            "planted: a row index that is clamped, and no mask",
            ROWS,
        ),
        Mistake(
            f"dweight_wraps_rows_{size}",
            f"the last block of {size} rows starts again at the first rows, which dweight and dbias count twice",
            _pads_rows(size, "wrap"),
            "The first rows count twice; a number of rows that is a multiple of the block hides it.",
            "planted: a row index taken modulo the number of rows, as in a tiled matrix product, and no mask",
            ROWS,
        ),
    )


MISTAKES = (
    *(mistake for size in (32, 64, 128, 1024) for mistake in _of_block(size)),
    *(mistake for size in (32, 128) for mistake in _of_blocks(size)),
    *(_remainder(size) for size in (4, 32, 128)),
    _welford("halves", "the two halves of a row", lambda n: np.arange(n) >= n / 2),
    _welford("32", "blocks of 32 features", lambda n: np.arange(n) // 32),
    _welford("128", "blocks of 128 features", lambda n: np.arange(n) // 128, NARROW),
    _welford("lanes", "32 lanes, each of every 32nd feature,", lambda n: np.arange(n) % 32),
    Mistake(
        "next_row_spoilt",
        "a row of odd width writes one feature too many: the next row's first",
        {
            "written": _not_spoilt,
            "paths": lambda s, d, m, r: (_not_spoilt(d) * d, _not_spoilt(d) * m, _not_spoilt(d) * r),
        },
        "The first element of every row but the first is zero in y and dx, or whatever was written; even widths hide it.",
        "aiter#5044, aiter#5290: features written in pairs, without a mask",
        ROWS,
    ),
    *(mistake for size in (8, 128) for mistake in _padded_rows(size)),
)
