"""RMSNorm whose output is quantised: q = round(y / scale). There is nothing to pull back."""

from typing import Any

import ml_dtypes
import numpy as np

from ports.numpy.rows import Sum, rms_norm, widen

Array = np.ndarray

DTYPES = {name: np.dtype(name) for name in ("float8_e4m3fn", "float8_e5m2", "int8")}
GROUPS = {"per_group_128": 128, "mx": 32}
LEAST_EXPONENT = -126  # of an MX scale that is a normal number of float32


def quantised_rms_norm(
    x: Array,
    weight: Array | None,
    scale: Array | None,
    *,
    eps: float,
    y: str = "rounded",
    order: str = "cast_then_scale",
    **how: Any,
) -> tuple[tuple[Array, ...], None]:
    """RMSNorm of x, quantised: q, and the scale if it is not given."""
    return _quantise(_norm(x, x.dtype, weight, y, order, eps), scale, **how), None


def quantised_add_rms_norm(
    x: Array,
    residual: Array,
    weight: Array | None,
    scale: Array | None,
    *,
    eps: float,
    y: str = "rounded",
    sum: Sum = "rounded",
    order: str = "cast_then_scale",
    **how: Any,
) -> tuple[tuple[Array, ...], None]:
    """RMSNorm of x and the residual, quantised: q, the scale if it is not given, and the sum."""
    total = widen(x) + widen(residual)  # *batch d
    residual_out = total.astype(residual.dtype)  # *batch d
    s = residual_out if sum == "rounded" else total
    return (*_quantise(_norm(s, x.dtype, weight, y, order, eps), scale, **how), residual_out), None


def _norm(s: Array, dtype: np.dtype, weight: Array | None, y: str, order: str, eps: float) -> Array:
    """RMSNorm, as it is quantised: rounded to the dtype that y would be stored in, or not."""
    if y == "unrounded" and order == "cast_then_scale":  # x_hat is still cast; a wide weight then promotes y
        weight = None if weight is None else widen(weight)
    elif y == "unrounded":
        dtype = np.result_type(dtype, np.float32)
    return widen(rms_norm(s, weight, eps=eps, order=order, dtype=dtype)[0])


def _quantise(
    y: Array, scale: Array | None, *, quantised_dtype: str, scaling: str, scale_ub: float | None = None
) -> tuple[Array, ...]:
    r"""y over its scale, within ±qmax, rounded once.

    $$ q = \mathrm{round}(\min(\max(y / scale, -q_{max}), q_{max})), \qquad scale = \max(\min(\max |y|, ub) / q_{max}, floor) $$
    """
    dtype = DTYPES[quantised_dtype]
    qmax = np.float32(127 if dtype.kind == "i" else ml_dtypes.finfo(dtype).max)
    d: int = y.shape[-1]
    size = GROUPS.get(scaling, d)
    groups = y.reshape(*y.shape[:-1], d // size, size)  # *batch groups size
    divisor = scale if scale is not None else _dynamic_scale(groups, qmax, dtype, scaling, scale_ub)  # *batch groups 1
    z = np.clip(groups / divisor, -qmax, qmax).reshape(y.shape)  # *batch d
    q = (np.rint(z) if dtype.kind == "i" else z).astype(dtype)
    return (q,) if scale is not None else (q, divisor[..., 0])


def _dynamic_scale(groups: Array, qmax: Any, dtype: np.dtype, scaling: str, scale_ub: float | None) -> Array:
    """What brings the largest number of every group to qmax, or near to it: [*batch, groups, 1]."""
    largest = np.max(np.abs(groups), axis=-1, keepdims=True)  # *batch groups 1
    if scaling == "mx":
        exponent = np.maximum(np.frexp(largest)[1] - np.frexp(qmax)[1], LEAST_EXPONENT)  # floor(log2(largest)) - emax
        return np.ldexp(np.float32(1), np.where(largest == 0, 0, exponent))
    floor = np.float32(2**-23) if dtype.kind == "i" else 1 / (512 * qmax)
    bounded = largest if scale_ub is None else np.minimum(largest, np.float32(scale_ub))
    return np.maximum(bounded / qmax, floor)
