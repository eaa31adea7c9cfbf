"""RMSNorm whose output is quantised, with or without a residual that is added first, for JAX. Forward only."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Float

from impl_jax.add_norm import added
from impl_jax.mesh import AxisName
from impl_jax.rms_norm import RMSNorm, rms_norm
from impl_jax.rows import compute_dtype, output_dtype, round_to

GROUPS = {"per_group_128": 128, "mx": 32}
LEAST_EXPONENT = -126  # of an MX scale that is a normal number of float32
BIAS, DIGITS = 127, 23  # of float32's exponent, and the bits below it


class Format(NamedTuple):
    """A dtype to quantise to: its largest number that is used, and the least dynamic scale."""

    dtype: jnp.dtype
    qmax: float
    floor: float

    @property
    def emax(self) -> int:
        """The exponent of qmax."""
        return {448.0: 8, 57344.0: 15}[self.qmax]


FORMATS = {
    "float8_e4m3fn": Format(jnp.dtype(jnp.float8_e4m3fn), 448.0, 1 / (512 * 448)),
    "float8_e5m2": Format(jnp.dtype(jnp.float8_e5m2), 57344.0, 1 / (512 * 57344)),
    "int8": Format(jnp.dtype(jnp.int8), 127.0, 2.0**-23),
}


def quantised_rms_norm(
    x: Float[Array, "*batch d"],
    weight: Float[Array, " d"] | None = None,
    scale: Float[Array, " 1"] | None = None,
    *,
    eps: float = 1e-5,
    quantised_dtype: str = "float8_e4m3fn",
    scaling: str = "per_row",
    scale_ub: float | None = None,
    order: str = "cast_then_scale",
    weight_offset: float = 0.0,
    y: str = "rounded",
    axis_name: AxisName | None = None,
) -> tuple[Array, Array] | Array:
    r"""RMSNorm, then quantise every row: q and its scale, whose product is y but for the rounding.

    $$ q = \mathrm{round}(\min(\max(y / \mathrm{scale}, -q_{max}), q_{max})), \qquad
       \mathrm{scale} = \max(\min(\max_j |y_j|, \mathrm{scale\_ub}) / q_{max}, \mathrm{floor}) $$

    x is [*batch, d], weight [d] or None; q is [*batch, d] in the quantised dtype: float8_e4m3fn, float8_e5m2 or int8. With
    `scaling="static"` the scale is given, float32 of shape [1], and q returned alone (vLLM's rms_norm_static_fp8_quant,
    FlashInfer's rmsnorm_quant). Else it is found, float32 of shape [*batch, groups]: `"per_row"` one for every row (vLLM's
    rms_norm_dynamic_per_token_quant), `"per_group_128"` one for every 128 features (its rms_norm_per_block_quant), `"mx"` a
    power of two for every 32, 2^(floor(log2 max) − emax), as OCP Microscaling Formats 1.0 has it.
    With `y="rounded"` y is rounded to x's dtype first, as it would be stored (vLLM); with `"unrounded"` it is not (FlashInfer).
    q has no gradient. `axis_name` is as in `rms_norm`; the largest number of a row is then that of all its
    parts, and a group is of one part.

    Raises `ValueError`, which names the argument, for a `quantised_dtype`, `scaling` or `y` that is not known, for int8 with
    mx, for a d that groups do not divide, for a scale that is missing, given though it is found, or not one positive, finite
    float32 number (looked at where it is not traced), for a `scale_ub` that is not positive, and as `rms_norm`
    does.
    """
    format_ = _check(x, scale, quantised_dtype, scaling, scale_ub, y)
    made = _norm(x, x.dtype, weight, eps, order, weight_offset, y, axis_name)
    q, found = _quantise(made, scale, format_, scaling, scale_ub, axis_name)
    return (q, found) if scale is None else q


def quantised_add_rms_norm(
    x: Float[Array, "*batch d"],
    residual: Float[Array, "*batch d"],
    weight: Float[Array, " d"] | None = None,
    scale: Float[Array, " 1"] | None = None,
    *,
    eps: float = 1e-5,
    quantised_dtype: str = "float8_e4m3fn",
    scaling: str = "per_row",
    scale_ub: float | None = None,
    order: str = "cast_then_scale",
    weight_offset: float = 0.0,
    sum: str = "rounded",
    y: str = "rounded",
    axis_name: AxisName | None = None,
) -> tuple[Array, Array, Array] | tuple[Array, Array]:
    r"""Add the residual to x; return the quantised RMSNorm of the sum, its scale unless it is given, and the sum.

    `sum` is as in `add_rms_norm`, all else, and what is raised, as there and in `quantised_rms_norm`. vLLM's
    rms_norm_dynamic_per_token_quant with a residual has `sum="unrounded"`, its fused_add_rms_norm_static_fp8_quant `"rounded"`.
    """
    format_ = _check(x, scale, quantised_dtype, scaling, scale_ub, y)
    s, residual_out = added(x, residual, sum)
    made = _norm(s, x.dtype, weight, eps, order, weight_offset, y, axis_name)
    q, found = _quantise(made, scale, format_, scaling, scale_ub, axis_name)
    return (q, found, residual_out) if scale is None else (q, residual_out)


class QuantisedRMSNorm(RMSNorm):
    """`quantised_rms_norm` over the last axis, of `num_features`, or with a residual `quantised_add_rms_norm`.

    It takes what `RMSNorm` takes but groups of features, and what the functions take; a static `scale` is a number.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        param_dtype: DTypeLike = jnp.float32,
        quantised_dtype: str = "float8_e4m3fn",
        scaling: str = "per_row",
        scale: float | None = None,
        scale_ub: float | None = None,
        order: str = "cast_then_scale",
        weight_offset: float = 0.0,
        sum: str = "rounded",
        y: str = "rounded",
        rngs: nnx.Rngs | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, param_dtype=param_dtype, order=order, weight_offset=weight_offset)
        self.quantised_dtype = quantised_dtype
        self.scaling = scaling
        self.scale = scale
        self.scale_ub = scale_ub
        self.sum = sum
        self.y = y

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - it returns what the functions return
        self, x: Float[Array, "*batch d"], residual: Float[Array, "*batch d"] | None = None
    ) -> Array | tuple[Array, ...]:
        scale = None if self.scale is None else jnp.full(1, self.scale, jnp.float32)
        how: Any = {"eps": self.eps, "order": self.order, "weight_offset": self.weight_offset, "y": self.y}
        how |= {"quantised_dtype": self.quantised_dtype, "scaling": self.scaling, "scale_ub": self.scale_ub}
        if residual is None:
            return quantised_rms_norm(x, self.weight[...], scale, **how)
        return quantised_add_rms_norm(x, residual, self.weight[...], scale, **how, sum=self.sum)


