"""What the ports of other people's JAX layers share."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib.metadata import version
from types import MappingProxyType

import numpy as np

import impl_jax.port
from conformance.port import Skip
from conformance.protocol import Call


class Port(impl_jax.port.Port):
    """JAX arrays, jax.vjp and jax.jit around a library's own layers, which scale in float32 and cast once.

    A subclass has the ops, and names its `packages`. `expected_in_jit` adds to `expected` where XLA compiles; `by_chance`
    maps globs of case ids that fail on some inputs and pass on others to the reason: neither can be promised of such a
    case, so it is skipped.
    """

    orders = ("scale_then_cast",)
    weight_offsets = (0,)
    packages: tuple[str, ...] = ()
    expected_in_jit: Mapping[str, str] = MappingProxyType({})
    by_chance: Mapping[str, str] = MappingProxyType({})

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        if jit:
            self.expected = {**self.expected, **self.expected_in_jit}

    def versions(self) -> dict[str, str]:
        """Those of jax and of the packages."""
        return {package: version(package) for package in ("jax", *self.packages)}

    def run(self, call: Call, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer one case, unless it is a matter of chance."""
        for glob, reason in self.by_chance.items():
            if fnmatchcase(call.case, glob):
                raise Skip(f"by chance: {reason}")
        return super().run(call, tensors)
