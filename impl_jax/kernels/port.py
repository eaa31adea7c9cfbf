"""The bridge to the kit for Pallas kernels: a base for any, and impl_jax's own."""

from functools import partial
from typing import Any

from jax.experimental.pallas import tpu

import impl_jax
from impl_jax.port import JaxPort


class PallasPort(JaxPort):
    """JAX arrays and jax.vjp around Pallas kernels: on an accelerator, or interpreted on a CPU.

    There a kernel is interpreted whether or not its call says so: it is judged as it ships.
    """

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        if device == "cpu":
            interpreted: Any = True  # a grid in XLA, as `interpret=True` has it
            tpu.set_tpu_interpret_mode(interpreted)


class Port(PallasPort):
    """impl_jax's kernels."""

    name = "impl_jax.kernels"
    rms_norm = staticmethod(partial(impl_jax.rms_norm, kernel="pallas"))
    layer_norm = staticmethod(partial(impl_jax.layer_norm, kernel="pallas"))
    add_rms_norm = staticmethod(partial(impl_jax.add_rms_norm, kernel="pallas"))
    add_layer_norm = staticmethod(partial(impl_jax.add_layer_norm, kernel="pallas"))
