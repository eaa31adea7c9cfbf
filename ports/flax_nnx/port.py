"""flax.nnx's RMSNorm and LayerNorm: as they ship, and with the settings that conform."""

from typing import Any

from flax import nnx
from jax import Array

import impl_jax.port
import ports.flax_linen.port
import ports.jax_library
from ports.jax_library import BIASED


class Careful(ports.jax_library.Port):
    """`use_fast_variance=False`, and no `dtype`: y, which float32 parameters promote, is cast to x's dtype outside."""

    name = "flax_nnx, careful"
    packages = ("flax",)
    use_fast_variance = False
    skips = BIASED
    dtype_is_given = False

    def rms_norm(
        self,
        x: Array,
        weight: Array | None,
        *,
        eps: float,
        order: str = "scale_then_cast",
        axis_name: Any = None,
    ) -> Array:
        norm = nnx.RMSNorm(
            x.shape[-1],
            epsilon=eps,
            dtype=x.dtype if self.dtype_is_given else None,
            use_scale=weight is not None,
            axis_name=axis_name,
            rngs=nnx.Rngs(0),
        )
        return _with(norm, scale=weight)(x).astype(x.dtype)

    def layer_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        *,
        eps: float,
        order: str = "scale_then_cast",
        axis_name: Any = None,
    ) -> Array:
        norm = nnx.LayerNorm(
            x.shape[-1],
            epsilon=eps,
            dtype=x.dtype if self.dtype_is_given else None,
            use_scale=weight is not None,
            use_bias=bias is not None,
            use_fast_variance=self.use_fast_variance,
            axis_name=axis_name,
            rngs=nnx.Rngs(0),
        )
        return _with(norm, scale=weight, bias=bias)(x).astype(x.dtype)

    def batch_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        *,
        running_mean: Array,
        running_var: Array,
        eps: float,
        training: bool,
        momentum: float = 0.1,
        axis_name: Any = None,
        **_: Any,
    ) -> Any:
        norm = nnx.BatchNorm(
            x.shape[-1],
            use_running_average=not training,
            momentum=1 - momentum,
            epsilon=eps,
            dtype=x.dtype if self.dtype_is_given else None,
            use_scale=weight is not None,
            use_bias=bias is not None,
            use_fast_variance=self.use_fast_variance,
            axis_name=axis_name,
            rngs=nnx.Rngs(0),
        )
        norm.mean, norm.var = nnx.BatchStat(running_mean), nnx.BatchStat(running_var)
        y = _with(norm, scale=weight, bias=bias)(x).astype(x.dtype)
        return (y, norm.mean[...], norm.var[...]) if training else y


class ShardMap(impl_jax.port.InShardMap, Careful):
    """The careful ones inside `jax.shard_map`, with the `axis_name` over which features, or a batch's rows, are split."""

    name = "flax_nnx, shard_map"


class Port(Careful):
    """As they ship, and `dtype=x.dtype`; LayerNorm's variance is that of flax.linen, in one pass."""

    name = "flax_nnx"
    use_fast_variance = True
    dtype_is_given = True
    expected = {  # noqa: RUF012
        **ports.flax_linen.port.Port.expected,
        "batch_norm/*float16/*": "`dtype` rounds parameters and running statistics first: ratios of 1e3 to 1e4",
        "*_float32_weight/*": "`dtype` rounds the parameters to half precision first: ratios of 1e2 to 1e4",
    }
    expected_in_jit = ports.flax_linen.port.Port.expected_in_jit
    skips = ports.flax_linen.port.Port.skips


def _with(norm: nnx.Module, **parameters: Array | None) -> nnx.Module:
    """The module with the parameters that are given in place of its own."""
    for name, parameter in parameters.items():
        if parameter is not None:
            setattr(norm, name, nnx.Param(parameter))
    return norm
