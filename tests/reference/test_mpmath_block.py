"""A block at fifty digits, wherever its norms stand: what it puts out, and its slope along a direction of all that it reads."""

from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
from block_inputs import draw
from mp_norms import STEP, mp, mpf, normalise, to_mp

import reference
from reference import BlockConfig

Array = np.ndarray

# The largest error of these draws is 4.2 float64 ulps of the largest output, and of a slope 1.2 of the sum of its terms' sizes;
# both with room for another BLAS's order. What is left out, or stands in the wrong place, is 1e13 and more.
OUT, SLOPE = 16, 8
PLACEMENTS = get_args(get_type_hints(BlockConfig)["placement"])
CONFIG = BlockConfig(4, n_heads=1, n_kv_heads=1, d_head=4, d_ff=3, rope="none", causal=False)


def softmax(row: Array) -> Array:
    exponentials = np.array([mp.exp(score) for score in row])
    return exponentials / exponentials.sum()


def block(x: Array, p: dict[str, Array], config: BlockConfig) -> Array:
    """The definitions, placement by placement, of x [s, d]."""

    def norm(rows: Array, name: str) -> Array:
        centre = config.norm == "layer_norm"
        x_hat = np.array([normalise(list(row), mpf(config.eps), centre=centre).x_hat for row in rows])
        return x_hat * p[f"{name}.weight"] + p.get(f"{name}.bias", mpf(0))

    def attention(rows: Array) -> Array:
        q, k, v = (rows @ p[f"attention.{name}.weight"].T for name in "qkv")
        scores = q @ k.T / mp.sqrt(config.d_head)
        return np.array([softmax(row) for row in scores]) @ v @ p["attention.o.weight"].T

    def feed_forward(rows: Array) -> Array:
        gate, up = (rows @ p[f"feed_forward.{name}.weight"].T for name in ("gate", "up"))
        return (gate / (1 + np.vectorize(mp.exp, otypes=[object])(-gate)) * up) @ p["feed_forward.down.weight"].T

    match config.placement:
        case "pre":
            h = x + attention(norm(x, "attention_norm"))
            return h + feed_forward(norm(h, "ffn_norm"))
        case "post":
            h = norm(x + attention(x), "attention_norm")
            return norm(h + feed_forward(h), "ffn_norm")
        case "sandwich":
            h = x + norm(attention(norm(x, "attention_norm")), "attn_out_norm")
            return h + norm(feed_forward(norm(h, "ffn_norm")), "ffn_out_norm")
        case "branch":
            h = x + norm(attention(x), "attn_out_norm")
            return h + norm(feed_forward(h), "ffn_out_norm")
        case "parallel":
            n = norm(x, "attention_norm")
            return x + attention(n) + feed_forward(n)
        case "none":
            h = x + attention(x)
            return h + feed_forward(h)


@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm", "layer_norm_without_bias"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_block(placement, norm):
    bias = norm != "layer_norm_without_bias"
    config = replace(CONFIG, placement=placement, norm=norm.removesuffix("_without_bias"), norm_bias=bias)
    x, parameters, dout = draw(config, (3,))
    arguments, rng = {"x": x} | parameters, np.random.default_rng(1)
    along = {name: rng.normal(size=value.shape) for name, value in arguments.items()}

    def moved(step: mpf) -> Array:
        given = {name: to_mp(value) + step * to_mp(along[name]) for name, value in arguments.items()}
        return block(given.pop("x"), given, config)

    exact, out = moved(mpf(0)), reference.pre_ln_block(x, parameters, config).out
    assert np.max(abs(to_mp(out) - exact)) <= OUT * np.spacing(np.max(np.abs(out)))

    slope = ((moved(STEP) - moved(-STEP)) * to_mp(dout)).sum() / (2 * STEP)
    gradients = reference.pre_ln_block_vjp(dout, x, parameters, config)
    terms = np.concatenate([(gradients[f"d{name}"] * along[name]).ravel() for name in arguments])
    assert abs(to_mp(terms).sum() - slope) <= SLOPE * np.spacing(np.sum(np.abs(terms)))
