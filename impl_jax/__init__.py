"""JAX: the golden's ops as pure functions and flax nnx modules, for jax.jit on CPU, GPU and TPU."""

from impl_jax.layer_norm import LayerNorm, layer_norm
from impl_jax.rms_norm import RMSNorm, rms_norm

__all__ = ["LayerNorm", "RMSNorm", "layer_norm", "rms_norm"]
