"""The bridge to the kit: JAX arrays, jax.vjp, jax.jit."""

import os
from functools import cache, partial
from itertools import zip_longest
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import conformance.port
import impl_jax


class JaxPort(conformance.port.Port):
    """JAX arrays, jax.vjp, and jax.jit or op by op; x64 is enabled, for without it JAX turns float64 into float32."""

    compiles = True
    # The constants that are compiled in; eps is not, so that cases share programs.
    static: tuple[str, ...] = (
        *("order", "sum", "training", "unbiased", "norm_before_gate", "activation", "group_size"),
        *("y", "quantised_dtype", "scaling", "scale_ub"),
    )

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_disable_jit", not jit)
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # an accelerator is shared with other ports
        self.place = jax.devices(device)[0]  # a device that is not there is said so at once
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            jax.config.update("jax_compilation_cache_dir", str(conformance.port.cache_folder("jax")))
        # Programs this small are below the thresholds at which JAX keeps what it compiled.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    def versions(self) -> dict[str, str]:
        return {"jax": jax.__version__, "flax": flax.__version__}

    def to_tensor(self, array: np.ndarray) -> Array:
        return jax.device_put(array, self.place)

    def to_numpy(self, tensor: Array) -> np.ndarray:
        return np.asarray(tensor)

    def evaluate(self, function: Any, inputs: tuple, constants: dict[str, Any]) -> Any:
        return _compiled(_evaluate, self.static)(function, inputs, **constants)

    def vjp(self, function: Any, inputs: tuple, dy: Any, constants: dict[str, Any]) -> tuple[Any, tuple]:
        vjp = _compiled(_vjp, self.static) if self.jit else _vjp
        return vjp(function, inputs, dy, **constants)


class Port(JaxPort):
    """impl_jax's functions."""

    name = "impl_jax"
    taps = True
    features = conformance.port.FEATURES
    static = (
        *(*JaxPort.static, "base", "interleaved", "rotary_features", "causal", "window", "softcap", "attention_scale"),
        *("approximate", "config", "n_layers", "taps"),
    )
    rms_norm = staticmethod(impl_jax.rms_norm)
    layer_norm = staticmethod(impl_jax.layer_norm)
    add_rms_norm = staticmethod(impl_jax.add_rms_norm)
    add_layer_norm = staticmethod(impl_jax.add_layer_norm)
    gated_rms_norm = staticmethod(impl_jax.gated_rms_norm)
    quantised_rms_norm = staticmethod(impl_jax.quantised_rms_norm)
    quantised_add_rms_norm = staticmethod(impl_jax.quantised_add_rms_norm)
    batch_norm = staticmethod(impl_jax.batch_norm)
    rope = staticmethod(impl_jax.rope)
    attention = staticmethod(impl_jax.attention)
    swiglu = staticmethod(impl_jax.swiglu)
    gelu = staticmethod(impl_jax.gelu)
    pre_ln_block = staticmethod(impl_jax.pre_ln_block)
    pre_ln_stack = staticmethod(impl_jax.pre_ln_stack)

    def vjp_and_taps(self, function: Any, inputs: tuple, dy: Array, constants: dict[str, Any]) -> tuple[Array, tuple, dict]:
        return _compiled(_vjp_and_taps, self.static)(function, inputs, dy, **constants, taps=True)


@cache
def _compiled(how: Any, static: tuple[str, ...]) -> Any:
    return jax.jit(how, static_argnames=("function", *static))


def _vjp_and_taps(function: Any, inputs: tuple, dy: Array, **constants: Any) -> tuple[Array, tuple, dict[str, Array]]:
    y, pullback, taps = jax.vjp(partial(function, **constants), *inputs, has_aux=True)
    return y, pullback(dy), taps


def _evaluate(function: Any, inputs: tuple, **constants: Any) -> Any:
    return function(*inputs, **constants)


def _vjp(function: Any, inputs: tuple, dy: Any, **constants: Any) -> tuple[Any, tuple]:
    made, pullback = jax.vjp(partial(function, **constants), *inputs)
    if not isinstance(made, tuple):
        return made, pullback(dy)
    cotangents = dy if isinstance(dy, tuple) else (dy,)
    pairs = zip_longest(made, cotangents)  # an output without a cotangent passes zeros back
    return made, pullback(tuple(jnp.zeros_like(y) if each is None else each for y, each in pairs))
