"""The same layers for flax linen; those that `impl_jax` exports are for nnx."""

from typing import Any

import jax.numpy as jnp
from flax import linen
from flax.linen import initializers
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from impl_jax.block_config import BlockConfig
from impl_jax.layer_norm import layer_norm
from impl_jax.pre_ln_block import initializer, pre_ln_block
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


class PreLNBlock(linen.Module):
    """`pre_ln_block`, with learned parameters by the names of `config.parameters()`."""

    config: BlockConfig
    param_dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(self, x: Float[Array, "*batch s d_model"], *caches_and_mask: Array | None, **how: Any) -> Any:
        """`pre_ln_block` with the parameters held."""
        shapes = BlockConfig.parameters(self.config)
        parameters = {n: self.param(n, initializer(n, self.config), shape, self.param_dtype) for n, shape in shapes.items()}
        return pre_ln_block(x, parameters, *caches_and_mask, config=self.config, **how)
