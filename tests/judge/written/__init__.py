"""Faults as people write them, in PyTorch and JAX: set by set, the test of the names that a diagnosis gives."""

from importlib import import_module

from tests.judge.written.fault import Fault

SETS = (
    "torch_rms_norm",
    "torch_layer_norm",
    "torch_gated_norm",
    "torch_quantised_norm",
    "torch_backward",
    "torch_kernels",
    "torch_blocks",
    "jax_norms",
    "jax_blocks",
    "aside",
)
"""`aside` was written last, by another hand, and nothing was tuned on it."""


def faults_of(name: str) -> tuple[Fault, ...]:
    """The faults of a set; its framework is imported now."""
    return import_module(f"{__name__}.{name}").FAULTS
