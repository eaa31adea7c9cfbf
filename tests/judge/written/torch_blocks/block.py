"""An honest Pre-LN block as model code has it: short methods, of which a mistake overrides one.

The style is that of Hugging Face's modeling files and of Meta's llama: heads as an axis of their own, rope on tensors that
are not transposed yet, a mask of booleans, the softmax in float32, everything else in x's dtype, and autograd for the rest.
"""

import math
import re
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.numbers.rounding import DTYPES, DType
from reference import BlockConfig
from tests.judge.written.fault import Fault


class Block:
    """One block, called once.

    `parameters` are named as `config.parameters()` names them, `position` is that of the first new row, and `taps` are the
    intermediates by name, as they are met.
    """

    def __init__(self, parameters: dict[str, Tensor], config: BlockConfig, position: int) -> None:
        self.parameters = parameters
        self.config = config
        self.position = position
        self.taps: dict[str, Tensor] = {}

    def __call__(self, x: Tensor, k_cache: Tensor | None, v_cache: Tensor | None, key_mask: Tensor | None) -> Tensor:
        normed = self.tap("attention_norm", self.attention_norm(x))  # b s d_model
        h = self.tap("h", self.add_attention(x, normed, self.attention(normed, k_cache, v_cache, key_mask)))
        normed = self.tap("ffn_norm", self.ffn_norm(h))
        return self.tap("out", self.add_feed_forward(x, h, normed, self.feed_forward(normed)))

    def tap(self, name: str, tensor: Tensor) -> Tensor:
        self.taps[name] = tensor
        return tensor

    def weight(self, name: str) -> Tensor:
        return self.parameters[f"{name}.weight"]

    def bias(self, name: str) -> Tensor | None:
        return self.parameters.get(f"{name}.bias")

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weight(name), self.bias(name))

    # The residual stream

    def add_attention(self, x: Tensor, normed: Tensor, attn_out: Tensor) -> Tensor:
        return x + attn_out

    def add_feed_forward(self, x: Tensor, h: Tensor, normed: Tensor, ffn_out: Tensor) -> Tensor:
        return h + ffn_out

    # Norms

    def attention_norm(self, x: Tensor) -> Tensor:
        return self.norm(x, "attention_norm")

    def ffn_norm(self, h: Tensor) -> Tensor:
        return self.norm(h, "ffn_norm")

    def qk_norm(self, x: Tensor, name: str) -> Tensor:
        return self.norm(x, f"attention.{name}_norm")

    def norm(self, x: Tensor, name: str) -> Tensor:
        x_hat = self.normalise(x.to(compute_dtype(x)))
        return self.scale_and_shift(x_hat, name, x.dtype)

    def normalise(self, x: Tensor) -> Tensor:
        if self.config.norm == "layer_norm":
            x = x - x.mean(dim=-1, keepdim=True)
        return self.rescale(x)

    def rescale(self, x: Tensor) -> Tensor:
        mean_square = x.square().mean(dim=-1, keepdim=True)  # b s 1
        return x * torch.rsqrt(mean_square + self.config.eps)

    def scale_and_shift(self, x_hat: Tensor, name: str, dtype: torch.dtype) -> Tensor:
        weight, bias = self.weight(name), self.bias(name)
        if self.config.order == "cast_then_scale":
            y = x_hat.to(dtype) * (self.config.offset_of(name) + weight)
            return y if bias is None else y + bias
        y = x_hat * (self.config.offset_of(name) + weight.to(x_hat.dtype))
        return (y if bias is None else y + bias.to(y.dtype)).to(dtype)

    # Attention

    def attention(self, x: Tensor, k_cache: Tensor | None, v_cache: Tensor | None, key_mask: Tensor | None) -> Tensor:
        q, k, v = self.project(x)  # b s h d_head, b s h_kv d_head
        q, k = self.prepare(q, k)
        v = self.prepare_values(v)
        k, v = self.cached(k_cache, k), self.cached(v_cache, v)  # b t h_kv d_head
        visible = self.visible(q.shape[1], k.shape[1], key_mask, q.device)
        attn = self.tap("attn", self.merge(self.attend(q, k, v, visible)))  # b s d_q
        return self.tap("attn_out", self.linear(attn, "attention.o"))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.tap(name, self.split(self.linear(x, f"attention.{name}"))) for name in "qkv")
        return q, k, v

    def prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.qk_norm:
            q, k = self.tap("q_norm", self.qk_norm(q, "q")), self.tap("k_norm", self.qk_norm(k, "k"))
        if self.config.rope != "none":
            q, k = self.tap("q_rope", self.rope_of_queries(q)), self.tap("k_rope", self.rope_of_keys(k))
        return q, k

    def prepare_values(self, v: Tensor) -> Tensor:
        return v

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.config.d_head)

    def merge(self, x: Tensor) -> Tensor:
        """[b, h, s, d_head] to [b, s, d_q]."""
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)

    def cached(self, cache: Tensor | None, new: Tensor) -> Tensor:
        return new if cache is None else torch.cat([cache, new], dim=1)

    def visible(self, s: int, t: int, key_mask: Tensor | None, device: torch.device) -> Tensor:
        """Which keys each query sees: [1 or b, 1, s, t]."""
        visible = torch.ones(s, t, dtype=torch.bool, device=device)
        if self.config.causal:
            visible = self.causal(visible)
        return visible[None, None] if key_mask is None else self.mask_keys(visible[None, None], key_mask != 0)

    def causal(self, visible: Tensor) -> Tensor:
        s, t = visible.shape
        return visible.tril(diagonal=t - s)

    def mask_keys(self, visible: Tensor, key_mask: Tensor) -> Tensor:
        return visible & key_mask[:, None, None, :]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, self.repeat_keys(k), self.repeat_values(v)))  # b h s d_head
        scores = self.tap("scores", self.scores(q, k))  # b h s t
        probs = self.tap("probs", self.probs(scores, visible))
        return self.mix(probs, v)

    def repeat_keys(self, k: Tensor) -> Tensor:
        return self.repeat(k)

    def repeat_values(self, v: Tensor) -> Tensor:
        return self.repeat(v)

    def repeat(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.config.n_heads // self.config.n_kv_heads, dim=2)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.matmul(q, k.transpose(2, 3)) * self.scaling()

    def scaling(self) -> float:
        return 1 / math.sqrt(self.config.d_head)

    def probs(self, scores: Tensor, visible: Tensor) -> Tensor:
        """A row that sees nothing is all zeros."""
        masked = self.hide(scores.to(compute_dtype(scores)), visible)
        return self.softmax(masked).masked_fill(~visible, 0.0).to(scores.dtype)

    def hide(self, scores: Tensor, visible: Tensor) -> Tensor:
        return scores.masked_fill(~visible, -torch.inf)

    def softmax(self, scores: Tensor) -> Tensor:
        return torch.softmax(scores, dim=-1)

    def mix(self, probs: Tensor, v: Tensor) -> Tensor:
        return torch.matmul(probs, v)

    # Rotary embedding

    def rope_of_queries(self, q: Tensor) -> Tensor:
        return self.rope(q)

    def rope_of_keys(self, k: Tensor) -> Tensor:
        return self.rope(k)

    def rope(self, x: Tensor) -> Tensor:
        positions = self.positions(x.shape[1], compute_dtype(x))
        angles = positions[:, None] * self.frequencies(x.shape[-1], compute_dtype(x))  # s d_head/2
        return self.rotate(x, torch.cos(angles)[:, None], torch.sin(angles)[:, None])

    def positions(self, s: int, dtype: torch.dtype) -> Tensor:
        return torch.arange(self.position, self.position + s).to(dtype)

    def frequencies(self, d_head: int, dtype: torch.dtype) -> Tensor:
        return 1.0 / self.config.rope_base ** (torch.arange(0, d_head, 2).to(dtype) / d_head)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = self.pair(x.to(cos.dtype))
        return self.unpair(a * cos - b * sin, a * sin + b * cos).to(x.dtype)

    def pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1) if self.config.rope == "interleaved" else x.chunk(2, dim=-1)
        return a, b

    def unpair(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack((a, b), dim=-1).flatten(-2) if self.config.rope == "interleaved" else torch.cat((a, b), dim=-1)

    # Feed-forward

    def feed_forward(self, x: Tensor) -> Tensor:
        if self.config.feed_forward == "swiglu":
            gate = self.tap("gate", self.linear(x, "feed_forward.gate"))  # b s d_ff
            act = self.swiglu(gate, self.tap("up", self.linear(x, "feed_forward.up")))
        else:
            act = self.gelu(self.tap("up", self.linear(x, "feed_forward.up")))
        return self.tap("ffn_out", self.linear(self.tap("act", act), "feed_forward.down"))

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh" if self.config.feed_forward == "gelu_tanh" else "none")


def compute_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def as_op(block: type[Block]) -> Callable[..., Any]:
    """A block as a port has it: parameters, caches and a mask come with x; with `taps`, out and the intermediates."""

    def pre_ln_block(
        x: Tensor,
        parameters: dict[str, Tensor],
        k_cache: Tensor | None = None,
        v_cache: Tensor | None = None,
        key_mask: Tensor | None = None,
        *,
        config: BlockConfig,
        position: int = 0,
        taps: bool = False,
    ) -> Any:
        model = block(parameters, config, position)
        out = model(x, k_cache, v_cache, key_mask)
        return (out, model.taps) if taps else out

    return pre_ln_block


def fault(
    block: type[Block],
    *names: str,
    group: Literal["all", "forward", "backward"] = "all",
    taps: bool = False,
    dtypes: tuple[DType, ...] = DTYPES,
    of_today: bool = False,
) -> Fault:
    """A block with one mistake: its class says which, its docstring says it in words."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", block.__name__).lower()
    what = (block.__doc__ or "").partition("\n")[0].rstrip(".")
    return Fault(
        f"torch_block_{words}", what, "pre_ln_block", "torch", as_op(block), names, group, dtypes, taps, of_today=of_today
    )
