"""dm-haiku's RMSNorm and LayerNorm as they ship."""

from collections.abc import Callable

import haiku as hk
from jax import Array

import ports.jax_library
from conformance.port import Skip


class Port(ports.jax_library.Port):
    """Every default but eps; `hk.transform` makes the layers pure functions of their parameters."""

    name = "haiku"
    packages = ("dm-haiku",)
    expected = {  # noqa: RUF012
        "*/scale_then_cast/*": "statistics, products and sums are in x's dtype: ratios of 3e2 up to infinity",
    }
    skips = {  # noqa: RUF012
        "layer_norm/scale_then_cast/bfloat16/width_1": "six values of dy may add up exactly in bfloat16",
    }

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float, order: str = "scale_then_cast") -> Array:
        def forward(x: Array) -> Array:
            return hk.RMSNorm(-1, eps, create_scale=weight is not None)(x)

        return _apply(forward, "rms_norm", x, scale=weight)

    def layer_norm(
        self, x: Array, weight: Array | None, bias: Array | None, *, eps: float, order: str = "scale_then_cast"
    ) -> Array:
        def forward(x: Array) -> Array:
            return hk.LayerNorm(-1, weight is not None, bias is not None, eps)(x)

        return _apply(forward, "layer_norm", x, scale=weight, offset=bias)


def _apply(forward: Callable[[Array], Array], name: str, x: Array, **parameters: Array | None) -> Array:
    """The layer of that name on x. Raises `Skip` where y would not have x's dtype."""
    present = {name: parameter for name, parameter in parameters.items() if parameter is not None}
    if any(parameter.dtype != x.dtype for parameter in present.values()):
        raise Skip("float32 parameters promote y to float32")
    return hk.without_apply_rng(hk.transform(forward)).apply({name: present}, x)
