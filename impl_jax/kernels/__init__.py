"""The norms of rows as Pallas kernels, for TPUs and GPUs, and interpreted where neither is.

This module is what the functions ask; it imports Pallas only when a kernel is to run.
"""

from typing import Any

from jax import Array


def in_pallas(kernel: str | None, axis_name: Any = None) -> bool:
    """Whether a norm is to run as a Pallas kernel: where `kernel` is "pallas".

    It is "pallas", "xla", or None: then by XLA, since no measurement says yet where a kernel is faster than what XLA fuses.
    Raises `ValueError` for another, and for Pallas's beside an `axis_name`, over which its kernels do not sum.
    """
    if kernel not in ("pallas", "xla", None):
        raise ValueError(f"kernel is {kernel!r}; it must be 'pallas', 'xla' or None")
    if kernel == "pallas" and axis_name is not None:
        raise ValueError(f"kernel is 'pallas'; with an axis_name, {axis_name!r}, it must be 'xla' or None")
    return kernel == "pallas"


def pallas_norm(x: Array, *others: Array | None, **settings: Any) -> tuple[Array, Any]:
    """`impl_jax.kernels.norms.norm`."""
    from impl_jax.kernels.norms import norm

    return norm(x, *others, **settings)
