"""JAX: the golden's ops as pure functions and flax nnx modules, for jax.jit on CPU, GPU and TPU."""

from impl_jax.add_norm import AddLayerNorm, AddRMSNorm, add_layer_norm, add_rms_norm
from impl_jax.attention import attention
from impl_jax.batch_norm import BatchNorm, batch_norm
from impl_jax.block_config import BlockConfig
from impl_jax.feed_forward import geglu, gelu, swiglu
from impl_jax.gated_norm import RMSNormGated, gated_rms_norm
from impl_jax.layer_norm import LayerNorm, layer_norm
from impl_jax.pre_ln_block import PreLNBlock, pre_ln_block
from impl_jax.pre_ln_stack import PreLNStack, pre_ln_stack
from impl_jax.quantised_norm import QuantisedRMSNorm, quantised_add_rms_norm, quantised_rms_norm
from impl_jax.rms_norm import RMSNorm, rms_norm
from impl_jax.rope import rope

__all__ = [
    "AddLayerNorm",
    "AddRMSNorm",
    "BatchNorm",
    "BlockConfig",
    "LayerNorm",
    "PreLNBlock",
    "PreLNStack",
    "QuantisedRMSNorm",
    "RMSNorm",
    "RMSNormGated",
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "batch_norm",
    "gated_rms_norm",
    "geglu",
    "gelu",
    "layer_norm",
    "pre_ln_block",
    "pre_ln_stack",
    "quantised_add_rms_norm",
    "quantised_rms_norm",
    "rms_norm",
    "rope",
    "swiglu",
]
