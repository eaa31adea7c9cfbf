"""The golden: every op in float64 NumPy, forward and vector-Jacobian product, written to be read as the specification."""

from reference.layer_norm import LayerNorm, LayerNormGradients, layer_norm, layer_norm_vjp
from reference.rms_norm import RMSNorm, RMSNormGradients, rms_norm, rms_norm_vjp

__all__ = [
    "LayerNorm",
    "LayerNormGradients",
    "RMSNorm",
    "RMSNormGradients",
    "layer_norm",
    "layer_norm_vjp",
    "rms_norm",
    "rms_norm_vjp",
]
