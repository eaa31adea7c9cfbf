"""What the ports of CUDA kernels share: where the library or a GPU is missing, every case is skipped, and the reason told."""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from torch import Tensor

from conformance.port import Call, Skip
from conformance.port.protocol import Answer
from impl_torch.port import TorchPort


class Port(TorchPort):
    """PyTorch tensors around a library's kernels for NVIDIA GPUs: its `module`, which is in a `package`, is `self.library`."""

    dtypes = ("float32", "bfloat16", "float16")
    compiles = False
    module = ""
    package = ""

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=False)
        self.missing = self.what_is_missing()
        self.library: Any = None if self.missing else import_module(self.module)

    def what_is_missing(self) -> str:
        """Why it cannot run here; empty where it can."""
        if find_spec(self.module.partition(".")[0]) is None:
            return f"not installed: pip install {self.package}"
        return self.what_is_missing_besides()

    def what_is_missing_besides(self) -> str:
        """The same of a library that is installed."""
        return "" if self.device.startswith("cuda") else f"{self.package} runs on a GPU alone: --device cuda"

    def versions(self) -> dict[str, str]:
        return super().versions() | ({} if self.missing else {self.package: version(self.package)})

    def answer(self, call: Call, tensors: dict[str, np.ndarray]) -> Answer:
        if self.missing:
            raise Skip(self.missing)
        return super().answer(call, tensors)


def rows_of(x: Tensor) -> Tensor:
    """[*batch, d] as [rows, d], without gaps."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def weight_like(x: Tensor, weight: Tensor | None) -> Tensor:
    """The weight, of a kernel that takes one in x's dtype alone."""
    if weight is None:
        raise Skip("always has a weight")
    if weight.dtype != x.dtype:
        raise Skip("takes a weight of x's dtype alone")
    return weight.contiguous()


def norm_of_sum(kernel: Callable[..., Any], x: Tensor, residual: Tensor, weight: Tensor | None, eps: float) -> Any:
    """y and the sum, of a kernel that writes y over x and the sum over the residual: it is given copies."""
    y, total = rows_of(x).clone(), rows_of(residual).clone()
    kernel(y, total, weight_like(x, weight), eps)
    return y.reshape(x.shape), total.reshape(x.shape)
