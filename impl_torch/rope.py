"""Rotary position embedding (Su et al. 2021, "RoFormer", arXiv:2104.09864) for PyTorch."""

import torch
from jaxtyping import Float
from torch import Tensor

from impl_torch.rows import compute_dtype


def rope_angles(positions: Float[Tensor, " s"], d_head: int, *, base: float) -> Float[Tensor, "s d_head/2"]:
    r"""The angle of every position and frequency, in the dtype of the positions.

    $$ \theta_{s,i} = p_s\, \mathrm{base}^{-2i/d} $$
    """
    exponent = -torch.arange(0, d_head, 2, dtype=positions.dtype, device=positions.device) / d_head  # d_head/2
    return positions[:, None] * base**exponent  # s d_head/2


def rotate(
    x: Float[Tensor, "*batch s h d_head"], angles: Float[Tensor, "s d_head/2"], *, interleaved: bool = False
) -> Float[Tensor, "*batch s h d_head"]:
    r"""Turn every pair of features by its angle, in the angles' dtype, and round once.

    $$ y_1 = x_1 \cos\theta - x_2 \sin\theta, \qquad y_2 = x_2 \cos\theta + x_1 \sin\theta $$

    The pairs are a feature of the first half of the head and one of the second (Llama, GPT-NeoX), or, `interleaved`,
    neighbours (RoFormer, GPT-J).
    """
    cos, sin = torch.cos(angles)[:, None], torch.sin(angles)[:, None]  # s 1 d_head/2
    wide = x.to(angles.dtype)
    first, second = (wide[..., 0::2], wide[..., 1::2]) if interleaved else wide.chunk(2, dim=-1)
    pairs = [first * cos - second * sin, second * cos + first * sin]
    y = torch.stack(pairs, dim=-1).flatten(start_dim=-2) if interleaved else torch.cat(pairs, dim=-1)
    return y.to(x.dtype)


def rope(
    x: Float[Tensor, "*batch s h d_head"],
    *,
    position: int | Tensor = 0,
    base: float = 10_000.0,
    interleaved: bool = False,
    rotary_features: int | None = None,
) -> Float[Tensor, "*batch s h d_head"]:
    """Rotate every head's queries or keys by their positions, of which `position` is the first.

    As a tensor, an integer one, it is no constant to torch.compile, which then compiles once for all positions.

    Angles, cosines and sines are float32 (float64 for float64): bfloat16 cannot tell position 256 from 257. With
    `rotary_features`, so many are turned, the first of every head, as if they were all of it (GPT-NeoX, GLM, Phi).
    Raises `ValueError` for an odd number of features to turn.
    """
    if rotary_features is not None and rotary_features < x.shape[-1]:
        turned = rope(x[..., :rotary_features], position=position, base=base, interleaved=interleaved)
        return torch.cat([turned, x[..., rotary_features:]], dim=-1)
    if x.shape[-1] % 2:
        raise ValueError(f"rope: x has shape {list(x.shape)}; its last axis must be even, for its features are turned in pairs")
    positions = position + torch.arange(x.shape[-3], device=x.device)  # s
    return rotate(x, rope_angles(positions.to(compute_dtype(x)), x.shape[-1], base=base), interleaved=interleaved)
