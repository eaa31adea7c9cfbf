"""tokamax's norms as they ship: Pallas kernels for Triton, on a GPU or interpreted."""

# It is not among the packages that a check installs (README.md).
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from importlib.metadata import version
from typing import Any

from jax import Array
from tokamax._src.ops.normalization.pallas_triton import Config, PallasTritonNormalization
from tokamax._src.ops.normalization.pallas_triton_vjp import PallasTritonNormalizationVjp

from impl_jax.kernels.port import PallasPort


class Forward(PallasTritonNormalization):
    """It asks the device whether it is a GPU, and how many multiprocessors it has; on a CPU neither has an answer."""

    def supported_on(self, device: Any) -> bool:
        return True


class Backward(PallasTritonNormalizationVjp):
    """Likewise."""

    def supported_on(self, device: Any) -> bool:
        return True


BLOCKS = Config(block_m=4, block_n=None, num_warps=4)  # rows of a program: one of those that are tuned
NORMALISE = Forward(config=BLOCKS, vjp=Backward(config=BLOCKS))


class Port(PallasPort):
    """The kernels, and not what XLA makes of the same function where they are not supported."""

    name = "tokamax"
    dtypes = ("float32", "bfloat16", "float16")
    orders = ("scale_then_cast",)
    skips = {"*/rows_0": "Pallas's interpreter takes no array without rows"}  # noqa: RUF012
    static = (*PallasPort.static, "eps", "weight_offset")

    def versions(self) -> dict[str, str]:
        return super().versions() | {"tokamax": version("tokamax")}

    @staticmethod
    def rms_norm(x: Array, weight: Array | None, *, eps: float, weight_offset: float = 0.0) -> Any:
        how: dict[str, Any] = {"axis": -1, "epsilon": eps, "scale_offset": weight_offset, "subtract_mean": False}
        return NORMALISE(x, weight, None, **how)

    @staticmethod
    def layer_norm(x: Array, weight: Array | None, bias: Array | None, *, eps: float, weight_offset: float = 0.0) -> Any:
        how: dict[str, Any] = {"axis": -1, "epsilon": eps, "scale_offset": weight_offset, "subtract_mean": True}
        return NORMALISE(x, weight, bias, **how)
