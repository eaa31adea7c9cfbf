"""What the ports of other people's JAX layers share."""

from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType

import impl_jax.port


class Port(impl_jax.port.JaxPort):
    """JAX arrays, jax.vjp and jax.jit around a library's own layers, which scale in float32 and cast once.

    A subclass has the ops, and names its `packages`. `expected_in_jit` adds to `expected` where XLA compiles. Cases that
    fail on some inputs and pass on others are skipped: neither can be promised of them.
    """

    orders = ("scale_then_cast",)
    weight_offsets = (0,)
    static = ("order", "eps")  # layers take eps in their constructor
    packages: tuple[str, ...] = ()
    expected_in_jit: Mapping[str, str] = MappingProxyType({})

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        if jit:
            self.expected = {**self.expected, **self.expected_in_jit}

    def versions(self) -> dict[str, str]:
        """Those of jax and of the packages."""
        return {package: version(package) for package in ("jax", *self.packages)}
