"""flax.linen's RMSNorm and LayerNorm: as they ship, and with LayerNorm's variance in two passes."""

from typing import Any

import jax.numpy as jnp
from flax import linen
from jax import Array

import ports.jax_library
from ports.jax_library import BIASED, UNSEEN, visible


class TwoPass(ports.jax_library.Port):
    """`use_fast_variance=False`, and `dtype=x.dtype`: without it, a float32 weight promotes y."""

    name = "flax_linen, two passes"
    packages = ("flax",)
    use_fast_variance = False
    skips = BIASED
    expected = {"attention/*/hides_a_row": UNSEEN}  # noqa: RUF012

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float, order: str = "scale_then_cast") -> Array:
        norm = linen.RMSNorm(epsilon=eps, dtype=x.dtype, use_scale=weight is not None)
        return _apply(norm, x, scale=weight)

    def layer_norm(
        self, x: Array, weight: Array | None, bias: Array | None, *, eps: float, order: str = "scale_then_cast"
    ) -> Array:
        norm = linen.LayerNorm(
            epsilon=eps,
            dtype=x.dtype,
            use_scale=weight is not None,
            use_bias=bias is not None,
            use_fast_variance=self.use_fast_variance,
        )
        return _apply(norm, x, scale=weight, bias=bias)

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
        norm = linen.BatchNorm(
            use_running_average=not training,
            momentum=1 - momentum,
            epsilon=eps,
            dtype=x.dtype,
            use_scale=weight is not None,
            use_bias=bias is not None,
            use_fast_variance=self.use_fast_variance,
        )
        params = {name: each for name, each in (("scale", weight), ("bias", bias)) if each is not None}
        variables = {"params": params, "batch_stats": {"mean": running_mean, "var": running_var}}
        y, changed = norm.apply(variables, x, mutable=["batch_stats"])
        return (y, changed["batch_stats"]["mean"], changed["batch_stats"]["var"]) if training else y

    @staticmethod
    def attention(q: Array, k: Array, v: Array, key_mask: Array | None, *, causal: bool) -> Array:
        """Keys and values are repeated for it; without a mask nothing is hidden."""
        k, v = (jnp.repeat(a, q.shape[-2] // a.shape[-2], axis=-2) for a in (k, v))
        return linen.dot_product_attention(q, k, v, mask=visible(q.shape[-3], k.shape[-3], key_mask, causal))


class Port(TwoPass):
    """As they ship: LayerNorm's variance is E[x²] - E[x]², in one pass, which cancels where the mean is large."""

    name = "flax_linen"
    use_fast_variance = True
    expected = {  # noqa: RUF012
        **TwoPass.expected,
        "layer_norm/*/mean_*": "E[x²] - E[x]² at a large mean: ratios of 2 to 9e8",
        "batch_norm/training*/mean_300": "E[x²] - E[x]² at a large mean: ratios of 2e2 to 9e2",
        "batch_norm/training*/float[36][24]/constant_columns": "E[x²] - E[x]² leaves rounding for zero: ratios of 80 to 4e2",
        "layer_norm/either_order/float32/constant_rows": "E[x²] - E[x]² leaves rounding for zero: ratios of 16 to 5e4",
    }
    expected_in_jit = {  # noqa: RUF012
        # In half precision x² is exact, and dividing by 33 gives zero; XLA multiplies by the rounded 1/33.
        "batch_norm/training*/*float16/constant_columns": "E[x²] - E[x]² leaves rounding for zero: ratios of 32",
        "layer_norm/scale_then_cast/*/constant_rows": "E[x²] - E[x]² leaves rounding for zero: ratios of 80 to 2e3",
    }
    skips = {  # noqa: RUF012
        **BIASED,
        "layer_norm/either_order/float64/constant_rows": "E[x²] - E[x]² is not zero in 15 seeds of 16",
        "layer_norm/either_order/float32/width_[23]": "E[x²] - E[x]² cancels in 3 seeds of 16, where a row's values are close",
        "layer_norm/either_order/float32/rows_*_of_[23]": "E[x²] - E[x]² cancels, as the seed has it, in close values",
        "layer_norm/scale_then_cast/bfloat16/mean_30": "E[x²] - E[x]² shows in 6 seeds of 16",
    }


def _apply(norm: linen.Module, x: Array, **parameters: Array | None) -> Array:
    present = {name: parameter for name, parameter in parameters.items() if parameter is not None}
    y = norm.apply({"params": present}, x)
    assert isinstance(y, Array)  # and not a pair with state that changed: these layers have none
    return y
