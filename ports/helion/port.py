"""Helion's example of RMSNorm as it ships: on a GPU, or with HELION_INTERPRET=1 in PyTorch's operations on a CPU.

The examples are in Helion's repository, and not in its package: HELION_EXAMPLES is the folder of that name in a checkout.
"""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from torch import Tensor

import ports.cuda_library
from ports.cuda_library import rows_of, weight_like

FOLDER, INTERPRETED = "HELION_EXAMPLES", "HELION_INTERPRET"


class Port(ports.cuda_library.Port):
    """`rms_norm` of examples/rms_norm.py, with the backward pass that it has."""

    name = "helion"
    module, package = "helion", "helion"
    orders = ("scale_then_cast",)
    weight_offsets = (0,)
    may_fail = {"rms_norm/*/rows_0": "a batch without rows is divided into no blocks: ZeroDivisionError"}  # noqa: RUF012

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        self.library = None if self.missing else _example("rms_norm")

    def what_is_missing_besides(self) -> str:
        if os.environ.get(INTERPRETED) != "1" and (missing := super().what_is_missing_besides()):
            return f"{missing}, or {INTERPRETED}=1"
        if not _file("rms_norm").is_file():
            return f"{FOLDER} must name the folder `examples` of a checkout of Helion, with rms_norm.py in it"
        return ""

    def rms_norm(self, x: Tensor, weight: Tensor | None, *, eps: float) -> Any:
        return self.library.rms_norm(rows_of(x), weight_like(x, weight), eps).reshape(x.shape)


def _file(name: str) -> Path:
    return Path(os.environ.get(FOLDER, "."), f"{name}.py")


def _example(name: str) -> Any:
    """An example as a module, which Helion finds again by its name to read its source."""
    spec = spec_from_file_location(f"helion_example_{name}", _file(name))
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