def _norm(
    x: Array,
    dtype: jnp.dtype,
    weight: Array | None,
    eps: float,
    order: str,
    weight_offset: float,
    y: str,
    axis_name: AxisName | None,
) -> Array:
    """RMSNorm, as it is quantised: rounded to the dtype that y would be stored in, or not.

    It is rounded here, since XLA may drop the cast at the norm's end, whose result is widened again.
    """
    stored, wide = output_dtype(order, dtype, weight), compute_dtype(x)
    if order == "cast_then_scale":  # x_hat is still cast; a wide weight then promotes y
        weight = None if weight is None else weight.astype(wide)
    else:
        dtype = wide
    made = rms_norm(x, weight, eps=eps, order=order, weight_offset=weight_offset, dtype=dtype, axis_name=axis_name)
    return round_to(made, stored) if y == "rounded" else made


def _quantise(
    y: Array, scale: Array | None, format_: Format, scaling: str, scale_ub: float | None, axis_name: AxisName | None
) -> tuple[Array, Array]:
    """q, [*batch, d], and its scale, [*batch, groups]."""
    *batch, d = y.shape
    size = GROUPS.get(scaling, d)
    groups = lax.stop_gradient(y).astype(jnp.float32).reshape(*batch, d // size, size)
    divisor = _dynamic_scale(groups, format_, scaling, scale_ub, axis_name) if scale is None else scale  # *batch groups 1
    z = jnp.clip(groups / divisor, -format_.qmax, format_.qmax).reshape(y.shape)  # *batch d
    q = (jnp.round(z) if format_.dtype == jnp.int8 else z).astype(format_.dtype)
    return q, divisor[..., 0]


def _dynamic_scale(groups: Array, format_: Format, scaling: str, scale_ub: float | None, axis_name: AxisName | None) -> Array:
    """What brings the largest number of every group to qmax, or near to it: [*batch, groups, 1]."""
    largest = jnp.max(jnp.abs(groups), axis=-1, keepdims=True)  # *batch groups 1
    if axis_name is not None and scaling == "per_row":
        largest = lax.pmax(largest, axis_name)
    if scaling == "mx":
        exponent = (lax.bitcast_convert_type(largest, jnp.int32) >> DIGITS) - BIAS - format_.emax  # floor(log2(largest)) - emax
        bits = (jnp.maximum(exponent, LEAST_EXPONENT) + BIAS) << DIGITS
        return jnp.where(largest == 0, 1.0, lax.bitcast_convert_type(bits, jnp.float32))  # the standard leaves zeros open
    bounded = largest if scale_ub is None else jnp.minimum(largest, scale_ub)
    return jnp.maximum(bounded / format_.qmax, format_.floor)


def _check(x: Array, scale: Array | None, quantised_dtype: str, scaling: str, scale_ub: float | None, y: str) -> Format:
    """The format that is quantised to. Raises `ValueError` unless y can be quantised so."""
    if quantised_dtype not in FORMATS:
        raise ValueError(f"quantised_dtype is {quantised_dtype!r}; it must be one of {', '.join(FORMATS)}")
    scalings = ("static", "per_row", *GROUPS)
    if scaling not in scalings:
        raise ValueError(f"scaling is {scaling!r}; it must be one of {', '.join(scalings)}")
    if scaling == "mx" and quantised_dtype == "int8":
        raise ValueError("scaling is 'mx'; with a quantised_dtype of int8 it must be another")
    if y not in ("rounded", "unrounded"):
        raise ValueError(f"y is {y!r}; it must be 'rounded' or 'unrounded'")
    if (scale is None) == (scaling == "static"):
        raise ValueError(f"scale is {'missing' if scale is None else 'given'}; with scaling={scaling!r} it must be otherwise")
    if scale is not None and (scale.shape != (1,) or scale.dtype != jnp.float32):
        raise ValueError(f"scale is {scale.dtype} of shape {list(scale.shape)}; it must be float32 of shape [1]")
    if scale is not None and not isinstance(scale, Tracer) and not 0 < scale.item() < float("inf"):
        raise ValueError(f"scale is {scale.item()}; it must be positive and finite")
    if scale_ub is not None and not (0 < scale_ub < float("inf") and scaling in ("per_row", "per_group_128")):
        raise ValueError(f"scale_ub is {scale_ub}; it must be positive, and scaling 'per_row' or 'per_group_128'")
    size = GROUPS.get(scaling, 1)
    if x.ndim and x.shape[-1] % size:
        raise ValueError(f"x has shape {list(x.shape)}; with scaling={scaling!r} its last axis must be a multiple of {size}")
    return FORMATS[quantised_dtype]
