"""equinox.nn's RMSNorm and LayerNorm as they ship."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax import Array

import ports.jax_library


class Port(ports.jax_library.Port):
    """Every default but eps; the layers see one row, and `jax.vmap` shows them the others."""

    name = "equinox"
    packages = ("equinox",)

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float, order: str = "scale_then_cast") -> Array:
        norm = eqx.nn.RMSNorm(x.shape[-1], eps=eps, use_weight=weight is not None, use_bias=False)
        return _over_rows(_with(norm, weight=weight), x)

    def layer_norm(
        self, x: Array, weight: Array | None, bias: Array | None, *, eps: float, order: str = "scale_then_cast"
    ) -> Array:
        norm = eqx.nn.LayerNorm(x.shape[-1], eps=eps, use_weight=weight is not None, use_bias=bias is not None)
        return _over_rows(_with(norm, weight=weight, bias=bias), x)


def _with(norm: Any, **parameters: Array | None) -> Any:
    """The layer with the parameters that are given in place of its own."""
    for name, parameter in parameters.items():
        if parameter is not None:
            norm = eqx.tree_at(lambda layer, name=name: getattr(layer, name), norm, parameter)
    return norm


def _over_rows(norm: Callable[[Array], Array], x: Array) -> Array:
    for _ in x.shape[:-1]:
        norm = jax.vmap(norm)
    return norm(x)
