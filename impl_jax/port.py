"""The bridge to the kit: JAX arrays, jax.vjp, jax.jit."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from itertools import zip_longest
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import conformance.port
import impl_jax

MESHES = {"sharded_rows": {"rows": 4}, "sharded_features": {"features": 4}, "sharded_both": {"rows": 2, "features": 2}}
"""Of every layout of split arrays the axes of its mesh, and into how many parts they split what they are called after."""


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
        with suppress(RuntimeError):  # where JAX has computed before, its devices are those that it has
            jax.config.update("jax_num_cpu_devices", 4)
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

    def lay_out(self, tensor: Array, layout: str) -> Array:
        if layout not in MESHES:
            return super().lay_out(tensor, layout)
        devices, axes = jax.devices(self.device), MESHES[layout]
        if len(devices) < 4:
            raise conformance.port.Skip(f"no four devices to split an array over: {self.device} has {len(devices)}")
        mesh = Mesh(np.array(devices[:4]).reshape(tuple(axes.values())), tuple(axes))
        parts = split(tensor.shape, mesh)
        if any(name and size % axes[name] for name, size in zip(parts, tensor.shape, strict=True)):
            raise conformance.port.Skip("no uneven parts of an array")
        return jax.device_put(tensor, NamedSharding(mesh, parts))

    def to_numpy(self, tensor: Array) -> np.ndarray:
        return np.asarray(tensor)

    def evaluate(self, function: Any, inputs: tuple, constants: dict[str, Any]) -> Any:
        return self.program(_evaluate)(function, inputs, **constants)

    def vjp(self, function: Any, inputs: tuple, dy: Any, constants: dict[str, Any]) -> tuple[Any, tuple]:
        vjp = self.program(_vjp) if self.jit else _vjp
        return vjp(function, inputs, dy, **constants)

    def pullback(self, function: Any, inputs: tuple, dy: Any, constants: dict[str, Any]) -> tuple[Any, Callable[[], tuple]]:
        gradients = self.program(_gradients) if self.jit else _gradients
        return self.evaluate(function, inputs, constants), partial(gradients, function, inputs, dy, **constants)

    def finish(self, made: Any) -> None:
        jax.block_until_ready(made)

    def copies(self, n_bytes: int) -> tuple[Callable[[], Any], ...]:
        if self.device == "cpu":
            return super().copies(n_bytes)
        return (partial(jnp.copy, jax.device_put(np.ones(n_bytes // 2, np.uint8), self.place)),)

    def program(self, how: Any) -> Any:
        """A way to call an op, under `jax.jit`."""
        return _compiled(how, self.static)


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
        return self.program(_vjp_and_taps)(function, inputs, dy, **constants, taps=True)


class InShardMap(JaxPort):
    """A port's norms inside `jax.shard_map`, which checks what varies over the mesh; for arrays that are split, and no others.

    Autodiff goes through it, so that each device differentiates its own part. The norms take an `axis_name`.
    """

    def evaluate(self, function: Any, inputs: tuple, constants: dict[str, Any]) -> Any:
        return super().evaluate(_mapped(function, _mesh(inputs)), inputs, constants)

    def vjp(self, function: Any, inputs: tuple, dy: Any, constants: dict[str, Any]) -> tuple[Any, tuple]:
        return super().vjp(_mapped(function, _mesh(inputs)), inputs, dy, constants)


class ShardMap(InShardMap, Port):
    """impl_jax's norms inside `jax.shard_map`."""

    name = "impl_jax, shard_map"


def split(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How an array is split over a mesh: its features along the last axis, its rows, if it has any, along the first.

    What has one number for all features, such as the scale of a row, is whole there.
    """
    names: list[str | None] = [None] * len(shape)
    if "rows" in mesh.shape and len(shape) > 1:
        names[0] = "rows"
    if "features" in mesh.shape and shape and shape[-1] > 1:
        names[-1] = "features"
    return PartitionSpec(*names)


def _mesh(inputs: tuple) -> Mesh:
    """The mesh over which x is split."""
    mesh = getattr(inputs[0].sharding, "mesh", None)
    if not isinstance(mesh, Mesh):
        raise conformance.port.Skip("asked for split arrays alone")
    return mesh


@cache  # so that jax.jit knows it again
def _mapped(function: Any, mesh: Mesh) -> Any:
    """A norm of whole arrays, which each device computes of its part."""
    axis_name = "rows" if function.__name__ == "batch_norm" else "features"
    summed_over = axis_name if axis_name in mesh.shape else None

    def mapped(*inputs: Array | None, **constants: Any) -> Any:
        arrays = {name: each for name, each in constants.items() if isinstance(each, Array)}
        others = {name: each for name, each in constants.items() if name not in arrays}

        def of_part(inputs: tuple, arrays: dict[str, Array]) -> Any:
            return function(*inputs, **arrays, **others, axis_name=summed_over)

        parts, made = jax.tree.map(
            lambda each: split(each.shape, mesh),
            ((inputs, arrays), jax.eval_shape(partial(function, **others), *inputs, **arrays)),
        )
        return jax.shard_map(of_part, mesh=mesh, in_specs=parts, out_specs=made)(inputs, arrays)

    return mapped


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
    return made, pullback(cotangents(made, dy))


def _gradients(function: Any, inputs: tuple, dy: Any, **constants: Any) -> tuple:
    """The gradients alone: y is not stored, and what the forward pass would have kept is computed again."""
    return _vjp(function, inputs, dy, **constants)[1]


def cotangents(made: Any, dy: Any) -> Any:
    """One for each output: an output without a cotangent passes zeros back."""
    if not isinstance(made, tuple):
        return dy
    pairs = zip_longest(made, dy if isinstance(dy, tuple) else (dy,))
    return tuple(jnp.zeros_like(y) if each is None else each for y, each in pairs)
