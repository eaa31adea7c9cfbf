"""A residual and a norm in one op for JAX, as every Pre-LN block runs it between layers."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from impl_jax.kernels import in_pallas, pallas_norm
from impl_jax.layer_norm import LayerNorm, layer_norm
from impl_jax.mesh import AxisName
from impl_jax.rms_norm import RMSNorm, rms_norm
from impl_jax.rows import check_rows, compute_dtype, round_to


def add_rms_norm(
    x: Float[Array, "*batch d"],
    residual: Float[Array, "*batch d"],
    weight: Float[Array, " d"] | None = None,
    *,
    eps: float = 1e-5,
    order: str = "cast_then_scale",
    weight_offset: float = 0.0,
    sum: str = "rounded",
    kernel: str | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch d"]]:
    r"""Add the residual to x; return RMSNorm of the sum, and the sum.

    $$ s = x + \mathrm{residual}, \qquad y = \mathrm{rms\_norm}(s), \qquad
       dx = d\mathrm{residual} = ds + d\mathrm{residual\_out} $$

    Implementations differ in what the norm reads in half precision. With `sum="rounded"` it is the sum that is returned,
    rounded to x's dtype (Hugging Face's blocks, vLLM); with `"unrounded"` the float32 sum, which is rounded only where it is
    returned (FlashInfer); with `"float32"` the residual and the sum that is returned are float32 (Mamba). In
    float32 and float64 the three are one. y has the dtype that `rms_norm` of x has. `kernel` and `axis_name` are as in
    `rms_norm`.

    Raises `ValueError` for another sum and for a residual of another shape than x's, `TypeError` for a residual of another
    dtype, and as `rms_norm` does.
    """
    settings: Any = {"eps": eps, "order": order, "weight_offset": weight_offset, "dtype": x.dtype}
    if in_pallas(kernel, axis_name):
        check_residual(x, residual, sum)
        return pallas_norm(x, residual, weight, None, **settings, centred=False, sum=sum)
    s, residual_out = added(x, residual, sum)
    y = rms_norm(s, weight, **settings, axis_name=axis_name)
    return y, residual_out


def add_layer_norm(
    x: Float[Array, "*batch d"],
    residual: Float[Array, "*batch d"],
    weight: Float[Array, " d"] | None = None,
    bias: Float[Array, " d"] | None = None,
    *,
    eps: float = 1e-5,
    order: str = "scale_then_cast",
    weight_offset: float = 0.0,
    sum: str = "rounded",
    kernel: str | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch d"]]:
    r"""Add the residual to x; return LayerNorm of the sum, and the sum. All is as in `add_rms_norm`.

    $$ s = x + \mathrm{residual}, \qquad y = \mathrm{layer\_norm}(s), \qquad
       dx = d\mathrm{residual} = ds + d\mathrm{residual\_out} $$
    """
    settings: Any = {"eps": eps, "order": order, "weight_offset": weight_offset, "dtype": x.dtype}
    if in_pallas(kernel, axis_name):
        check_residual(x, residual, sum)
        return pallas_norm(x, residual, weight, bias, **settings, centred=True, sum=sum)
    s, residual_out = added(x, residual, sum)
    y = layer_norm(s, weight, bias, **settings, axis_name=axis_name)
    return y, residual_out


class AddRMSNorm(RMSNorm):
    """`add_rms_norm` over the last axis, of `num_features`, with a learned `weight`.

    It takes what `RMSNorm` takes, and `sum`.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        param_dtype: DTypeLike = jnp.float32,
        order: str = "cast_then_scale",
        weight_offset: float = 0.0,
        sum: str = "rounded",
        rngs: nnx.Rngs | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, param_dtype=param_dtype, order=order, weight_offset=weight_offset)
        _check_sum(sum)
        self.sum = sum

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - it takes a residual too
        self, x: Float[Array, "*batch d"], residual: Float[Array, "*batch d"]
    ) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch d"]]:
        s, residual_out = added(x, residual, self.sum)
        return super().__call__(s, dtype=x.dtype), residual_out


class AddLayerNorm(LayerNorm):
    """`add_layer_norm` over the last axis, of `num_features`, with learned `weight` and `bias`.

    It takes what `LayerNorm` takes, and `sum`.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        use_bias: bool = True,
        param_dtype: DTypeLike = jnp.float32,
        order: str = "scale_then_cast",
        weight_offset: float = 0.0,
        sum: str = "rounded",
        rngs: nnx.Rngs | None = None,
    ) -> None:
        super().__init__(
            num_features, eps=eps, use_bias=use_bias, param_dtype=param_dtype, order=order, weight_offset=weight_offset
        )
        _check_sum(sum)
        self.sum = sum

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - it takes a residual too
        self, x: Float[Array, "*batch d"], residual: Float[Array, "*batch d"]
    ) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch d"]]:
        s, residual_out = added(x, residual, self.sum)
        return super().__call__(s, dtype=x.dtype), residual_out


def added(x: Array, residual: Array, sum: str) -> tuple[Array, Array]:
    """The sum that the norm reads, and the one that is returned, both [*batch, d]; with "rounded" they are the same."""
    check_residual(x, residual, sum)
    compute = compute_dtype(x)
    s = x.astype(compute) + residual.astype(compute)  # *batch d
    residual_out = round_to(s, residual.dtype)  # *batch d
    return residual_out if sum == "rounded" else s, residual_out


def _check_sum(sum: str) -> None:
    """Raise `ValueError` unless the sum is one of the three."""
    if sum not in ("rounded", "unrounded", "float32"):
        raise ValueError(f"sum is {sum!r}; it must be 'rounded', 'unrounded' or 'float32'")


def check_residual(x: Array, residual: Array, sum: str) -> None:
    """Raise unless the residual has x's shape (`ValueError`) and the dtype that the sum asks for (`TypeError`)."""
    _check_sum(sum)
    check_rows(x)
    if residual.shape != x.shape:
        shape = list(x.shape)
        raise ValueError(f"residual has shape {list(residual.shape)}; with x of shape {shape} it must be {shape}")
    dtype = compute_dtype(x) if sum == "float32" else x.dtype
    if residual.dtype != dtype:
        raise TypeError(f"residual is {residual.dtype}; with x of {x.dtype} and sum={sum!r} it must be {dtype}")
