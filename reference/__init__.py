"""The golden: every op in float64 NumPy, forward and vector-Jacobian product, written to be read as the specification."""

from reference.add_norm import (
    AddNorm,
    AddNormGradients,
    add_layer_norm,
    add_layer_norm_vjp,
    add_rms_norm,
    add_rms_norm_vjp,
)
from reference.attention import Attention, AttentionGradients, attention, attention_vjp
from reference.batch_norm import BatchNorm, BatchNormGradients, batch_norm, batch_norm_vjp
from reference.block_config import FEATURES, BlockConfig
from reference.feed_forward import geglu, geglu_vjp, gelu, gelu_vjp, swiglu, swiglu_vjp
from reference.gated_norm import GatedRMSNorm, GatedRMSNormGradients, gated_rms_norm, gated_rms_norm_vjp
from reference.layer_norm import LayerNorm, LayerNormGradients, layer_norm, layer_norm_vjp
from reference.pre_ln_block import PreLNBlock, pre_ln_block, pre_ln_block_vjp
from reference.presets import PRESETS, small
from reference.quantised_norm import (
    QuantisedAddNorm,
    QuantisedNorm,
    dynamic_scale,
    quantise,
    quantised_add_rms_norm,
    quantised_rms_norm,
)
from reference.rms_norm import RMSNorm, RMSNormGradients, rms_norm, rms_norm_vjp
from reference.rope import rope, rope_vjp

__all__ = [
    "FEATURES",
    "PRESETS",
    "AddNorm",
    "AddNormGradients",
    "Attention",
    "AttentionGradients",
    "BatchNorm",
    "BatchNormGradients",
    "BlockConfig",
    "GatedRMSNorm",
    "GatedRMSNormGradients",
    "LayerNorm",
    "LayerNormGradients",
    "PreLNBlock",
    "QuantisedAddNorm",
    "QuantisedNorm",
    "RMSNorm",
    "RMSNormGradients",
    "add_layer_norm",
    "add_layer_norm_vjp",
    "add_rms_norm",
    "add_rms_norm_vjp",
    "attention",
    "attention_vjp",
    "batch_norm",
    "batch_norm_vjp",
    "dynamic_scale",
    "gated_rms_norm",
    "gated_rms_norm_vjp",
    "geglu",
    "geglu_vjp",
    "gelu",
    "gelu_vjp",
    "layer_norm",
    "layer_norm_vjp",
    "pre_ln_block",
    "pre_ln_block_vjp",
    "quantise",
    "quantised_add_rms_norm",
    "quantised_rms_norm",
    "rms_norm",
    "rms_norm_vjp",
    "rope",
    "rope_vjp",
    "small",
    "swiglu",
    "swiglu_vjp",
]
