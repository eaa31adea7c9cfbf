"""NumPy, whose gradients are written by hand: every op returns y and the function that pulls dy back."""

from typing import Any

import numpy as np

import conformance.port
from ports.numpy import attention as attending
from ports.numpy import block, feed_forward, gated_norm, quantised, rows

Array = np.ndarray


class Port(conformance.port.Port):
    """In the compute dtype, float32 but for float64; half precision is ml_dtypes'. Both modes are the same."""

    name = "numpy"
    taps = True
    features = conformance.port.FEATURES
    rms_norm = staticmethod(rows.rms_norm)
    layer_norm = staticmethod(rows.layer_norm)
    add_rms_norm = staticmethod(rows.add_rms_norm)
    add_layer_norm = staticmethod(rows.add_layer_norm)
    gated_rms_norm = staticmethod(gated_norm.gated_rms_norm)
    quantised_rms_norm = staticmethod(quantised.quantised_rms_norm)
    quantised_add_rms_norm = staticmethod(quantised.quantised_add_rms_norm)
    batch_norm = staticmethod(rows.batch_norm)
    rope = staticmethod(attending.rope)
    attention = staticmethod(block.attention)
    swiglu = staticmethod(feed_forward.swiglu)
    gelu = staticmethod(feed_forward.gelu)
    pre_ln_block = staticmethod(block.pre_ln_block)
    pre_ln_stack = staticmethod(block.pre_ln_stack)

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        if device != "cpu":
            raise ValueError(f"no device {device}: NumPy's arrays are in the memory of the CPU")
        np.seterr(all="ignore")  # a NaN that is given is a NaN that is asked for

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def evaluate(self, function: Any, inputs: tuple, constants: dict[str, Any]) -> Array:
        y, _ = function(*inputs, **constants)
        return y

    def vjp(self, function: Any, inputs: tuple, dy: Array, constants: dict[str, Any]) -> tuple[Array, tuple]:
        y, backward = function(*inputs, **constants)
        return y, backward(dy)

    def tap(self, function: Any, inputs: tuple, constants: dict[str, Any]) -> dict[str, Array]:
        taps: dict[str, Array] = {}
        function(*inputs, **constants, taps=taps)
        return taps
