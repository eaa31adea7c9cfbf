"""PyTorch: the golden's ops as functions and modules, for eager mode and torch.compile."""

from impl_torch.layer_norm import LayerNorm, layer_norm
from impl_torch.rms_norm import RMSNorm, rms_norm

__all__ = ["LayerNorm", "RMSNorm", "layer_norm", "rms_norm"]
