"""The norms of rows by the kernels, and their gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from impl_jax.kernels.launch import launch
from impl_jax.kernels.passes import Norm, backward, forward
from impl_jax.rows import check_order, check_rows, compute_dtype, groups_of, output_dtype

Given = dict[str, Array]
"""By name: x, and of the residual, weight and bias those that there are."""


def norm(
    x: Array,
    residual: Array | None,
    weight: Array | None,
    bias: Array | None,
    *,
    eps: float,
    order: str,
    weight_offset: float,
    dtype: DTypeLike,
    centred: bool,
    sum: str = "rounded",
    group_size: int | None = None,
) -> tuple[Array, Any]:
    """Return RMSNorm, or LayerNorm if it is `centred`, and the sum with the residual, or None.

    x and the residual are [*batch, d], weight and bias [d]. The rest is as in `add_rms_norm`, which has checked the residual.
    """
    check_order(order)
    check_rows(x, weight=weight, bias=bias)
    groups, compute = groups_of(group_size, x), compute_dtype(x)
    what = Norm(
        centred=centred,
        x_hat_dtype=jnp.dtype(dtype) if order == "cast_then_scale" else compute,
        sum_dtype=residual.dtype if residual is not None and sum == "rounded" else compute,
        compute=compute,
        n_rows=x.size // max(1, x.shape[-1]),
        width=x.shape[-1] // groups,
    )
    tensors = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    given = {name: _grouped(each, groups) for name, each in tensors.items() if each is not None}
    constants = jnp.stack([jnp.asarray(each, compute) for each in (eps, weight_offset)])
    y_dtype = output_dtype(order, jnp.dtype(dtype), weight, bias)
    outputs: Any = _norm(what, y_dtype, given, constants)
    y, residual_out = outputs
    return _ungrouped(y, x.shape), None if residual_out is None else _ungrouped(residual_out, x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _norm(what: Norm, y_dtype: jnp.dtype, given: Given, constants: Array) -> tuple[Array, Array | None]:
    outputs, _ = _norm_forward(what, y_dtype, given, constants)
    return outputs


def _norm_forward(
    what: Norm, y_dtype: jnp.dtype, given: Given, constants: Array
) -> tuple[tuple[Array, Array | None], tuple[Given, Array]]:
    made = {"y": jax.ShapeDtypeStruct(given["x"].shape, y_dtype)}
    if "residual" in given:
        made["residual_out"] = jax.ShapeDtypeStruct(given["x"].shape, given["residual"].dtype)
    outputs = launch(forward, what, given | {"constants": constants}, made)
    return (outputs["y"], outputs.get("residual_out")), (given, constants)


def _norm_backward(what: Norm, y_dtype: jnp.dtype, saved: tuple[Given, Array], cotangents: tuple[Array, Array | None]):
    given, constants = saved
    dy, dresidual_out = cotangents
    read = {name: each for name, each in given.items() if name != "bias"} | {"dy": dy, "constants": constants}
    ds_dtype = given["residual"].dtype if "residual" in given else given["x"].dtype
    if dresidual_out is not None:
        read["dresidual_out"] = dresidual_out
    parts = tuple(f"d{name}" for name in ("weight", "bias") if name in given)
    outputs = launch(backward, what, read, {"ds": jax.ShapeDtypeStruct(given["x"].shape, ds_dtype)}, parts)
    of = {"x": "ds", "residual": "ds", "weight": "dweight", "bias": "dbias"}
    return {name: outputs[of[name]].astype(each.dtype) for name, each in given.items()}, None


_norm.defvjp(_norm_forward, _norm_backward)


def _grouped(tensor: Array, groups: int) -> Array:
    """[*batch, d] as [groups, rows, width], and a parameter, [d], as [groups, 1, width]: copied where there are groups."""
    return jnp.moveaxis(tensor.reshape(-1, groups, tensor.shape[-1] // groups), 1, 0)


def _ungrouped(tensor: Array, shape: tuple[int, ...]) -> Array:
    """[groups, rows, width] as it was before, [*batch, d]."""
    return jnp.moveaxis(tensor, 0, 1).reshape(shape)
