"""Rotary position embedding in float64: Su et al. 2021, "RoFormer", arXiv:2104.09864."""

import numpy as np
from jaxtyping import Float64

from reference.arguments import check_float64, check_shape

Array = np.ndarray


def rope_angles(positions: Float64[Array, " s"], d_head: int, *, base: float) -> Float64[Array, "s d_head/2"]:
    r"""The angle of every position and frequency.

    $$ \theta_{s,i} = p_s\, \mathrm{base}^{-2i/d} $$
    """
    frequency = base ** (-np.arange(0, d_head, 2) / d_head)  # d_head/2
    return positions[:, None] * frequency  # s d_head/2


def quarter_turn(x: Float64[Array, "*batch d_head"], *, interleaved: bool = False) -> Float64[Array, "*batch d_head"]:
    """Turn every pair of features (a, b) to (−b, a).

    The pairs are a feature of the first half of the head and one of the second (Llama, GPT-NeoX), or, `interleaved`,
    neighbours (RoFormer, GPT-J). The two differ by a permutation of features that a checkpoint has or has not gone through.
    """
    if interleaved:
        return np.stack([-x[..., 1::2], x[..., 0::2]], axis=-1).reshape(x.shape)
    half = x.shape[-1] // 2
    return np.concatenate([-x[..., half:], x[..., :half]], axis=-1)


def each_feature(angles: Float64[Array, "s d_head/2"], *, interleaved: bool = False) -> Float64[Array, "s 1 d_head"]:
    """The angle of each feature's pair, for every head."""
    return (np.repeat(angles, 2, axis=-1) if interleaved else np.tile(angles, 2))[:, None]


def rope(
    x: Float64[Array, "*batch s h d_head"],
    positions: Float64[Array, " s"],
    *,
    base: float = 10_000.0,
    interleaved: bool = False,
    rotary_features: int | None = None,
) -> Float64[Array, "*batch s h d_head"]:
    r"""Turn every pair of features by its angle; the dot product of a query and a key then depends on their distance alone.

    $$ y_1 = x_1 \cos\theta - x_2 \sin\theta, \qquad y_2 = x_2 \cos\theta + x_1 \sin\theta $$

    With `rotary_features`, so many are turned, the first of every head, as if they were all of it (GPT-NeoX, GLM, Phi).

    Raises `ValueError` for an x that is not of shape [*batch, s, h, d_head], an odd `d_head`, rotary features that are odd or
    more than those of a head, or positions that are not [s].
    """
    _check("rope", positions, rotary_features, x=x)
    turned, others = np.split(x, [x.shape[-1] if rotary_features is None else rotary_features], axis=-1)
    angles = each_feature(rope_angles(positions, turned.shape[-1], base=base), interleaved=interleaved)  # s 1 rotary_features
    turned = turned * np.cos(angles) + quarter_turn(turned, interleaved=interleaved) * np.sin(angles)
    return np.concatenate([turned, others], axis=-1)


def rope_vjp(
    dy: Float64[Array, "*batch s h d_head"],
    positions: Float64[Array, " s"],
    *,
    base: float = 10_000.0,
    interleaved: bool = False,
    rotary_features: int | None = None,
) -> Float64[Array, "*batch s h d_head"]:
    """Pull a cotangent of y back to x: a rotation's transpose is the rotation the other way."""
    _check("rope_vjp", positions, rotary_features, dy=dy)
    return rope(dy, -positions, base=base, interleaved=interleaved, rotary_features=rotary_features)


def _check(op: str, positions: Array, rotary_features: int | None, **rotated: Array) -> None:
    [(name, x)] = rotated.items()
    if x.ndim < 3:
        raise ValueError(f"{op}: {name} has shape {x.shape}; it must be [*batch, s, h, d_head]")
    if x.shape[-1] % 2:
        raise ValueError(f"{op}: {name} has shape {x.shape}; its last axis must be even, for its features are turned in pairs")
    if rotary_features is not None and (rotary_features % 2 or not 0 < rotary_features <= x.shape[-1]):
        raise ValueError(f"{op}: rotary_features is {rotary_features}; it must be even, and {x.shape[-1]} at most")
    check_shape(op, "positions", positions, x.shape[-3:-2], **rotated)
    check_float64(op, positions=positions, **rotated)
