"""The bridge to the kit for Triton kernels: a base for any, and impl_torch's own."""

from functools import partial

import triton

import impl_torch
from impl_torch.kernels import configs
from impl_torch.kernels.interpreter import check_device, mend
from impl_torch.port import TorchPort


class TritonPort(TorchPort):
    """PyTorch tensors and autograd around Triton kernels: on a GPU, or interpreted with TRITON_INTERPRET=1.

    The interpreter is mended. Functions are called as they are, and not compiled around the kernels.
    """

    compiles = False

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        check_device(device)
        mend()
        if self.config is not None:
            configs.pin(self.config)
        super().__init__(device, jit=jit and self.compiles)

    @classmethod
    def configs(cls) -> tuple[str, ...]:
        return configs.described()

    def versions(self) -> dict[str, str]:
        return super().versions() | {"triton": triton.__version__}


class Port(TritonPort):
    """impl_torch's kernels."""

    name = "impl_torch.kernels"
    compiles = True
    rms_norm = staticmethod(partial(impl_torch.rms_norm, kernel="triton"))
    layer_norm = staticmethod(partial(impl_torch.layer_norm, kernel="triton"))
    add_rms_norm = staticmethod(partial(impl_torch.add_rms_norm, kernel="triton"))
    add_layer_norm = staticmethod(partial(impl_torch.add_layer_norm, kernel="triton"))
    gated_rms_norm = staticmethod(partial(impl_torch.gated_rms_norm, kernel="triton"))
    quantised_rms_norm = staticmethod(partial(impl_torch.quantised_rms_norm, kernel="triton"))
    quantised_add_rms_norm = staticmethod(partial(impl_torch.quantised_add_rms_norm, kernel="triton"))
