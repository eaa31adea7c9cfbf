"""The activations of any flax module, nnx or linen, in one file that `conformance locate` compares with another."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array
from jax.core import Tracer
from safetensors.flax import save

Record = Callable[[str, Any], None]


def dump_activations(module: nnx.Module | linen.Module, path: str | Path, *args: Any, **kwargs: Any) -> Any:
    """Call a module, and write its inputs and what every submodule returns to a safetensors file, in the order of completion.

    `module(*args, **kwargs)`, or of an unbound linen module `module.apply(variables, *args, **kwargs)`, the variables first.
    A name is the submodule's path; `input` and `output` are those of the module itself. An element of a tuple or mapping has
    its index or key behind the name, and a submodule's second result is `name#2`. The order is in the file's metadata, as a
    JSON list under `order`: the format sorts tensors by dtype and name. Returns what the module returns.

    Raises `TypeError` where a submodule is traced, as under `jax.jit`, `nn.scan` and `nn.remat`: what is traced has no values.
    `jax.disable_jit()` helps against the first two. Nothing is written where anything is raised.
    """
    arrays: dict[str, Array] = {}
    calls = Counter[str]()

    def record(name: str, value: Any) -> None:
        name = name or "output"
        calls[name] += 1
        name = name if calls[name] == 1 else f"{name}#{calls[name]}"
        arrays.update(_leaves(name, value))

    call: Any = module
    inputs, recording = args, _linen_calls(record) if isinstance(module, linen.Module) else _nnx_calls(module, record)
    if isinstance(module, linen.Module) and module.scope is None:
        call, inputs = module.apply, args[1:]
    record("input", dict(enumerate(inputs)) | kwargs)
    with recording:
        output = call(*args, **kwargs)
    _write_atomically(Path(path), save(arrays, metadata={"order": json.dumps(list(arrays))}))
    return output


@contextmanager
def _linen_calls(record: Record) -> Generator[None]:
    def interceptor(call: Callable, args: tuple, kwargs: dict, context: linen.module.InterceptorContext) -> Any:
        value = call(*args, **kwargs)
        if context.method_name == "__call__":
            record(".".join(context.module.path), value)
        return value

    with linen.intercept_methods(interceptor):
        yield


@contextmanager
def _nnx_calls(module: nnx.Module, record: Record) -> Generator[None]:
    """Python looks `__call__` up in the class, so it is the classes that are wrapped, as `nnx.capture` does it."""
    names = {id(part): ".".join(map(str, path)) for path, part in nnx.iter_modules(module)}
    classes = {type(part) for _, part in nnx.iter_modules(module) if callable(part)}
    own = {cls: vars(cls).get("__call__") for cls in classes}

    def wrapped(cls: type, call: Callable) -> Callable:
        def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
            value = call(self, *args, **kwargs)
            if type(self) is cls and id(self) in names:  # not where a subclass calls its parent's
                record(names[id(self)], value)
            return value

        return recording

    calls = {cls: cls.__call__ for cls in classes}
    try:
        for cls, call in calls.items():
            cls.__call__ = wrapped(cls, call)
        yield
    finally:
        for cls, call in own.items():
            if call is not None:
                cls.__call__ = call
            elif "__call__" in vars(cls):
                del cls.__call__


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Array]]:
    """The arrays of a nest of tuples, lists and mappings, by name; a complex one as its real and imaginary parts."""
    match value:
        case Tracer():
            raise TypeError(f"{name} is traced and has no values; call dump_activations outside of jax.jit")
        case _ if hasattr(value, "__array__") and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
            array = jnp.asarray(value)
            yield name, jnp.stack([array.real, array.imag], axis=-1) if jnp.iscomplexobj(array) else array
        case Mapping():
            for key, item in value.items():
                yield from _leaves(f"{name}.{key}", item)
        case tuple() | list():
            for key, item in zip(getattr(value, "_fields", range(len(value))), value, strict=True):
                yield from _leaves(f"{name}.{key}", item)
        case _:  # None, a number, a random key, a cache
            pass


def _write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, then rename over it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
