"""PyTorch: the golden's ops as functions and modules, for eager mode and torch.compile."""

from impl_torch.add_norm import AddLayerNorm, AddRMSNorm, add_layer_norm, add_rms_norm
from impl_torch.attention import attention
from impl_torch.batch_norm import BatchNorm, batch_norm
from impl_torch.block_config import BlockConfig
from impl_torch.feed_forward import geglu, gelu, swiglu
from impl_torch.gated_norm import RMSNormGated, gated_rms_norm
from impl_torch.layer_norm import LayerNorm, layer_norm
from impl_torch.pre_ln_block import PreLNBlock, pre_ln_block
from impl_torch.pre_ln_stack import PreLNStack, pre_ln_stack
from impl_torch.quantised_norm import QuantisedRMSNorm, quantised_add_rms_norm, quantised_rms_norm
from impl_torch.rms_norm import RMSNorm, rms_norm
from impl_torch.rope import rope

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
