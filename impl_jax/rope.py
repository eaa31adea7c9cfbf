"""Rotary position embedding (Su et al. 2021, "RoFormer", arXiv:2104.09864) for JAX."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from impl_jax.rows import compute_dtype, round_to


def rope_angles(positions: Float[Array, " s"], d_head: int, *, base: float) -> Float[Array, "s d_head/2"]:
    r"""The angle of every position and frequency, in the positions' dtype.

    $$ \theta_{s,i} = p_s\, \mathrm{base}^{-2i/d} $$

    The frequencies are Python's, in float64 and rounded once: a device's power may be ulps off, which positions multiply.
    """
    frequency = jnp.asarray([base ** (-i / d_head) for i in range(0, d_head, 2)], positions.dtype)  # d_head/2
    return positions[:, None] * frequency  # s d_head/2


def rotate(
    x: Float[Array, "*batch s h d_head"], angles: Float[Array, "s d_head/2"], *, interleaved: bool = False
) -> Float[Array, "*batch s h d_head"]:
    r"""Turn every pair of features by its angle.

    $$ y_1 = x_1 \cos\theta - x_2 \sin\theta, \qquad y_2 = x_2 \cos\theta + x_1 \sin\theta $$

    The pairs are a feature of the first half of the head and one of the second (Llama, GPT-NeoX), or, `interleaved`,
    neighbours (RoFormer, GPT-J).
    """
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]  # s 1 d_head/2
    half = x.shape[-1] // 2
    first, second = (jnp.s_[..., 0::2], jnp.s_[..., 1::2]) if interleaved else (jnp.s_[..., :half], jnp.s_[..., half:])
    y_1 = x[first] * cos - x[second] * sin  # *batch s h d_head/2
    y_2 = x[second] * cos + x[first] * sin  # *batch s h d_head/2
    return jnp.stack([y_1, y_2], axis=-1).reshape(x.shape) if interleaved else jnp.concatenate([y_1, y_2], axis=-1)


def rope(
    x: Float[Array, "*batch s h d_head"],
    *,
    position: ArrayLike = 0,
    base: float = 10_000.0,
    interleaved: bool = False,
    rotary_features: int | None = None,
) -> Float[Array, "*batch s h d_head"]:
    """Rotate every head's queries or keys by their positions, of which `position`, perhaps a traced one, is the first.

    Angles, cosines, sines and products are in float32 (float64 for float64), and y is rounded once, to x's dtype. With
    `rotary_features`, so many are turned, the first of every head, as if they were all of it (GPT-NeoX, GLM, Phi).
    Raises `ValueError` for an odd number of features to turn.
    """
    if rotary_features is not None and rotary_features < x.shape[-1]:
        turned = rope(x[..., :rotary_features], position=position, base=base, interleaved=interleaved)
        return jnp.concatenate([turned, x[..., rotary_features:]], axis=-1)
    if x.shape[-1] % 2:
        raise ValueError(f"rope: x has shape {list(x.shape)}; its last axis must be even, for its features are turned in pairs")
    compute = compute_dtype(x)
    positions = jnp.asarray(position + jnp.arange(x.shape[-3]), compute)  # s
    angles = rope_angles(positions, x.shape[-1], base=base)  # s d_head/2
    return round_to(rotate(x.astype(compute), angles, interleaved=interleaved), x.dtype)
