"""The transformer block for JAX: Pre-LN, or with its norms in another place.

Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", arXiv:2002.04745.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from impl_jax.attention import KeyMask, attention_in_steps
from impl_jax.block_config import NORMS_BEFORE, NORMS_BRANCH, BlockConfig
from impl_jax.feed_forward import geglu, gelu, swiglu
from impl_jax.layer_norm import layer_norm
from impl_jax.linear import linear
from impl_jax.mesh import AxisName, gathered, scattered
from impl_jax.rms_norm import rms_norm
from impl_jax.rope import rope
from impl_jax.rows import compute_dtype, round_to

Parameters = Mapping[str, Array]
SUM_NORMS = {"attn": "attention_norm", "ffn": "ffn_norm"}  # in Post-LN, by what the sum was added from
Taps = OrderedDict[str, Array]  # a plain dictionary comes out of jax.jit sorted


def pre_ln_block(
    x: Float[Array, "*batch s d_model"],
    parameters: Parameters,
    k_cache: Float[Array, "*batch past h_kv d_head"] | None = None,
    v_cache: Float[Array, "*batch past h_kv d_head"] | None = None,
    key_mask: KeyMask | None = None,
    *,
    config: BlockConfig,
    position: ArrayLike = 0,
    taps: bool = False,
    axis_name: AxisName | None = None,
) -> Float[Array, "*batch s d_model"] | tuple[Float[Array, "*batch s d_model"], Taps]:
    r"""Attention and feed-forward, each on a normalised copy of a stream that only ever gets sums.

    $$ h = x + \mathrm{attention}(\mathrm{norm}_1(x)), \qquad out = h + \mathrm{feed\_forward}(\mathrm{norm}_2(h)) $$

    So it is with the norms placed before (`pre`); `BlockConfig` says where else they may stand.

    `parameters` are those that `config.parameters()` names. `position`, perhaps a traced one, is that of x's first row, cached
    keys (which are rotated already) and values included. `key_mask`, [*batch, t], is False or 0 for padding, over cached and
    new keys. With `taps`, also every intermediate by name in data-flow order, ending with `out`: the golden's, in the values
    that the next stage is given.

    Every intermediate is rounded once, to x's dtype, but scores, capped and probs, which stay in float32 (float64 for float64)
    as all sums do. Parameters may be float32 beside an x of half precision: matrices are then rounded before they multiply.

    Inside `jax.shard_map` each device of the mesh axis `axis_name` has an even part of x's sequence, and of the heads and d_ff,
    of which alone `config` is (Korthikanti et al. 2022, arXiv:2205.05198): q, k, v, gate and up have a part of their outputs,
    o and down of their inputs; norms and the biases of o and down are whole. `position` is that of the whole x's first row.

    Raises `ValueError` where the parameters are not those of the config, or a shape does not fit.
    """
    values = block_taps(x, parameters, k_cache, v_cache, key_mask, config, position, axis_name)
    return (values["out"], values) if taps else values["out"]


class PreLNBlock(nnx.Module):
    """`pre_ln_block` with learned `parameters`, a dictionary by the names of `config.parameters()`."""

    def __init__(self, config: BlockConfig, *, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config
        shapes = BlockConfig.parameters(config)
        drawn = {name: initializer(name, config)(rngs.params(), shape, param_dtype) for name, shape in shapes.items()}
        self.parameters = nnx.Dict({name: nnx.Param(array) for name, array in drawn.items()})

    def __call__(
        self,
        x: Float[Array, "*batch s d_model"],
        k_cache: Float[Array, "*batch past h_kv d_head"] | None = None,
        v_cache: Float[Array, "*batch past h_kv d_head"] | None = None,
        key_mask: KeyMask | None = None,
        *,
        position: ArrayLike = 0,
        taps: bool = False,
    ) -> Float[Array, "*batch s d_model"] | tuple[Float[Array, "*batch s d_model"], Taps]:
        """`pre_ln_block` with the parameters held."""
        how: dict[str, Any] = {"config": self.config, "position": position, "taps": taps}
        return pre_ln_block(x, self.save(), k_cache, v_cache, key_mask, **how)

    def save(self) -> dict[str, Array]:
        """Every parameter by its name."""
        return {name: parameter[...] for name, parameter in self.parameters.items()}

    def load(self, parameters: Parameters) -> None:
        """Set every parameter, in the dtype that it has. Raises as `pre_ln_block` does."""
        check_parameters(parameters, self.config)
        for name, parameter in self.parameters.items():
            parameter[...] = parameters[name].astype(parameter.dtype)


def initializer(name: str, config: BlockConfig) -> nnx.Initializer:
    """Biases begin as zeros, effective norm weights as ones, others with a deviation of 0.02, as GPT-2's and Llama's do."""
    if name.endswith("bias"):
        return nnx.initializers.zeros
    return nnx.initializers.constant(1 - config.offset_of(name)) if "norm" in name else nnx.initializers.normal(0.02)


def block_taps(
    x: Array,
    p: Parameters,
    k_cache: Array | None,
    v_cache: Array | None,
    key_mask: KeyMask | None,
    config: BlockConfig,
    position: ArrayLike,
    axis_name: AxisName | None = None,
) -> Taps:
    """Every intermediate of `pre_ln_block`, by name in data-flow order."""
    _check(x, config)
    check_parameters(p, config)
    taps = Taps()

    def join(stream: Array, branch: str) -> Array:
        given = taps[f"{branch}_out"]
        if config.placement in NORMS_BRANCH:
            given = taps[f"{branch}_out_norm"] = _norm(given, p, f"{branch}_out_norm", config)
        if config.placement == "post":
            taps[f"{branch}_sum"] = _add(stream, given)
            return _norm(taps[f"{branch}_sum"], p, SUM_NORMS[branch], config)
        return _add(stream, given)

    stream, read = _branches(x, 2)
    if config.placement in NORMS_BEFORE:
        read = taps["attention_norm"] = _norm(read, p, "attention_norm", config)
    to_feed_forward, *to_heads = _branches(gathered(read, axis_name), 4)
    for name, branch in zip("qkv", to_heads, strict=True):
        taps[name] = _heads(_linear(branch, p, f"attention.{name}"), config.d_head)
    q, k, v = taps["q"], taps["k"], taps["v"]
    if config.qk_norm:
        q = taps["q_norm"] = _qk_norm(q, p, "attention.q_norm", config, axis_name)
        k = taps["k_norm"] = _qk_norm(k, p, "attention.k_norm", config, axis_name)
    if config.rope != "none":
        turn: dict[str, Any] = config.rope_constants | {"position": position}
        q, k = taps["q_rope"], taps["k_rope"] = rope(q, **turn), rope(k, **turn)
    k, v = _with_cache(k_cache, k), _with_cache(v_cache, v)
    attended = attention_in_steps(q, k, v, key_mask, p.get("attention.sink"), **config.attention_constants)
    taps["scores"] = attended.scores
    if config.softcap is not None:
        taps["capped"] = attended.capped
    taps["probs"] = attended.probs
    taps["attn"] = _merge(attended.y)
    taps["attn_out"] = _linear_of_parts(taps["attn"], p, "attention.o", axis_name)
    if config.placement != "parallel":
        taps["h"] = join(stream, "attn")
        stream, to_feed_forward = _branches(taps["h"], 2)
        if config.placement in NORMS_BEFORE:
            to_feed_forward = taps["ffn_norm"] = _norm(to_feed_forward, p, "ffn_norm", config)
        to_feed_forward = gathered(to_feed_forward, axis_name)

    if config.gated:
        to_gate, to_up = _branches(to_feed_forward, 2)
        taps["gate"] = _linear(to_gate, p, "feed_forward.gate")
        taps["up"] = _linear(to_up, p, "feed_forward.up")
        gate, up = taps["gate"], taps["up"]
        taps["act"] = swiglu(gate, up) if config.feed_forward == "swiglu" else geglu(gate, up, approximate=True)
    else:
        taps["up"] = _linear(to_feed_forward, p, "feed_forward.up")
        taps["act"] = gelu(taps["up"], approximate=config.feed_forward == "gelu_tanh")
    taps["ffn_out"] = _linear_of_parts(taps["act"], p, "feed_forward.down", axis_name)
    parallel = config.placement == "parallel"
    taps["out"] = _add(stream, taps["attn_out"], taps["ffn_out"]) if parallel else join(stream, "ffn")
    return taps


def check_parameters(parameters: Parameters, config: BlockConfig) -> None:
    """Raise `ValueError` unless the parameters are those of the config, in name and shape."""
    expected = BlockConfig.parameters(config)  # whoever's config this is, if only its fields are these
    for name in expected.keys() | parameters.keys():
        if name not in parameters:
            raise ValueError(f"pre_ln_block: parameter {name!r} is missing")
        if name not in expected:
            raise ValueError(f"pre_ln_block: parameter {name!r} is unknown; this config has {', '.join(expected)}")
        if parameters[name].shape != expected[name]:
            raise ValueError(
                f"pre_ln_block: {name} has shape {list(parameters[name].shape)}; it must be {list(expected[name])}"
            )


def _linear(x: Array, p: Parameters, name: str) -> Array:
    return linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def _linear_of_parts(x: Array, p: Parameters, name: str, axis_name: AxisName | None) -> Array:
    """A product of inputs that are split over devices: its parts are summed, then the bias is added, to each one's own rows."""
    if axis_name is None:
        return _linear(x, p, name)
    y = scattered(linear(x, p[f"{name}.weight"]).astype(compute_dtype(x)), axis_name)
    bias = p.get(f"{name}.bias")
    return round_to(y if bias is None else y + bias.astype(y.dtype), x.dtype)


