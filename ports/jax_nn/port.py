"""jax.nn's attention and activations as they ship."""

import jax
from jax import Array

import ports.jax_library
from ports.jax_library import UNSEEN, visible

HALF = "computed operation by operation in half precision, where 1 + tanh, or erfc, and their gradients cancel"


class Port(ports.jax_library.Port):
    """`jax.nn` has no norms; what it has is what flax, and Keras on JAX, call."""

    name = "jax.nn"
    expected = {  # noqa: RUF012
        "attention/*/float64/*": "the softmax is in float32: ratios of 1e7 to 4e7",
        "attention/*/hides_a_row": UNSEEN,
        "gelu/*16/tail": HALF,
    }
    expected_in_jit = {  # noqa: RUF012
        "attention/*/float16/*": "does not compile for the CPU, which has no dot_general of precision F16_F16_F32",
    }
    skips = {  # noqa: RUF012
        "gelu/*16/random": f"{HALF}: enough to fail on some inputs",
        "swiglu/*16/*": "the terms of silu's gradient are rounded one by one, and cancel: enough to fail on some inputs",
    }

    @staticmethod
    def attention(q: Array, k: Array, v: Array, key_mask: Array | None, *, causal: bool) -> Array:
        s, t = q.shape[-3], k.shape[-3]
        plain = key_mask is None and (not causal or s == t)  # is_causal aligns the first query with the first key
        mask = None if plain else visible(s, t, key_mask, causal)
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal and plain)

    @staticmethod
    def swiglu(gate: Array, up: Array) -> Array:
        return jax.nn.silu(gate) * up

    @staticmethod
    def gelu(x: Array, *, approximate: bool) -> Array:
        return jax.nn.gelu(x, approximate=approximate)
