"""dm-haiku's RMSNorm and LayerNorm as they ship."""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax.numpy as jnp
from jax import Array

import ports.jax_library
from conformance.port import Skip
from ports.jax_library import BIASED


class Port(ports.jax_library.Port):
    """Every default but eps; `hk.transform` makes the layers pure functions of their parameters."""

    name = "haiku"
    packages = ("dm-haiku",)
    expected = {  # noqa: RUF012
        "batch_norm/*float16/*": "statistics, products and sums are in x's dtype: ratios of 3e2 up to infinity",
        "batch_norm/training*/mean_300": "E[x²] - E[x]² at a large mean: ratios of 2e2 to 9e2",
        "batch_norm/training*/float[36][24]/constant_columns": "E[x²] - E[x]² leaves rounding for zero: ratios of 80 to 1e3",
        "*/scale_then_cast/*": "statistics, products and sums are in x's dtype: ratios of 3e2 up to infinity",
    }
    skips = BIASED | {"*16/exact": "no number of it needs more than half precision"}

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
        **_: Any,
    ) -> Any:
        """Of a layer that has been trained for long, whose running statistics are no longer corrected for the first steps.

        y, which float32 parameters promote, is cast to x's dtype outside.
        """

        def forward(x: Array) -> Array:
            return hk.BatchNorm(weight is not None, bias is not None, 1 - momentum, eps)(x, is_training=training)

        def row(a: Array) -> Array:
            return a.reshape((1,) * (x.ndim - 1) + a.shape)

        def average(a: Array) -> dict[str, Array]:
            return {"counter": jnp.int32(10**6), "hidden": row(a), "average": row(a)}

        state = {"batch_norm/~/mean_ema": average(running_mean), "batch_norm/~/var_ema": average(running_var)}
        transformed = hk.without_apply_rng(hk.transform_with_state(forward))
        params = {name: row(each) for name, each in (("scale", weight), ("offset", bias)) if each is not None}
        y, state = transformed.apply({"batch_norm": params}, state, x)
        y = y.astype(x.dtype)
        return (y, *(each["average"].reshape(-1) for each in state.values())) if training else y


def _apply(forward: Callable[[Array], Array], name: str, x: Array, **parameters: Array | None) -> Array:
    """The layer of that name on x. Raises `Skip` where y would not have x's dtype."""
    present = {name: parameter for name, parameter in parameters.items() if parameter is not None}
    if any(parameter.dtype != x.dtype for parameter in present.values()):
        raise Skip("float32 parameters promote y to float32")
    return hk.without_apply_rng(hk.transform(forward)).apply({name: present}, x)
