"""equinox.nn's norms, rope and attention as they ship."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn._embedding import internal_rope_embedding_cache
from jax import Array

import ports.jax_library
from conformance.port import Skip
from ports.jax_library import BIASED, UNSEEN, visible


class Port(ports.jax_library.Port):
    """Every default but eps; the layers see one row, and `jax.vmap` shows them the others."""

    name = "equinox"
    packages = ("equinox",)
    expected = {  # noqa: RUF012
        "attention/*/hides_a_row": UNSEEN,
        "batch_norm/training*float16/*": "the batch's statistics are rounded to x's dtype: ratios of 4e2 to 1e4",
    }
    skips = BIASED

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float, order: str = "scale_then_cast") -> Array:
        norm = eqx.nn.RMSNorm(x.shape[-1], eps=eps, use_weight=weight is not None, use_bias=False)
        return _over_rows(_with(norm, weight=weight), x)

    def layer_norm(
        self, x: Array, weight: Array | None, bias: Array | None, *, eps: float, order: str = "scale_then_cast"
    ) -> Array:
        norm = eqx.nn.LayerNorm(x.shape[-1], eps=eps, use_weight=weight is not None, use_bias=bias is not None)
        return _over_rows(_with(norm, weight=weight, bias=bias), x)

    @staticmethod
    def batch_norm(
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
        norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
            x.shape[-1],
            axis_name="batch",
            eps=eps,
            channelwise_affine=weight is not None,
            momentum=1 - momentum,
            inference=not training,
            dtype=running_mean.dtype,
            mode="batch",
        )
        norm = _with(norm, weight=weight, bias=bias)
        state = state.set(norm.batch_counter, jnp.asarray(10**6)).set(norm.batch_state_index, (running_mean, running_var))
        over_batch = jax.vmap(norm, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, state = over_batch(jnp.moveaxis(x, -1, 1), state)
        y = jnp.moveaxis(y, 1, -1).astype(x.dtype)
        return (y, *state.get(norm.batch_state_index)) if training else y

    @staticmethod
    def rope(x: Array, *, position: int, base: float, interleaved: bool) -> Array:
        """From position zero on, which is where the layer begins: rows of zeros stand before the first."""
        if interleaved:
            raise Skip("pairs are a feature of the first half and one of the second")
        internal_rope_embedding_cache.clear()  # what layers of another base have left there: see SecondRope
        layer = eqx.nn.RotaryPositionalEmbedding(x.shape[-1], theta=base)
        rows = jnp.pad(x, [(0, 0), (position, 0), (0, 0), (0, 0)])
        return jax.vmap(jax.vmap(layer, in_axes=1, out_axes=1))(rows)[:, position:]

    @staticmethod
    def attention(q: Array, k: Array, v: Array, key_mask: Array | None, *, causal: bool) -> Array:
        """MultiheadAttention, whose projections are identities here; keys and values are repeated for it."""
        *_, s, h, d_head = q.shape
        layer = eqx.nn.MultiheadAttention(h, h * d_head, dtype=q.dtype, key=jax.random.key(0))
        one = jnp.eye(h * d_head, dtype=q.dtype)
        for projection in ("query_proj", "key_proj", "value_proj", "output_proj"):
            layer = eqx.tree_at(lambda each, name=projection: getattr(each, name).weight, layer, one)
        mask = jnp.broadcast_to(visible(s, k.shape[-3], key_mask, causal)[:, 0], (len(q), s, k.shape[-3]))
        merged = [jnp.repeat(a, h // a.shape[-2], axis=-2).reshape(*a.shape[:-2], -1) for a in (q, k, v)]
        return jax.vmap(layer)(*merged, mask).reshape(q.shape)


class SecondRope(Port):
    """The rope of a model that has two, after one with the default base has been called on as many rows."""

    name = "equinox, second rope"
    rms_norm = layer_norm = batch_norm = attention = None  # pyright: ignore
    expected = {"rope/*": "cosines and sines are kept by size and dtype, and not by base: those of the first are used"}  # noqa: RUF012

    @staticmethod
    def rope(x: Array, *, position: int, base: float, interleaved: bool) -> Array:
        if interleaved:
            raise Skip("pairs are a feature of the first half and one of the second")
        internal_rope_embedding_cache.clear()
        rows = jnp.pad(x, [(0, 0), (position, 0), (0, 0), (0, 0)])
        first, second = (eqx.nn.RotaryPositionalEmbedding(x.shape[-1], theta=theta) for theta in (10_000.0, base))
        first(rows[0, :, 0])
        return jax.vmap(jax.vmap(second, in_axes=1, out_axes=1))(rows)[:, position:]


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
