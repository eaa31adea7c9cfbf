"""What the ports of other people's JAX layers share."""

from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType

import jax.numpy as jnp
from jax import Array

import impl_jax.port

BIASED = {"batch_norm/training/*": "the variance that runs is the biased one"}
UNSEEN = "a query that sees no key gets the mean of all values: masked scores are merely low"


class Port(impl_jax.port.JaxPort):
    """JAX arrays, jax.vjp and jax.jit around a library's own layers, which scale in float32 and cast once.

    A subclass has the ops, and names its `packages`. `expected_in_jit` comes before `expected` where XLA compiles. Cases that
    fail on some inputs and pass on others are skipped: neither can be promised of them.
    """

    orders = ("scale_then_cast",)
    weight_offsets = (0,)
    # Layers take eps, and what rope is given, in their constructors.
    static = (*impl_jax.port.JaxPort.static, "eps", "momentum", "position", "base", "interleaved", "causal", "approximate")
    packages: tuple[str, ...] = ()
    expected_in_jit: Mapping[str, str] = MappingProxyType({})

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        if jit:
            self.expected = {**self.expected_in_jit, **self.expected}

    def versions(self) -> dict[str, str]:
        """Those of jax and of the packages."""
        return {package: version(package) for package in ("jax", *self.packages)}


def visible(s: int, t: int, key_mask: Array | None, causal: bool) -> Array:
    """Which of t keys each of s queries sees, `[batch or 1, 1, s, t]`: the last query is at the last key."""
    seen = jnp.ones((1, 1, s, t), bool)
    seen = jnp.tril(seen, t - s) if causal else seen
    return seen if key_mask is None else seen & (key_mask != 0)[:, None, None, :]
