"""The activations of any torch module, in one file that `conformance locate` compares with another."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn


def dump_activations(module: nn.Module, path: str | Path, *args: Any, **kwargs: Any) -> Any:
    """Call a module, and write its inputs and what every submodule returns to a safetensors file, in the order of completion.

    A name is the submodule's; `input` and `output` are those of the module itself. An element of a tuple or mapping has its
    index or key behind the name, and a submodule's second result is `name#2`. The order is in the file's metadata, as a JSON
    list under `order`: the format sorts tensors by dtype and name. Returns what the module returns. Nothing is written where
    it raises, and no hook stays in either case. Code that torch.compile has compiled already calls no hooks.
    """
    tensors: dict[str, Tensor] = {}
    calls = Counter[str]()

    def record(name: str, value: Any) -> None:
        calls[name] += 1
        name = name if calls[name] == 1 else f"{name}#{calls[name]}"
        # Copies: a later operation in place must not reach them, and a safetensors file shares no memory.
        tensors.update({key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in _leaves(name, value)})

    def hook(name: str) -> Any:
        return lambda module, args, value: record(name, value)

    record("input", dict(enumerate(args)) | kwargs)
    handles = [part.register_forward_hook(hook(name or "output")) for name, part in module.named_modules()]
    try:
        output = module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    _write_atomically(Path(path), save(tensors, metadata={"order": json.dumps(list(tensors))}))
    return output


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The dense tensors of a nest of tuples, lists and mappings, by name; a complex one as its real and imaginary parts."""
    match value:
        case Tensor() if value.layout == torch.strided:
            yield name, torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        case Mapping():
            for key, item in value.items():
                yield from _leaves(f"{name}.{key}", item)
        case tuple() | list():
            for key, item in zip(getattr(value, "_fields", range(len(value))), value, strict=True):
                yield from _leaves(f"{name}.{key}", item)
        case _:  # None, a number, a cache
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
