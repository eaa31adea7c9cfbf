"""The same layers for flax linen; `impl_jax.RMSNorm` and `impl_jax.LayerNorm` are those for nnx."""

import jax.numpy as jnp
from flax import linen
from flax.linen import initializers
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from impl_jax.layer_norm import layer_norm
from impl_jax.rms_norm import rms_norm


class RMSNorm(linen.Module):
    """`rms_norm` over the last axis, with a learned `weight`."""

    eps: float = 1e-5
    param_dtype: DTypeLike = jnp.float32
    order: str = "cast_then_scale"
    weight_offset: float = 0.0

    @linen.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Normalise x; the width is that of the first x seen."""
        weight = self.param("weight", initializers.constant(1 - self.weight_offset), x.shape[-1:], self.param_dtype)
        return rms_norm(x, weight, eps=self.eps, order=self.order, weight_offset=self.weight_offset)


class LayerNorm(linen.Module):
    """`layer_norm` over the last axis, with learned `weight` and (unless `use_bias=False`) `bias`."""

    eps: float = 1e-5
    use_bias: bool = True
    param_dtype: DTypeLike = jnp.float32
    order: str = "scale_then_cast"
    weight_offset: float = 0.0

    @linen.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Normalise x; the width is that of the first x seen."""
        weight = self.param("weight", initializers.constant(1 - self.weight_offset), x.shape[-1:], self.param_dtype)
        bias = self.param("bias", initializers.zeros, x.shape[-1:], self.param_dtype) if self.use_bias else None
        return layer_norm(x, weight, bias, eps=self.eps, order=self.order, weight_offset=self.weight_offset)
