"""The honest block with what today's models add to it, and its norms wherever they stand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.judge.written.torch_blocks.block import Block, compute_dtype


class ModernBlock(Block):
    """Of attention a window, sinks, a soft cap, a scale; rope in part; norms of all heads; and a placement of the norms."""

    def __call__(self, x: Tensor, k_cache: Tensor | None, v_cache: Tensor | None, key_mask: Tensor | None) -> Tensor:
        read = self.before(x, "attention_norm")
        attn_out = self.attention(read, k_cache, v_cache, key_mask)
        if self.config.placement == "parallel":
            return self.tap("out", self.add_both(x, attn_out, self.feed_forward(self.read_in_parallel(x, read, attn_out))))
        h = self.tap("h", self.join(x, attn_out, "attn"))
        return self.tap("out", self.join(h, self.feed_forward(self.before(h, "ffn_norm")), "ffn"))

    # Norms and the residual stream

    def before(self, x: Tensor, name: str) -> Tensor:
        return self.tap(name, self.norm(x, name)) if self.config.norms_before else x

    def read_in_parallel(self, x: Tensor, normed: Tensor, attn_out: Tensor) -> Tensor:
        return normed

    def add_both(self, x: Tensor, attn_out: Tensor, ffn_out: Tensor) -> Tensor:
        return x + (attn_out + ffn_out)

    def join(self, stream: Tensor, given: Tensor, branch: str) -> Tensor:
        if self.config.norms_branch:
            given = self.tap(f"{branch}_out_norm", self.norm(given, f"{branch}_out_norm"))
        if self.config.placement != "post":
            return stream + given
        return self.norm(self.tap(f"{branch}_sum", stream + given), "attention_norm" if branch == "attn" else "ffn_norm")

    def qk_norm(self, x: Tensor, name: str) -> Tensor:
        """Of every head, or of all of them side by side."""
        rows = x.flatten(-2) if self.config.qk_norm_over == "all_heads" else x
        return super().qk_norm(rows, name).view(x.shape)

    # Attention

    def causal(self, visible: Tensor) -> Tensor:
        visible = super().causal(visible)
        return visible if self.config.window is None else self.windowed(visible, self.config.window)

    def windowed(self, visible: Tensor, window: int) -> Tensor:
        s, t = visible.shape
        return visible.triu(diagonal=t - s - window + 1)

    def scaling(self) -> float:
        return super().scaling() if self.config.attention_scale is None else self.config.attention_scale

    def probs(self, scores: Tensor, visible: Tensor) -> Tensor:
        if self.config.softcap is not None:
            capped = self.capped(scores.to(compute_dtype(scores)), self.config.softcap)
            scores = self.tap("capped", capped.to(scores.dtype))
        return super().probs(scores, visible)

    def capped(self, scores: Tensor, cap: float) -> Tensor:
        return cap * torch.tanh(scores / cap)

    def softmax(self, scores: Tensor) -> Tensor:
        if not self.config.sink:
            return super().softmax(scores)
        return self.softmax_with_sink(scores, self.sink(scores))

    def sink(self, scores: Tensor) -> Tensor:
        """One logit a head, for every query: [b, h, s, 1]."""
        return self.parameters["attention.sink"].to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)

    def softmax_with_sink(self, scores: Tensor, sink: Tensor) -> Tensor:
        return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]

    # Rotary embedding

    def rope(self, x: Tensor) -> Tensor:
        """Of the first features."""
        turned, still = x.split([self.rotary_features, x.shape[-1] - self.rotary_features], dim=-1)
        return torch.cat([super().rope(turned), still], dim=-1)

    @property
    def rotary_features(self) -> int:
        return self.config.rotary_features or self.config.d_head

    # Feed-forward

    def feed_forward(self, x: Tensor) -> Tensor:
        if self.config.feed_forward != "geglu_tanh":
            return super().feed_forward(x)
        gate, up = (self.tap(name, self.linear(x, f"feed_forward.{name}")) for name in ("gate", "up"))
        act = self.tap("act", self.geglu(gate, up))
        return self.tap("ffn_out", self.linear(act, "feed_forward.down"))

    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate, approximate="tanh") * up