def _norm(x: Array, p: Parameters, name: str, config: BlockConfig) -> Array:
    """Rounded once more, for the cast that ends a norm is one that XLA may drop."""
    weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
    how: dict[str, Any] = config.norm_constants | {"order": config.order}
    y = layer_norm(x, weight, bias, **how) if config.norm == "layer_norm" else rms_norm(x, weight, **how)
    return round_to(y.astype(compute_dtype(y)), x.dtype)


def _qk_norm(x: Array, p: Parameters, name: str, config: BlockConfig, axis_name: AxisName | None) -> Array:
    """Of every head, or of all of them side by side, which are then split; rounded once more, as `_norm`."""
    rows, over = (_merge(x), axis_name) if config.qk_norm_over == "all_heads" else (x, None)
    y = rms_norm(rows, p[f"{name}.weight"], **config.qk_norm_constants, order=config.order, axis_name=over)
    return round_to(y.astype(compute_dtype(y)), x.dtype).reshape(x.shape)


def _branches(x: Array, n: int) -> list[Array]:
    """The same x for each of n uses, whose cotangents are then added in float32; autodiff would add them in x's dtype."""
    wide = x.astype(compute_dtype(x))
    return [wide.astype(x.dtype) for _ in range(n)]


def _add(stream: Array, *updates: Array) -> Array:
    """Added in the compute dtype, and rounded once."""
    compute = compute_dtype(stream)
    return round_to(sum((update.astype(compute) for update in updates), stream.astype(compute)), stream.dtype)


def _heads(x: Array, d_head: int) -> Array:
    return x.reshape(*x.shape[:-1], -1, d_head)


def _merge(x: Array) -> Array:
    return x.reshape(*x.shape[:-2], -1)


def _with_cache(cache: Array | None, new: Array) -> Array:
    return new if cache is None else jnp.concatenate([cache, new], axis=-3)


def _check(x: Array, config: BlockConfig) -> None:
    if config.n_heads % config.n_kv_heads:
        raise ValueError(f"pre_ln_block: n_heads is {config.n_heads}, which n_kv_heads, {config.n_kv_heads}, does not divide")
    if x.shape[-1] != config.d_model:
        raise ValueError(f"pre_ln_block: x has shape {list(x.shape)}; its last axis must be d_model, {config.d_model}")
